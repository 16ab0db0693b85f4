"""Pins, the wheel's content, and that every documented command exists as written."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
import typer
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hwm
from hwm import cli
from hwm.errors import ConfigError
from hwm.recipes import find_recipe, load_any, load_config, shipped_recipes
from hwm.weights import catalog

ROOT = Path(hwm.__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERBS = {
    "pretrain": "PretrainConfig",
    "anticipate": "AnticipateConfig",
    "adapt": "AdaptConfig",
    "adapt-gaze": "AdaptGazeConfig",
    "gaze-score": "GazeScoreConfig",
    "compare": "CompareConfig",
}
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^,]+", str(pin.specifier)) for pin in exact)
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in exact}


def wanted(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    exact = pins()
    for requirement in wanted("dev"):
        name = canonicalize_name(requirement.name)
        assert name in exact, f"{name} is not pinned"
        assert requirement.specifier.contains(exact[name]), f"{name} {exact[name]} is outside {requirement.specifier}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    names = {"pillow": "PIL", "ruamel-yaml": "ruamel", "huggingface-hub": "huggingface_hub"}
    declared = {canonicalize_name(r.name) for r in wanted("tensorboard", "wandb")}
    modules = {names.get(name, name.replace("-", "_")) for name in declared} | {"hwm"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found = {(node.module or "").split(".")[0]}
            else:
                continue
            unknown = found - modules - set(sys.stdlib_module_names)
            assert not unknown, f"{path}:{node.lineno} imports {unknown}"


def test_no_file_names_a_package_index() -> None:
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "index-url" not in text
        assert not re.search(r"https?://", text), name


def test_public_names_exist() -> None:
    for name in hwm.__all__:
        assert getattr(hwm, name) is not None
    assert dir(hwm) == sorted(hwm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hwm.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {hwm.__version__}\n" in citation


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "extract",
        "pretrain",
        "anticipate",
        "compare",
        "gaze_score",
        "adapt",
        "adapt_gaze",
        "predict",
        "data_check",
        "doctor",
    ],
)
def test_every_verb_has_its_pipeline(name: str) -> None:
    assert callable(import_module(f"hwm.pipelines.{name}").run)


def test_the_wheel_holds_all_that_is_needed_away_from_the_checkout(tmp_path: Path) -> None:
    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*")}
    assert {"hwm/py.typed", "hwm/configs/demo/quick.yaml"} <= names
    assert {f"hwm/weights/mini/{kind}/model.safetensors" for kind in ("encoder", "gazelle")} <= names
    assert not [name for name in names if name.startswith(("tests", "hwm/__pycache__"))]
    code = "import hwm, hwm.recipes as r; print(r.find_recipe('pretrain/toyworld'), len(r.shipped_recipes()))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.split() == [
        str(tmp_path / "site/hwm/configs/pretrain/toyworld.yaml"),
        str(len(shipped_recipes())),
    ]


def commands() -> Iterator[tuple[str, str]]:
    """Command lines in fenced shell blocks of the pages, and in the first comment of each recipe."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                yield page.name, line.strip().removeprefix("$ ")
    for recipe in sorted((ROOT / "configs").rglob("*.yaml")):
        for line in recipe.read_text(encoding="utf-8").splitlines():
            found = re.match(r"#(?:.*\S)?\s{2,}((?:hwm|make) \S+(?: \S+)*)", line)
            if found:
                yield f"configs/{recipe.name}", found[1]


COMMANDS = [(where, line) for where, line in commands() if line.startswith(("hwm ", "make "))]


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=[f"{where}: {line}" for where, line in COMMANDS])
def test_documented_commands_are_real(where: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
        return
    check_hwm(words[1:])


def check_hwm(words: list[str]) -> None:
    """Parses a command as the command line would, and loads its recipe with its overrides; runs nothing."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    if words[0].startswith("-"):
        assert words[0] in ("--help", "--version")
        return
    command = group.commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(command, "commands") and words[1] != "--help":
        words = words[1:]
        command = command.commands[words[0]]
    rest = [word for word in words[1:] if word != "--debug"]
    if hasattr(command, "commands") and rest[0] != "--help":
        command, rest = command.commands[rest[0]], rest[1:]
    if rest == ["--help"]:
        return
    parsed = command.make_context(words[0], rest).params
    if words[0] in VERBS:
        load_config(getattr(cli, VERBS[words[0]]), parsed["config"], parsed["overrides"] or ())
    elif words[0] == "fetch":
        for name in parsed["names"]:
            catalog.require(name)
    elif words[0] in ("check", "doctor", "extract") and parsed["config"] is not None:
        load_any(cli.RECIPES, parsed["config"], parsed["overrides"] or ())
    elif words[0] == "demo":
        load_config(cli.DemoConfig, "demo/quick" if parsed["quick"] else "demo/full", parsed["overrides"] or ())


@pytest.mark.parametrize(
    "line",
    [
        "pretrain pretrain/toywrld",
        "pretrain pretrain/toyworld optim.lrr=3",
        "pretrain pretrain/toyworld --fressh",
        "pretrian x",
        "weights fetsh vjepa2-vitl-256",
        "weights fetch vjepa2-vitl256",
        "doctor pretrain/toywrld",
        "data check pretrain/toyworld --fressh",
        "extract pretrain/toywrld",
        "extract pretrain/toyworld --fressh",
    ],
)
def test_a_command_that_cannot_work_would_be_found(line: str) -> None:
    with pytest.raises((ConfigError, KeyError, Exception), match=r"recipe|lrr|fressh|pretrian|fetsh|vitl256"):
        check_hwm(line.split())


def test_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("pretrain/toyworld").is_file()
