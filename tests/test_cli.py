"""The command line: what it refuses, how it says so, and that it does so before anything heavy is imported."""

import errno
import io
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from rich.cells import cell_len

import hwm
from hwm.cli import main
from hwm.cli_show import show, tell
from hwm.config import AdaptConfig, AnticipateConfig, PretrainConfig
from hwm.engine.disk import Disk
from hwm.engine.requirements import require_inputs
from hwm.errors import ConfigError, RunError
from hwm.pipelines.data_summary import SummaryTable
from hwm.recipes import load_config


class Result(NamedTuple):
    folder: Path
    validation: dict[str, float]
    scores: dict[str, dict[str, float]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\ndata:\n  train: [{tmp_path}/videos]\n  val: [{tmp_path}/videos]\n")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Takes the place of the pipelines and writes down what they are called with."""
    seen: list[Any] = []
    for name in ("pretrain", "anticipate"):
        fake = ModuleType(f"hwm.pipelines.{name}")

        def run(config: Any, **options: Any) -> Result:
            seen.append((config, options))
            return Result(Path("runs/small"), {"skill": 0.25}, {"probe": {"top1": 0.5}, "majority": {"top1": 0.125}})

        fake.run = run  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, f"hwm.pipelines.{name}", fake)
        monkeypatch.setattr(f"hwm.pipelines.{name}", fake, raising=False)
    return seen


def ends(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_settings_reach_the_pipeline_from_recipe_overrides_and_options(
    recipe: Path, calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd: [name] #1 茶🫖\n2"
    assert ends("pretrain", str(recipe), "optim.lr=1e-5", "--folder", str(odd), "--fresh", "gaze=none") == 0
    config, options = calls[0]
    assert isinstance(config, PretrainConfig)
    assert (config.optim.lr, config.gaze, config.folder) == (1e-5, "none", odd)
    assert options == {"resume": False}
    out = capsys.readouterr().out
    assert "runs/small" in out
    assert "skill 0.25" in out
    assert "0.125" in out


def test_a_run_goes_on_by_default(recipe: Path, calls: list[Any]) -> None:
    assert ends("pretrain", str(recipe)) == 0
    assert calls[0][1] == {"resume": True}


def test_anticipate_needs_a_checkpoint_that_is_there(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "anticipate.yaml"
    recipe.write_text(f"name: x\nannotations: {{train: {tmp_path}, val: {tmp_path}, videos: {tmp_path}}}\n")
    assert ends("anticipate", str(recipe)) == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert ends("anticipate", str(recipe), "--checkpoint", str(tmp_path / "none")) == 2
    assert "a run folder of `hwm pretrain`" in capsys.readouterr().err
    assert not calls
    assert ends("anticipate", str(recipe), "--checkpoint", str(tmp_path)) == 0
    assert isinstance(calls[0][0], AnticipateConfig)
    assert calls[0][0].checkpoint == tmp_path


def test_the_vjepa2_backbone_needs_its_weights_and_no_checkpoint(
    calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "baseline.yaml"
    recipe.write_text(
        f"name: x\nannotations: {{train: {tmp_path}, val: {tmp_path}, videos: {tmp_path}}}\n"
        "backbone: {kind: vjepa2, encoder: {weights: weights/vitl.pt}, predictor: {weights: nowhere}}\n"
    )
    assert ends("anticipate", str(recipe)) == 2
    error = capsys.readouterr().err
    assert "backbone.encoder.weights = weights/vitl.pt" in error
    assert "fbaipublicfiles.com/vjepa2/vitl.pt" in error
    assert "backbone.predictor.weights = nowhere" in error
    assert ends("anticipate", str(recipe), "--checkpoint", str(tmp_path)) == 2
    assert "cannot use checkpoint" in capsys.readouterr().err
    assert not calls
    assert ends("anticipate", str(recipe), "backbone.encoder.weights=mini", "probe.inputs=context") == 0
    assert calls[0][0].backbone.kind == "vjepa2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("optim.lrr=1",), ["did you mean 'optim.lr'"]),
        (("optim.lr=-1",), ["greater than 0"]),
        (("no_equals",), ["dotted.key=value"]),
        (
            ("encoder.weights=weights/vitl.pt",),
            ["encoder.weights = weights/vitl.pt", "fbaipublicfiles.com/vjepa2/vitl.pt"],
        ),
        (
            ("data.val=[nowhere, nowhere.txt]",),
            ["data.val = nowhere:", "data.val = nowhere.txt:", "the comment at the top"],
        ),
    ],
)
def test_configuration_errors_are_code_2_and_name_the_cure(
    recipe: Path, calls: list[Any], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: list[str]
) -> None:
    assert ends("pretrain", str(recipe), *arguments) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert not calls


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/vitl16-256",
        "anticipate/ego-exo4d-keystep-vitl",
        "anticipate/ego4d-goalstep-vitl",
        "anticipate/keystep-vjepa2-baseline-vitl",
    ],
)
def test_real_recipes_without_their_data_stop_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ends(name.split("/")[0], name) == 2
    assert "are missing" in capsys.readouterr().err


