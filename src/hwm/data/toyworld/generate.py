"""Making a toy world: `generate(out, config)`.

Input: a `ToyWorldConfig`. Output: the folder `out`, in Ego-Exo4D's layout:

    OUT/toyworld.json                       config, classes, ceilings, list of files; written last
    OUT/takes.json
    OUT/lists/{train,val}_{cam01,ego}.txt                           videos of a split and view, for stage 1
    OUT/annotations/{keystep_train,keystep_val,splits}.json
    OUT/takes/<take>/frame_aligned_videos/{cam01,<aria>_214-1,<aria>_1201-1}.mp4
    OUT/takes/<take>/eye_gaze/general_eye_gaze_2d.csv
    OUT/truth/<take>.npz
    OUT/{ego4d,epic,annotations/keystep_benchmark}, OUT/traps.json      with `formats` and `traps`

The same config gives the same bytes, with any number of processes. A world is made in a folder aside and renamed when
it is whole, so a folder that holds `toyworld.json` holds all of it.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwm.config import ToyWorldConfig
from hwm.data.parent import end_with_parent
from hwm.data.toyworld.ceiling import Ceiling, ceilings
from hwm.data.toyworld.formats import TakePlan, keystep_json, splits_json, takes_json, write_json
from hwm.data.toyworld.formats_ego4d import write_gaze, write_goalstep, write_lta
from hwm.data.toyworld.formats_epic import write_epic
from hwm.data.toyworld.formats_keystep import write_keystep
from hwm.data.toyworld.rules import RECIPES, sample_script
from hwm.data.toyworld.take import stream_rng, write_take
from hwm.data.toyworld.traps import ARIAS as TRAP_ARIAS
from hwm.data.toyworld.traps import set_traps
from hwm.errors import DataError, RunError

VERSION = 2
"""Changes whenever the same config would give other bytes."""
TAKES_PER_PERSON = 4
_ARIAS = ("aria01", "aria01", "aria02", "aria03", "aria05", "aria")
_WRITERS: dict[str, Callable[[Path, tuple[TakePlan, ...], ToyWorldConfig], None]] = {
    "keystep": write_keystep,
    "lta": write_lta,
    "goalstep": write_goalstep,
    "epic": write_epic,
}
"""What writes each of `ToyWorldConfig.formats`."""


class ToyWorldSummary(NamedTuple):
    """What a toy world holds."""

    folder: Path
    num_takes: dict[str, int]
    """By split, `train` and `val`."""
    num_segments: dict[str, int]
    num_seconds: float
    """Length of all takes together."""
    classes: dict[int, str]
    """`step_unique_id` → name of the key step."""
    ceilings: dict[str, tuple[Ceiling, ...]]
    """By split, one a horizon."""
    made_now: bool
    """False where the folder already held this very world, whole, and nothing was done."""


def plan_takes(config: ToyWorldConfig) -> tuple[TakePlan, ...]:
    """Draw who does what in each take; no participant is in both splits."""
    num_val = min(max(round(config.num_takes * config.val_fraction), 1), config.num_takes - 1)
    counts = {"train": config.num_takes - num_val, "val": num_val}
    groups = [(split, size) for split, count in counts.items() for size in _groups(count)]
    # Numbers of participants are dealt out at random, so that they say nothing of the split.
    people = np.random.default_rng([config.seed, 0x70656F]).permutation(len(groups))
    plans: list[TakePlan] = []
    seen = {"train": 0, "val": 0}
    for (split, size), person in zip(groups, people.tolist(), strict=True):
        for number in range(size):
            # In turn, so that small worlds have every recipe in both splits.
            recipe = seen[split] % len(RECIPES)
            seen[split] += 1
            index = len(plans)
            script = sample_script(
                recipe, config.gaze == "informative", config.fps, stream_rng(config.seed, index, "script")
            )
            name = f"toy_{RECIPES[recipe].key}_{person + 1:02d}_{number + 1}"
            aria = _ARIAS[int(stream_rng(config.seed, index, "aria").integers(len(_ARIAS)))]
            if config.traps:
                aria = TRAP_ARIAS[index % len(TRAP_ARIAS)]
            plans.append(TakePlan(index, name, split, person, aria, script))
    return tuple(plans)


def _groups(count: int) -> Iterator[int]:
    for first in range(0, count, TAKES_PER_PERSON):
        yield min(TAKES_PER_PERSON, count - first)


def generate(
    out: Path,
    config: ToyWorldConfig,
    progress: Callable[[int, int], None] | None = None,
    num_processes: int | None = None,
) -> ToyWorldSummary:
    """Make a toy world, or find it made.

    Args:
        out: folder to make; may exist if it is empty or holds this very world.
        config: what to make.
        progress: called with (takes done, takes in all) after each take.
        num_processes: processes that draw; null takes one a core. With more than one, a script that calls this needs
            the usual `if __name__ == "__main__":`, since processes are spawned.

    Raises:
        DataError: `out` holds something else, or cannot be written.
        RunError: a process that draws was killed.
    """
    out = Path(out).absolute()
    plans = plan_takes(config)
    if _is_made(out, config):
        return _summary(out, plans, config, made_now=False)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            aside.chmod(0o755)  # mkdtemp makes it private
            _write_takes(plans, config, aside, progress, num_processes or os.cpu_count() or 1)
            summary = _summary(out, plans, config, made_now=True)
            _write_tables(aside, plans, config, summary)
            aside.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write the toy world: {error}", fix="choose another folder or free space") from error
    return summary


def _write_takes(
    plans: tuple[TakePlan, ...], config: ToyWorldConfig, aside: Path, progress: Callable[[int, int], None] | None,
    num_processes: int,
) -> None:  # fmt: skip
    workers = min(num_processes, len(plans))
    done = 0
    if workers == 1:
        for done, plan in enumerate(plans, start=1):
            write_take(plan, config, aside)
            if progress is not None:
                progress(done, len(plans))
        return
    # Spawned, not forked: a fork of a process that runs torch's threads may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = [pool.submit(write_take, plan, config, aside) for plan in plans]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if progress is not None:
                    progress(done, len(plans))
        except BrokenProcessPool as error:
            raise RunError(
                "a process that draws the toy world was killed", fix="look whether memory ran out, and run it again"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_tables(aside: Path, plans: tuple[TakePlan, ...], config: ToyWorldConfig, summary: ToyWorldSummary) -> None:
    """Annotations and, last, the description of the world with the size of each of its files."""
    for split in ("train", "val"):
        chosen = [plan for plan in plans if plan.split == split]
        write_json(aside / "annotations" / f"keystep_{split}.json", keystep_json(chosen, config.seed))
        for view in {"both": ("cam01", "ego"), "exo": ("cam01",), "ego": ("ego",)}[config.views]:
            _write_list(aside / "lists" / f"{split}_{view}.txt", chosen, view)
    write_json(aside / "annotations" / "splits.json", splits_json(plans, config.seed))
    write_json(aside / "takes.json", takes_json(plans, config.seed))
    for name in sorted(set(config.formats)):
        _WRITERS[name](aside, plans, config)
    if {"lta", "goalstep"} & set(config.formats):
        write_gaze(aside, plans, config)
    if config.traps:
        set_traps(aside, plans, config)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    description = _identity(config) | {
        "grid_fps": config.grid_fps,
        "classes": {str(unique_id): name for unique_id, name in summary.classes.items()},
        "num_takes": summary.num_takes,
        "num_segments": summary.num_segments,
        "ceilings": {split: [row._asdict() for row in rows] for split, rows in summary.ceilings.items()},
        "files": {path.relative_to(aside).as_posix(): path.stat().st_size for path in files},
    }
    write_json(aside / "toyworld.json", description)


def _write_list(path: Path, plans: Iterable[TakePlan], view: str) -> None:
    cameras = ((plan.name, "cam01" if view == "cam01" else f"{plan.aria}_214-1") for plan in plans)
    lines = [f"../takes/{name}/frame_aligned_videos/{camera}.mp4\n" for name, camera in cameras]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _identity(config: ToyWorldConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    # Worlds made before these settings were there are the same worlds.
    for name, default in (
        ("ego_camera", "follows"),
        ("grid_fps", 4.0),
        ("views", "both"),
        ("formats", []),
        ("traps", False),
    ):
        if values[name] == default:
            del values[name]
    return {"generator": "hwm toyworld", "version": VERSION, "config": values}


def _is_made(out: Path, config: ToyWorldConfig) -> bool:
    """Whether `out` holds this very world, whole; an error where it holds anything else."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"cannot make a toy world at {out}", expected="a folder", found="a file")
    if not any(out.iterdir()):
        return False
    fix = "choose another folder, or remove this one"
    description = out / "toyworld.json"
    if not description.is_file():
        raise DataError(f"cannot make a toy world in {out}", expected="a new or empty folder", found="files", fix=fix)
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
        files: dict[str, int] = found["files"]
        same = all(found[key] == value for key, value in _identity(config).items())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{description} cannot be read as a toy world's", found=repr(error), fix=fix) from error
    if not same:
        raise DataError(
            f"{out} holds a toy world made with another config or by another version",
            expected=json.dumps(_identity(config)),
            found=json.dumps({key: found.get(key) for key in _identity(config)}),
            fix=fix,
        )
    paths = {name: out / name for name in files}
    damaged = [name for name, path in paths.items() if not path.is_file() or path.stat().st_size != files[name]]
    if damaged:
        raise DataError(f"the toy world in {out} is damaged", found=f"missing or cut off: {damaged[0]}", fix=fix)
    return True


def _summary(out: Path, plans: tuple[TakePlan, ...], config: ToyWorldConfig, made_now: bool) -> ToyWorldSummary:
    by_split = {split: [plan.script for plan in plans if plan.split == split] for split in ("train", "val")}
    leaves = {step.unique_id: step.name for recipe in RECIPES for step in recipe.steps}
    informative = config.gaze == "informative"
    return ToyWorldSummary(
        folder=out,
        num_takes={split: len(scripts) for split, scripts in by_split.items()},
        num_segments={split: sum(len(script.steps) for script in scripts) for split, scripts in by_split.items()},
        num_seconds=math.fsum(plan.script.duration_sec for plan in plans),
        classes={unique_id: leaves[unique_id] for unique_id in sorted(leaves)},
        ceilings={
            split: ceilings(scripts, informative, config.grid_fps, config.fps) for split, scripts in by_split.items()
        },
        made_now=made_now,
    )
