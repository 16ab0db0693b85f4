"""What the tests of traps share: a world with traps, what the readers make of it, and which frame a picture shows."""

import json
from collections.abc import Collection, Set
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import pytest

from hwm.config import AnnotationConfig, ToyWorldConfig
from hwm.data.annotations import read_annotations
from hwm.data.segments import SegmentTable
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.generate import plan_takes
from hwm.data.toyworld.traps import Trap, load_traps
from hwm.data.video import VideoReader, probe_video

SIDE = 64
SETTINGS = (
    {"view": "ego", "resolution": "full"},
    {"view": "ego", "resolution": "448"},
    {"view": "cam01", "resolution": "full"},
)
TRAIN_OF = {
    "fho_lta_val.json": "fho_lta_train.json",
    "goalstep_valid.json": "goalstep_train.json",
    "EPIC_100_validation.csv": "EPIC_100_train.csv",
}
OTHERS = (*TRAIN_OF.values(), *TRAIN_OF)
FILES = ("keystep_train.json", "keystep_val.json", "keystep_segment_train.json", "keystep_segment_val.json")


class World:
    """A world with traps, and what the readers make of it (each file is read once)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.traps = {trap.name: trap for trap in load_traps(folder)}
        self._tables: dict[tuple[str, ...], SegmentTable] = {}

    @cached_property
    def plans(self) -> dict[str, TakePlan]:
        content = json.loads((self.folder / "toyworld.json").read_text(encoding="utf-8"))
        self.fps: int = content["config"]["fps"]
        return {plan.name: plan for plan in plan_takes(ToyWorldConfig.model_validate(content["config"]))}

    def keystep(self, file: str, setting: dict[str, str], with_takes_json: bool = True) -> SegmentTable:
        """The table of one of `FILES`; a validation file is read with the classes of its training file."""
        key = (file, *setting.values(), str(with_takes_json))
        if key not in self._tables:
            annotations = self.folder / "annotations"
            folder = annotations / "keystep_benchmark" if "segment" in file else annotations
            config = AnnotationConfig.model_validate(
                setting
                | {"train": folder / file, "val": folder / file, "videos": self.folder}
                | {"takes": self.folder / "takes.json" if with_takes_json else None}
            )
            tasks = None
            if "val" in file:
                tasks = self.keystep(file.replace("val", "train"), setting, with_takes_json).tasks
            self._tables[key] = read_annotations(folder / file, config, tasks)
        return self._tables[key]

    def table(self, file: str) -> SegmentTable:
        """The table of one of `OTHERS`."""
        if (file,) not in self._tables:
            root = self.folder / ("epic" if "EPIC" in file else "ego4d")
            path, others = root / "annotations" / file, {}
            dataset = {"f": "ego4d-lta", "g": "ego4d-goalstep", "E": "epic-kitchens-100"}[file[0]]
            if dataset == "ego4d-lta":
                others = {"taxonomy": path.with_name("fho_lta_taxonomy.json")}
            config = AnnotationConfig.model_validate(
                {"dataset": dataset, "train": path, "val": path, "videos": root} | others
            )
            tasks = None if "train" in file else self.table(TRAIN_OF[file]).tasks
            self._tables[file,] = read_annotations(path, config, tasks)
        return self._tables[file,]

    def excluded(self, file: str, setting: dict[str, str]) -> dict[str, str]:
        """What the traps say: each row of a file that must be left out, and how its reason begins."""
        rows: dict[str, str] = {}
        for trap in self.traps.values():
            if trap.must == "exclude" and bites(trap, setting):
                rows |= dict.fromkeys(rows_in(trap, file), str(trap.reason))
        return rows


def bites(trap: Trap, setting: dict[str, str]) -> bool:
    return all(setting.get(key) == value for key, value in trap.when.items())


def rows_in(trap: Trap, file: str) -> list[str]:
    return [row for row in trap.where if row.startswith(f"{file}#")]


def nearest(picture: np.ndarray, originals: list[np.ndarray]) -> int:
    """The frame of the original that a picture shows."""
    errors = [np.abs(picture.astype(int) - original).mean() for original in originals]
    best = int(np.argmin(errors))
    assert errors[best] < 4, f"it shows no frame of the original (nearest {errors[best]:.1f} grey levels away)"
    return best


def read_at(path: Path, times: np.ndarray) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(times.tolist(), [(SIDE, SIDE)]).views[0]


def random_times(duration_sec: float, count: int = 25) -> np.ndarray:
    """In no order."""
    return np.random.default_rng(5).uniform(0, duration_sec - 0.01, count)


def all_and_no_more(table: SegmentTable, expected: dict[str, str]) -> None:
    assert table.expected == len(table.segments) + len(table.excluded)
    found = dict(table.excluded)
    assert len(found) == len(table.excluded), "a row is excluded twice"
    assert set(found) == set(expected)
    for row, reason in expected.items():
        assert found[row].startswith(reason), f"{row}: {found[row]}"


def every_trap_has_its_check(world: World, datasets: Collection[str], checks: Set[str]) -> None:
    traps = [trap for trap in world.traps.values() if trap.dataset in datasets]
    assert {trap.name for trap in traps} == checks
    for trap in traps:
        assert trap.what
        assert trap.how
        assert (trap.reason is not None) == (trap.must == "exclude")


def same_frames_later(path: Path, original: Path, late_sec: float) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        assert float((stream.start_time or 0) * stream.time_base) == pytest.approx(late_sec)
    info = probe_video(path)
    assert info.duration_sec == pytest.approx(probe_video(original).duration_sec)
    asked = random_times(info.duration_sec)
    np.testing.assert_array_equal(read_at(path, asked), read_at(original, asked))
