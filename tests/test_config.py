"""The schema: frozen, documented, and read somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from hwm import config
from hwm.config import ClipDataConfig, LossConfig, PretrainConfig

SOURCE = Path(config.__file__).parents[1]
CLASSES = sorted(
    (kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, BaseModel)),
    key=lambda kind: kind.__name__,
)[:]
OURS = [kind for kind in CLASSES if kind.__module__.startswith("hwm.config.") and kind.__name__ != "Part"]


def fields() -> Iterator[tuple[type[BaseModel], str]]:
    for kind in OURS:
        for name in kind.model_fields:
            if name in kind.__annotations__:
                yield kind, name


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_leaf_has_one_line_of_help(kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        nested = any(isinstance(part, type) and issubclass(part, BaseModel) for part in kinds_of(field.annotation))
        assert nested or field.description, f"{kind.__name__}.{name} has no help text"


def kinds_of(annotation: object) -> tuple[object, ...]:
    return (annotation, *get_args(annotation))


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_configurations_are_frozen_and_closed(kind: type[BaseModel]) -> None:
    assert kind.model_config.get("frozen")
    assert kind.model_config.get("extra") == "forbid"


def test_a_frozen_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        LossConfig().rollout_steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_fields_that_must_fit_each_other_are_both_named() -> None:
    data = ClipDataConfig(train=("a",), val=("b",), num_steps=3)
    with pytest.raises(ValidationError, match=r"loss\.rollout_steps \(3\).*data\.num_steps \(3\)"):
        PretrainConfig(name="x", data=data, loss=LossConfig(rollout_steps=3))


def test_the_home_folder_is_expanded_once_for_all_who_read_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tree = {
        "name": "x", "folder": "~/runs", "data": {"train": ["~/a.txt", "./b"], "val": ["c~"], "manifest": "~/m.json"},
        "tokens": {"folder": "~"}, "gaze_files": {"folder": Path("~/gaze")},
        "encoder": {"weights": "vitl"}, "gazelle": {"weights": "~/g.pt"},
    }  # fmt: skip
    made = PretrainConfig.model_validate(tree)
    assert made.folder == tmp_path / "runs"
    assert (made.data.train, made.data.val) == ((f"{tmp_path}/a.txt", "./b"), ("c~",))
    assert made.data.manifest == tmp_path / "m.json"
    assert (made.tokens.folder, made.gaze_files.folder) == (tmp_path, tmp_path / "gaze")
    assert (made.encoder.weights, made.gazelle.weights) == ("vitl", f"{tmp_path}/g.pt")
    assert PretrainConfig.model_validate(made.model_dump(mode="json")) == made


def test_no_setting_takes_a_path_as_it_stands() -> None:
    settings = [(f"{kind.__name__}.{name}", kind.model_fields[name]) for kind, name in fields()]
    raw = [
        name
        for name, field in settings
        if Path in get_args(field.annotation) or (field.annotation is Path and not field.metadata)
    ]
    assert not raw, f"PathSetting expands ~ in {raw}"


def test_every_field_is_read_somewhere() -> None:
    """A setting that nothing reads is a promise that nothing keeps."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "config" and path.name != "recipes.py"
    )
    dead = [f"{kind.__name__}.{name}" for kind, name in fields() if not re.search(rf"\.{name}\b", code)]
    assert not dead, f"no code reads {dead}"