def test_help_begins_with_what_to_start_with(capsys: pytest.CaptureFixture[str]) -> None:
    ends("--help")
    out = capsys.readouterr().out
    panels = re.findall("╭─ (.+?) ─", out)
    assert panels == ["Options", "Start here", "Data", "Train", "Train the frozen parts", "Weights"]
    assert re.findall(r"│ ([a-z-]+) ", out.split("Start here")[1].split("╰")[0])[0] == "demo"


@pytest.mark.parametrize("verb", ["doctor", "compare", "weights fetch", "weights verify"])
def test_the_usage_line_brackets_an_argument_once(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    ends(*verb.split(), "--help")
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert "[[" not in usage
    assert "...]" not in usage
    assert "...}" not in usage


@pytest.mark.parametrize(
    "arguments",
    [
        ("~nobody-of-this-name/x.yaml",),
        ("encoder.weights=~nobody-of-this-name/x",),
        ("data.val=['~nobody-of-this-name']",),
    ],
)
def test_the_home_of_nobody_is_a_file_that_is_not_there(
    recipe: Path, calls: list[Any], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    given = arguments if arguments[0].endswith("yaml") else (str(recipe), *arguments)
    assert ends("pretrain", *given) == 2
    assert "~nobody-of-this-name" in capsys.readouterr().err


def test_adapt_needs_no_videos_to_validate_on(recipe: Path, tmp_path: Path) -> None:
    given = [f"data.val=[{tmp_path}/nowhere]"]
    require_inputs(load_config(AdaptConfig, recipe, given))
    with pytest.raises(ConfigError, match=r"data\.val = .*nowhere"):
        require_inputs(load_config(PretrainConfig, recipe, given))


def test_other_errors_are_code_1_without_traceback_and_debug_shows_it(
    recipe: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Any, **options: Any) -> None:
        raise RunError("take \x1b[31mred\x07 [bold]x[/bold]: step 3", found="NaN")

    monkeypatch.setattr(sys.modules["hwm.pipelines.pretrain"], "run", fail)
    assert ends("pretrain", str(recipe)) == 1
    error = capsys.readouterr().err
    assert error == "error: take \\x1b[31mred\\x07 [bold]x[/bold]: step 3\n  found: NaN\n"
    with pytest.raises(RunError):
        main(["pretrain", str(recipe), "--debug"])


def test_a_full_disk_is_one_line_that_names_the_file(
    recipe: Path,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fill(config: Any, **options: Any) -> None:
        Disk().replace(tmp_path / "run.json", b"{}")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.modules["hwm.pipelines.pretrain"], "run", fill)
    monkeypatch.setattr(os, "fsync", full)
    assert ends("pretrain", str(recipe)) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/run.json.tmp: No space left on device\n"
    with pytest.raises(OSError, match="No space left"):
        main(["--debug", "pretrain", str(recipe)])


def test_letters_that_the_output_does_not_have_are_spelled_out(
    recipe: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    ascii_alone = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys.modules["hwm.pipelines.pretrain"], "run", lambda config, **options: {"folder": "茶"})
    with monkeypatch.context() as printing:
        printing.setattr(sys, "stdout", ascii_alone)
        assert ends("pretrain", str(recipe)) == 0
    ascii_alone.flush()
    assert raw.getvalue() == b"folder: \\u8336\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_the_output_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full").open("w", encoding="utf-8")
    with monkeypatch.context() as printing:
        printing.setattr(sys, "stdout", full)
        assert ends("--version") == 1
    with suppress(OSError):
        full.close()
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("verb", [["pretrain"], ["data", "check"], ["doctor"]])
def test_bytes_that_are_no_text_are_refused_with_a_way_out(
    recipe: Path, calls: list[Any], verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(*verb, str(recipe), os.fsdecode(b"data.train=[caf\xe9]")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: data.train=[caf\\udce9] holds bytes that are not utf-8\n")
    assert "ln -s" in said
    assert not calls


def test_files_that_may_not_be_made_are_one_line(
    recipe: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, told in (
        (OSError("it went away"), "it went away"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a\x1b[31m", None, "b"),
            "a\\x1b[31m -> b: Permission denied",
        ),
        (TimeoutError(), "TimeoutError"),
    ):

        def fail(config: Any, error: OSError = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(sys.modules["hwm.pipelines.pretrain"], "run", fail)
        assert ends("pretrain", str(recipe)) == 1
        assert capsys.readouterr().err == f"error: {told}\n"


def test_a_report_of_finished_runs_needs_a_folder_and_has_no_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert ends("compare", "--from", "run", "--folder", str(tmp_path / "file")) == 2
    assert "file is no folder" in capsys.readouterr().err
    assert ends("compare", "--from", "run", "--plan") == 2
    assert "no --plan" in capsys.readouterr().err


def test_the_exit_code_of_a_stopped_run_comes_through(
    recipe: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(config: Any, **options: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(sys.modules["hwm.pipelines.pretrain"], "run", stop)
    assert ends("pretrain", str(recipe)) == 143


def test_version_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("--version") == 0
    assert capsys.readouterr().out == f"hwm {hwm.__version__}\n"
    assert ends("pretrian") == 2
    for verb in ([], ["predict"], ["weights", "inspect"]):
        assert ends(*verb, "-h") == 0
        assert "Usage: hwm" in capsys.readouterr().out
    assert ends("toyworld", "x", "--takes", "1") == 2
    assert ends("toyworld", "x", "--gaze", "some") == 2
    assert ends("toyworld", "x", "--ego-camera", "some") == 2
    assert ends("toyworld", "x", "--formats", "epic,kitchen") == 2
    assert ends("toyworld", "x", "--takes", "15", "--traps") == 2
    capsys.readouterr()
    assert ends("toyworld", "x", "--takes", "16", "--traps", "--val-fraction", "0.5") == 2
    assert "traps need num_takes >= 16 and val_fraction from 0.18 to 0.25" in capsys.readouterr().err
    assert ends("toyworld", "x", "--grid-fps", "nan") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["pretrain", "--help"],
        ["--version"],
        ["pretrain", "pretrain/vitl16-256", "optim.lrr=1"],
        ["demo", "nope=1"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_help_and_refusals_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hwm.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'av', 'scipy', 'matplotlib', 'lightning_fabric'} & sys.modules.keys()\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_facts_are_told_a_line_each_and_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(
        {
            "folder": Path("runs/x\x1b[31m"), "takes": 3, "validation": {"skill": 0.123456, "name": "left out"},
            "answers": {"does gaze help?": "yes"}, "outputs": (1, 2), "asked_apart": False, "nothing": {},
            "scores": {"probe": {"top1": 0.5}},
        }
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "\x1b" not in lines[0]
    assert lines[0].startswith("folder: runs/x")
    assert lines[1:5] == ["takes: 3", "validation: skill 0.1235", "does gaze help?: yes", "nothing: "]
    assert any("0.500" in line for line in lines[5:])
    assert not any("outputs" in line for line in lines)


PLAN = SummaryTable(
    "6 units in runs/compare/toyworld/units",
    ("stage", "finished", "to resume", "to train", "each", "time left"),
    (("pretrain", "0", "1", "5", "1,000 updates of 16 clips of 8 steps", "after the first is measured"),
     ("anticipate", "3", "0", "6", "4 probes, 12 epochs, 3 horizons", "about 1 minute")),
)  # fmt: skip


@pytest.mark.parametrize("width", [200, 80, 72, 60, 40, 12])
def test_no_word_of_a_table_is_broken_or_cut(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(PLAN)
    out = capsys.readouterr().out
    assert set(re.findall(r"[\w,]{2,}", " ".join((*PLAN.columns, *PLAN.rows[0], *PLAN.rows[1])))) <= set(
        re.findall(r"[\w,]{2,}", out)
    )
    if "┃" in out:
        assert all(cell_len(line) <= width for line in out.splitlines()[1:])
    else:
        assert width < 72
        assert "stage: anticipate\n  finished: 3\n  to resume: 0\n" in out


def test_a_narrow_table_has_its_long_words_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show(SummaryTable("counts", ("", "annotated", "annotated [red]without"), (("train takes", "18", "x" * 70),)))
    assert capsys.readouterr().out.splitlines() == [
        "counts", "train takes", "  annotated: 18", f"  annotated [red]without: {'x' * 70}",
    ]  # fmt: skip


def test_numbers_by_step_ahead_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    tell({"validation": {"skill": 0.5, "skill_1": 0.25, "copy_l1": 1.5, "skill_2": 0.125, "near/skill_2": 0.75}})
    assert capsys.readouterr().out.splitlines() == [
        "validation: skill 0.5  copy_l1 1.5", "  skill by step: 1: 0.25  2: 0.125", "  near/skill by step: 2: 0.75",
    ]  # fmt: skip


def test_each_task_and_subset_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "probe": {"verb/top1": 0.5, "verb/num_segments": 7, "verb/tail/top1": 0.25, "length": 3},
        "previous step": {"verb/top1": 0.125},
    }
    tell(Result(Path("runs/x"), {}, scores))
    tables = capsys.readouterr().out.split("┏")[1:]
    assert [table.split("┃")[1].strip() for table in tables] == ["verb", "verb/tail", ""]
    assert "0.500" in tables[0]
    assert "0.125" in tables[0]
    assert " 7 " in tables[0]  # a count is no fraction
    assert "previous step" not in tables[1]
    assert "0.250" in tables[1]
