"""`hwm compare`: units are named by what decides them, used again, gone on with, and told of where they fail."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from hwm import cli
from hwm.config import CompareConfig, GazeFilesConfig
from hwm.engine.assemble import new_world, shared_hash
from hwm.engine.logged import read_metrics
from hwm.engine.progress import LateProgress
from hwm.engine.runlog import read_facts
from hwm.errors import ConfigError, DataError, RunError
from hwm.evaluation.compare_report import CompareFindings, Written
from hwm.evaluation.experiment import Run
from hwm.evaluation.metrics import score
from hwm.evaluation.outputs import read_outputs
from hwm.evaluation.report_parts import Picture
from hwm.pipelines import compare, compare_child, compare_examples, compare_runs, compare_units
from hwm.pipelines.compare_arms import ARMS, name_of, stage1_of, stage2_of
from hwm.pipelines.compare_child import open_log, start_unit
from hwm.pipelines.compare_cost import Clock, cost_of, plan_table
from hwm.pipelines.compare_examples import choose_pair, example_pictures, reopen
from hwm.pipelines.compare_facts import cautions, provenance_of, shared_settings, warnings_of
from hwm.pipelines.compare_read import FinishedRun, read_run
from hwm.pipelines.compare_units import Plan, Unit, make_plan, state_of
from hwm.pipelines.scoring import BASELINES
from hwm.recipes import dump_config

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.timeout(900)  # five trainings, each in a process that has to import torch


@pytest.fixture(scope="session")
def settings(toy_world: Path, tiny_weights: Path) -> Settings:
    """Settings of a comparison that trains in seconds, in a folder."""

    def made(folder: Path, **changes: Any) -> dict[str, Any]:
        lists = toy_world / "lists"
        pretrain = {
            "name": "stage1",
            "encoder": {"weights": str(tiny_weights / "encoder"), "resolution": 64},
            "gazelle": {"weights": str(tiny_weights / "gazelle"), "resolution": 56},
            "data": {
                "train": [str(lists / "train_cam01.txt")], "val": [str(lists / "val_cam01.txt")], "num_steps": 5,
            },
            "predictor": {"width": 24, "depth": 2, "num_heads": 2},
            "optim": {"lr": 2e-3, "num_steps": 6, "warmup_steps": 2, "batch_size": 4},
            "log_every": 2, "validate_every": 3, "save_every": 2,
        }  # fmt: skip
        anticipate = {
            "name": "stage2",
            "annotations": {
                "train": toy_world / "annotations" / "keystep_train.json",
                "val": toy_world / "annotations" / "keystep_val.json",
                "videos": toy_world, "takes": toy_world / "takes.json", "view": "cam01",
            },
            "protocol": {"num_steps": 4, "train_horizon_sec": [0.5, 1.0]},
            "probe": {"num_heads": 2, "num_epochs": 2, "num_views": 1, "lrs": [1e-3], "batch_size": 16},
        }  # fmt: skip
        own = {
            "name": "all", "folder": folder, "seeds": 1, "horizons_sec": [0.5, 1.0], "num_examples": 2,
            "arms": ["none", "probe", "world+probe"], "baselines": ["majority", "previous-step"],
            "ceilings": toy_world / "toyworld.json", "pretrain": pretrain, "anticipate": anticipate,
        }  # fmt: skip
        return own | changes

    return made


def plan_of(settings: dict[str, Any]) -> Plan:
    return make_plan(CompareConfig.model_validate(settings))


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return stopped.value.code


def names(settings: dict[str, Any]) -> set[str]:
    return {unit.name for unit in plan_of(settings).units}


@pytest.fixture(scope="session")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison that has finished; copy it to change it."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    compare.run(plan_of(settings(folder)))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished comparison's units, in a folder of their own: hashes do not hold where a folder lies."""
    folder = tmp_path / "runs"
    shutil.copytree(finished, folder, symlinks=True)
    for config in folder.glob("units/*/config.yaml"):  # else stage 2 stands on the world models of the original
        config.write_text(config.read_text().replace(str(finished), str(folder)))
    return folder


def test_arms_share_what_they_have_in_common(settings: Settings, tmp_path: Path) -> None:
    units = plan_of(settings(tmp_path, arms=["none", "probe", "world", "world+probe"])).units
    assert [unit.verb for unit in units] == ["pretrain"] * 2 + ["anticipate"] * 4
    assert units[0].users == ("world", "world+probe"), "the first caches tokens and gaze for the others"
    assert {unit.users for unit in units if unit.verb == "pretrain"} == {("none", "probe"), ("world", "world+probe")}
    needed = {unit.needs for unit in units if unit.verb == "anticipate"}
    assert needed == {unit.name for unit in units if unit.verb == "pretrain"}


@pytest.mark.parametrize("arm", [name for name in ARMS if name != "vjepa2"])
def test_the_settings_of_an_arm_tell_which_it_is(arm: str, settings: Settings, toy_world: Path, tmp_path: Path) -> None:
    made = settings(tmp_path, runtime={"num_workers": 1})
    for stage in ("pretrain", "anticipate"):
        made[stage]["gaze_files"] = {"folder": toy_world}
    made["anticipate"]["annotations"]["view"] = "ego"
    config = CompareConfig.model_validate(made)
    below, above, spec = stage1_of(config, arm, 3), stage2_of(config, arm, 3, tmp_path), ARMS[arm]
    assert name_of(below, above) == arm
    assert below.seed == above.seed == 3
    source = "measured" if arm == "measured" else "estimated"
    assert below.gaze == (source if spec.in_world else "none")
    assert above.probe.gaze_point == (source if spec.in_probe else "none")
    assert (below.gaze_control, above.probe.gaze_point_control) == (spec.world_control, spec.point_control)
    assert (above.gazelle is None) == (spec.in_world or not spec.in_probe), "beside a world model that has none"
    assert below.validation_gaze == "estimated", "one gaze judges all world models"
    assert below.runtime == above.runtime == config.runtime


def test_measured_gaze_in_the_probe_needs_no_gazelle(settings: Settings, toy_world: Path, tmp_path: Path) -> None:
    made = settings(tmp_path)
    for stage in ("pretrain", "anticipate"):
        made[stage]["gaze_files"] = {"folder": toy_world}
    made["pretrain"]["gaze"], made["anticipate"]["annotations"]["view"] = "measured", "ego"
    above = stage2_of(CompareConfig.model_validate(made), "probe", 0, tmp_path)
    assert (above.probe.gaze_point, above.gazelle) == ("measured", None)


@pytest.mark.parametrize("arm", ["world", "probe", "measured", "none"])
def test_both_stages_of_an_arm_read_the_same_measured_gaze(arm: str, settings: Settings, tmp_path: Path) -> None:
    made = settings(tmp_path)
    made["pretrain"] |= {
        "gaze": "estimated" if arm == "measured" else "measured",
        "gaze_files": {"folder": "gaze", "ego4d_y": "up", "ego4d_min_confidence": 0.9},
    }
    made["anticipate"]["annotations"]["view"] = "ego"
    config = CompareConfig.model_validate(made)
    below, above = stage1_of(config, arm, 0), stage2_of(config, arm, 0, tmp_path)
    read = GazeFilesConfig() if arm == "none" else below.gaze_files
    assert above.gaze_files == read, "an arm that reads none keeps its name when they change"
    made["anticipate"]["gaze_files"] = {"folder": "other"}
    other = stage2_of(CompareConfig.model_validate(made), arm, 0, tmp_path).gaze_files
    assert other == read.model_copy(update={"folder": Path("other")}), "what is given is kept"


def test_v_jepa_2_answers_at_the_horizons_of_the_others(settings: Settings, tmp_path: Path) -> None:
    made = settings(tmp_path, seeds=2, baselines=["vjepa2"], horizons_sec=[0.5, 1.0, 2.0])
    encoder = made["pretrain"]["encoder"]
    backbone = {"kind": "vjepa2", "encoder": encoder, "predictor": {"weights": str(tmp_path / "predictor")}}
    of_its_own = {"num_steps": 8, "horizon_sec": 3.0, "curve_sec": [4.0]}
    vjepa2 = made["anticipate"] | {"backbone": backbone, "protocol": of_its_own, "tokens": {"source": "live"}}
    config = CompareConfig.model_validate(made | {"vjepa2": vjepa2})
    above, other = stage2_of(config, "vjepa2", 1, None), stage2_of(config, "none", 1, tmp_path)
    assert name_of(None, above) == "vjepa2"
    for one in (above, other):
        assert (one.protocol.horizon_sec, one.protocol.curve_sec, one.seed) == (1.0, (0.5, 2.0), 1)
    assert above.protocol.num_steps == 8, "frames of its clip are its own"


def test_an_arm_differs_in_one_thing_from_the_one_it_is_matched_with() -> None:
    for name, spec in ARMS.items():
        controls = (spec.world_control, spec.point_control)
        assert (spec.kind == "oracle") == ("future" in controls), name
        if spec.matched:
            other = ARMS[spec.matched]
            pairs = (spec.in_world, other.in_world), (spec.in_probe, other.in_probe)
            pairs += tuple(zip(controls, (other.world_control, other.point_control), strict=True))
            # What stands under a baseline, and what measures gaze, is no place of gaze.
            assert sum(mine != its for mine, its in pairs) == (spec.kind != "baseline" and name != "measured"), name


def test_a_changed_setting_makes_new_units_and_only_those(settings: Settings, tmp_path: Path) -> None:
    before = settings(tmp_path)
    known = names(before)
    assert len(known) == 5
    assert names(before) == known
    assert names(before | {"name": "other", "num_examples": 0, "processes": 2}) == known
    assert known < names(before | {"seeds": 2})
    logging = before | {"pretrain": before["pretrain"] | {"log_every": 3, "save_every": 1}}
    assert names(logging) == known, "what decides nothing that is learned makes no new unit"
    probe = before | {"anticipate": before["anticipate"] | {"probe": before["anticipate"]["probe"] | {"num_epochs": 3}}}
    assert {name for name in names(probe) & known} == {name for name in known if name.startswith("stage1")}
    optim = before | {"pretrain": before["pretrain"] | {"optim": before["pretrain"]["optim"] | {"lr": 3e-3}}}
    assert not names(optim) & known, "stage 2 stands on stage 1"


def test_changed_videos_and_weights_make_new_units(settings: Settings, tiny_weights: Path, tmp_path: Path) -> None:
    before = settings(tmp_path)
    known = names(before)
    weights = shutil.copytree(tiny_weights, tmp_path / "weights")
    gazelle = before["pretrain"]["gazelle"] | {"weights": str(weights / "gazelle")}
    moved = before | {"pretrain": before["pretrain"] | {"gazelle": gazelle}}
    again = names(moved)
    with (weights / "gazelle" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    kept = {name.rpartition("-seed")[0] for name in names(moved) & again}
    assert not kept, "one bit of one weight: whoever reads it is another unit, if only to be judged by its gaze"
    videos = Path(before["pretrain"]["data"]["train"][0]).read_text().splitlines()
    listed = tmp_path / "fewer.txt"
    root = Path(before["pretrain"]["data"]["train"][0]).parent
    listed.write_text("".join(f"{(root / video).resolve()}\n" for video in videos[:-1]))
    data = before["pretrain"]["data"] | {"train": [str(listed)]}
    assert not names(before | {"pretrain": before["pretrain"] | {"data": data}}) & known


def test_all_that_a_unit_reads_or_is_made_by_is_in_its_name(
    settings: Settings, toy_world: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, weights = tmp_path / "world", tmp_path / "weights"
    shutil.copytree(toy_world, world)
    shutil.copytree(tiny_weights, weights)
    made = settings(tmp_path / "runs")
    made["pretrain"] |= {
        "data": {"train": [str(world / "lists" / "train_cam01.txt")], "val": [str(world / "lists" / "val_cam01.txt")]},
        "encoder": {"weights": str(weights / "encoder"), "resolution": 64},
        "gaze_files": {"folder": world},
    }
    videos = {
        part: (world / "lists" / (world / "lists" / f"{part}_cam01.txt").read_text().splitlines()[0]).resolve()
        for part in ("train", "val")
    }

    def changed(change: Callable[[], object]) -> set[str]:
        """Stages whose units all have new names after a change; no stage has some new names and some old ones."""
        before = names(made)
        change()
        after = names(made)
        found = {stage for stage in ("stage1", "stage2") if any(name.startswith(stage) for name in after - before)}
        assert not any(name.startswith(tuple(found)) for name in after & before)
        return found

    def append_to(path: Path) -> Callable[[], object]:
        return lambda: path.write_bytes(path.read_bytes() + b" ")

    both = {"stage1", "stage2"}
    assert changed(append_to(videos["train"])) == both
    assert changed(append_to(videos["val"])) == both
    assert changed(append_to(next(world.rglob("*.csv")))) == both, "gaze files"
    package = tmp_path / "package"
    shutil.copytree(tiny_weights, package / "mini")
    monkeypatch.setattr(compare_units, "files", lambda name: package)
    assert changed(append_to(package / "mini" / "gazelle" / "model.safetensors")) == both, "the models named mini"
    assert changed(lambda: monkeypatch.setattr("hwm.__version__", "0")) == both
    assert changed(lambda: monkeypatch.setattr(compare_units, "RECORD", compare_units.RECORD + 1)) == {"stage2"}
    monkeypatch.setattr(compare_units, "HASHED_BYTES", 0)  # as for large files
    file = weights / "encoder" / "model.safetensors"
    assert changed(lambda: os.utime(file, (0, 0))) == both
    made["anticipate"] |= {"annotations": made["anticipate"]["annotations"] | {"videos": world}}
    made["pretrain"] |= {"data": settings(tmp_path)["pretrain"]["data"], "gaze_files": {}}
    assert changed(append_to(videos["val"])) == {"stage2"}, "the videos behind the annotations"


def test_the_cost_is_told_before_anything_runs(settings: Settings, tmp_path: Path, finished: Path) -> None:
    fresh = cost_of(plan_of(settings(tmp_path)))
    assert [(cost.verb, cost.new, cost.minutes) for cost in fresh] == [("pretrain", 2, None), ("anticipate", 3, None)]
    rows = plan_table(plan_of(settings(tmp_path))).rows
    assert "6 updates of 4 clips" in rows[0][4]
    assert rows[1][5] == "after the first is measured"
    more = cost_of(plan_of(settings(finished, seeds=2)))
    assert [(cost.finished, cost.new) for cost in more] == [(2, 2), (3, 3)]
    assert all(cost.minutes is not None and cost.minutes >= 0 for cost in more)


def test_the_time_left_is_that_of_the_units_measured_so_far(settings: Settings, tmp_path: Path) -> None:
    made = settings(tmp_path, processes=2)
    made["anticipate"]["probe"] |= {"lrs": [1e-3, 1e-4, 1e-5], "weight_decays": [0.1, 0.01]}
    first, second, *stage2 = plan_of(made).units

    def finish(unit: Unit, until: str, **more: object) -> None:
        unit.folder.mkdir(parents=True, exist_ok=True)
        facts = {"status": "finished", "started": "2026-01-01T00:00:00", "ended": f"2026-01-01T{until}"}
        (unit.folder / "run.json").write_text(json.dumps(facts | more))

    finish(first, "00:04:00")
    finish(stage2[0], "09:00:00", resumed=[{"step": 4}])
    (second.folder / "checkpoints" / "step-000002").mkdir(parents=True)
    plan = plan_of(made)
    trained, probed = cost_of(plan)
    assert (trained.finished, trained.interrupted, trained.new, trained.minutes) == (1, 1, 0, 2.0)
    assert (probed.finished, probed.interrupted, probed.new, probed.minutes) == (1, 0, 2, None), "with a pause"
    rows = plan_table(plan).rows
    assert [row[5] for row in rows] == ["about 2 minutes", "after the first is measured"]
    assert rows[1][4] == "6 probes, 2 epochs, 2 horizons"
    clock = Clock(plan)
    assert clock.left([second], stage2[1:]) == {}
    clock.add(stage2[1], 60.0)
    clock.add(second, 480.0)
    assert clock.seconds([second, stage2[2]]) == ((240 + 480) / 2 + 60) / 2
    assert clock.left([second], [stage2[2]]) == {"minutes left about": 3.5}
    finish(second, "00:08:00")
    assert plan_table(plan_of(made)).rows[0][5] == "none left"


def test_paired_arms_start_from_the_same_weights(settings: Settings, tmp_path: Path) -> None:
    config = CompareConfig.model_validate(settings(tmp_path))
    hashes = {
        (arm, seed): shared_hash(new_world(stage1_of(config, arm, seed)).world.predictor)
        for arm in ("none", "world+probe")
        for seed in (0, 1)
    }
    assert hashes["none", 0] == hashes["world+probe", 0] != hashes["none", 1]


def test_runs_tell_the_weights_that_they_started_from(settings: Settings, finished: Path) -> None:
    config = CompareConfig.model_validate(settings(finished))
    expected = shared_hash(new_world(stage1_of(config, "none", 0)).world.predictor)
    told = {read_facts(folder)["initial_sha256"] for folder in finished.glob("units/stage1-*/")}
    assert told == {expected}


def test_finished_units_are_not_run_again(copied: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.Children, "start", lambda self, unit: pytest.fail(f"{unit.name} was started"))
    plan = plan_of(settings(copied, name="second", num_examples=0))
    assert {unit.state for unit in plan.units} == {"finished"}
    first = json.loads((copied / "all" / "metrics.json").read_text())
    compare.run(plan)
    second = json.loads((copied / "second" / "metrics.json").read_text())
    assert without_report(first) == without_report(second)


def without_report(metrics: dict[str, Any]) -> dict[str, Any]:
    """All but the record of which command wrote the report."""
    kept = {name: of for name, of in metrics["provenance"].items() if name != "This report"}
    return metrics | {"provenance": kept}


def test_an_interrupted_unit_is_gone_on_with(copied: Path, settings: Settings) -> None:
    unit = next(unit for unit in plan_of(settings(copied)).units if unit.verb == "pretrain")
    before = read_facts(unit.folder)
    shutil.rmtree(unit.folder / "checkpoints" / "step-000006")
    (unit.folder / "run.json").write_text(json.dumps(before | {"status": "stopped"}))
    plan = plan_of(settings(copied, num_examples=0))
    assert [u.name for u in plan.units if u.state == "interrupted"] == [unit.name]
    compare.run(plan)
    after = read_facts(unit.folder)
    assert [part["step"] for part in after["resumed"]] == [4]
    assert after["predictor_sha256"] == before["predictor_sha256"]


def test_a_failed_unit_is_told_and_the_others_finish(
    copied: Path, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = settings(copied, name="more", baselines=["majority", "encoder"], arms=["none", "probe", "world"])
    failing = next(unit for unit in plan_of(changed).units if unit.users == ("world",) and unit.verb == "anticipate")
    failing.folder.mkdir(parents=True)
    recipe = tmp_path / "compare.yaml"
    dump_config(CompareConfig.model_validate(changed), recipe)
    with (failing.folder / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as if another process used the folder
        assert exit_code("compare", str(recipe)) == 1
    said = capsys.readouterr().err
    assert "1 of 6 units failed" in said
    assert failing.name in said
    assert "is in use" in said
    assert str(compare.log_of(failing)) in said
    states = {unit.users: state_of(unit.config) for unit in plan_of(changed).units if unit.verb == "anticipate"}
    assert states[("encoder",)] == "finished"
    assert states[("world",)] == "new"
    page = (copied / "more" / "report.html").read_text()
    assert "encoder only" in page
    assert f"Missing: {failing.name}" in page
    assert exit_code("compare", str(recipe)) == 0, "the next time it goes through"
    assert "C′ · gaze in world model" in (copied / "more" / "report.html").read_text()


def test_a_unit_that_another_comparison_runs_is_waited_for(
    copied: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two comparisons may share units; what the other one has finished is used, and its log is left alone."""
    unit = next(unit for unit in plan_of(settings(copied)).units if unit.users == ("probe",))
    finished = (unit.folder / "run.json").read_text()
    (unit.folder / "run.json").write_text(finished.replace('"status": "finished"', '"status": "running"'))
    plan = plan_of(settings(copied, name="second", num_examples=0))
    assert [waiting.name for waiting in plan.units if waiting.state != "finished"] == [unit.name]
    other = open_log(compare.log_of(unit))
    assert other is not None
    compare.log_of(unit).write_text("what the other comparison's unit printed")

    def finish() -> None:
        (unit.folder / "run.json").write_text(finished)
        other.close()

    later = threading.Timer(2.0, finish)
    later.start()
    compare.run(plan)
    later.join()
    assert f"{unit.name} is being run by another comparison" in capsys.readouterr().out
    assert compare.log_of(unit).read_text() == "what the other comparison's unit printed"
    assert (unit.folder / "run.json").read_text() == finished, "it was not run again"


def test_the_log_of_a_unit_is_locked_until_it_has_ended(tmp_path: Path) -> None:
    log = open_log(tmp_path / "unit.log")
    assert log is not None
    child = start_unit("pretrain", tmp_path / "gone.yaml", log, 1)
    log.close()  # as if its comparison had been killed
    assert open_log(tmp_path / "unit.log") is None
    child.join()
    assert child.exitcode == 2
    assert "gone.yaml" in (tmp_path / "unit.log").read_text()
    again = open_log(tmp_path / "unit.log")
    assert again is not None
    assert (tmp_path / "unit.log").read_text() == "", "what it said before is not what it says now"
    again.close()


@pytest.fixture
def _own_process_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what a unit changes of the process that it runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    streams, threads = {stream: os.dup(stream) for stream in (1, 2)}, torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for stream, kept in streams.items():
        os.dup2(kept, stream)
        os.close(kept)


@pytest.mark.usefixtures("_own_process_again")
def test_a_unit_is_its_command_in_its_folder_with_its_threads_and_all_it_prints_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(module: str, run_name: str) -> None:
        threads = [torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]]
        os.write(1, f"{json.dumps([module, run_name, sys.argv, os.getcwd(), threads])}\n".encode())
        os.write(2, b"an error\n")

    monkeypatch.setattr(compare_child.runpy, "run_module", told)
    monkeypatch.setattr(compare_child, "end_with_parent", lambda: os.write(1, b"ends with its parent\n"))
    log = open_log(tmp_path / "logs" / "unit.log")
    assert log is not None
    folder = tmp_path / "logs"
    compare_child._run("anticipate", "unit.yaml", log, 3, str(folder))
    tied, command, error = (folder / "unit.log").read_text().splitlines()
    assert (tied, error) == ("ends with its parent", "an error")
    argv = ["hwm", "anticipate", "unit.yaml"]
    assert json.loads(command) == ["hwm", "__main__", argv, str(folder), [3, "3", "3"]]


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_unit_gets_help_with_its_tokens(
    fails: bool, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process encodes beside it; where that fails, the unit encodes everything and the record tells."""
    changed = settings(tmp_path / "runs", arms=["none"], processes=2, num_examples=0)
    plan = plan_of(changed)
    helper = f"tokens1-{plan.units[0].name}"
    if fails:
        start = compare.start_unit
        monkeypatch.setattr(compare, "start_unit", lambda verb, recipe, log, threads: start(
            verb, tmp_path / "gone.yaml" if verb == "extract" else recipe, log, threads))  # fmt: skip
    compare.run(plan)
    facts = read_facts(tmp_path / "runs" / "all")
    assert {unit.state for unit in plan_of(changed).units} == {"finished"}
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
    if fails:
        (told,) = facts["warnings"]
        assert f"{helper}.log" in told
        assert "gone.yaml" in (tmp_path / "runs" / "units" / f"{helper}.log").read_text()
        return
    assert not facts["warnings"]
    done = read_facts(tmp_path / "runs" / "units" / f"{helper}-extract")
    assert done["status"] == "finished"
    assert done["tokens"]["folder"] == str(tmp_path / "runs" / "tokens")
    assert done["tokens"]["steps_missing"] > 0, "it began while tokens were missing"


def test_stage_2_is_not_started_on_a_stage_1_that_failed(settings: Settings, tmp_path: Path) -> None:
    broken = settings(tmp_path)
    broken["pretrain"]["predictor"] = {"width": 24, "depth": 2, "num_heads": 2}
    broken["pretrain"]["encoder"] = broken["pretrain"]["encoder"] | {"resolution": 60}  # no multiple of the patch
    with pytest.raises(RunError, match="nothing to compare") as caught:
        compare.run(plan_of(broken))
    assert str(caught.value).count("failed") >= 4
    assert "its stage 1" in str(caught.value)


def test_from_finished_runs_alone_comes_the_same_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sorted(finished.glob("units/stage2-*/"))
    assert exit_code("compare", "--from", *map(str, runs), "--folder", str(tmp_path / "out"), "--no-frames") == 0
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # Ceilings are a setting of the recipe, not of the runs.
    first = json.loads((finished / "all" / "metrics.json").read_text()) | {"best_possible": {}}
    assert without_report(told) == without_report(first)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Won and lost by gaze" not in page
    assert not list((tmp_path / "out" / "figures").glob("example-*"))
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(LateProgress, "__call__", lambda bar, done, total: shown.append((done, total)))
    one = compare_runs.report_on(runs[:1], tmp_path / "one", 0)
    assert shown == [(done, 7) for done in range(8)], "a page may take minutes"
    assert one.verdicts == {"Does gaze help?": "not asked: no two of the arms A, B and C, of one seed, are here"}
    assert "Not asked: no two of the arms A, B and C, of one seed, are here." in one.report.read_text()


def test_where_nobody_reads_the_future_gaze_is_matched_with_no_gaze(copied: Path, tmp_path: Path) -> None:
    runs = {folder.name.split("-seed")[0]: folder for folder in copied.glob("units/stage2-*/")}
    pair = [runs["stage2-none"], runs["stage2-probe"]]
    for config in (folder / "config.yaml" for folder in pair):
        assert "inputs: context+future" in config.read_text()
        config.write_text(config.read_text().replace("inputs: context+future", "inputs: context"))
    found = json.loads(compare_runs.report_on(pair, tmp_path / "both", 0).metrics.read_text())
    assert (found["pairs"][0]["arm"], found["pairs"][0]["other"]) == ("probe", "none")
    # Beside an arm that does read it, the run that does not is a baseline.
    three = [*pair, runs["stage2-world-probe"]]
    found = json.loads(compare_runs.report_on(three, tmp_path / "all", 0).metrics.read_text())
    assert "none" not in found["arms"]
    assert found["arms"]["encoder"]["kind"] == "baseline"


def test_what_cannot_be_compared_is_refused(finished: Path, copied: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted(copied.glob("units/stage2-*/"))
    with pytest.raises(RunError, match="cannot be compared"):
        read_run(next(finished.glob("units/stage1-*/")))
    with pytest.raises(RunError, match="cannot be compared"):
        read_run(tmp_path)
    with pytest.raises(RunError, match=r"(.|\n)*ends in / \(units/stage2-\*/\)"):
        read_run(next(finished.glob("units/stage2-*.log")))
    record = (first / "run.json").read_text()
    (first / "run.json").write_text(json.dumps(json.loads(record) | {"status": "stopped"}))
    with pytest.raises(RunError, match=r"cannot be compared(.|\n)*anticipate, stopped"):
        read_run(first)
    (first / "run.json").write_text(record)
    text = (second / "config.yaml").read_text()
    assert "  horizon_sec: 1.0\n" in text
    (second / "config.yaml").write_text(text.replace("  horizon_sec: 1.0\n", "  horizon_sec: 3.0\n"))
    with pytest.raises(DataError, match="do not share one horizon"):
        compare_runs.report_on([first, second], tmp_path / "out", 0)
    (second / "config.yaml").write_text(text.replace("start-minus-tau/v1", "legacy-end-minus-tau"))
    with pytest.raises(DataError, match="do not share one protocol"):
        compare_runs.report_on([first, second], tmp_path / "out", 0)


def test_who_knows_the_gaze_can_score_higher_than_who_does_not(toy_world: Path) -> None:
    best = compare_runs._ceilings(toy_world / "toyworld.json")
    known, alone = best["best possible, gaze known"], best["best possible, history alone"]
    assert known.keys() == alone.keys()
    assert all(known[horizon] >= alone[horizon] for horizon in known)
    assert known != alone


def test_settings_that_are_not_matched_are_told(copied: Path, tmp_path: Path) -> None:
    runs = sorted(copied.glob("units/stage2-*/"))
    changed = runs[0] / "config.yaml"
    changed.write_text(changed.read_text().replace("num_epochs: 2", "num_epochs: 9"))
    page = compare_runs.report_on(runs, tmp_path / "out", 0).report.read_text()
    assert "Not matched: stage 2 of the arms differs in probe.num_epochs." in page
    assert "Not matched" not in (copied / "all" / "report.html").read_text()


def test_runs_of_different_code_are_told_by_their_commits(copied: Path, tmp_path: Path) -> None:
    runs = sorted(copied.glob("units/stage2-*/"))
    for number, run in enumerate(runs):
        facts = json.loads((run / "run.json").read_text())
        facts["git"] = {"commit": "a" * 40, "changed_files": number}
        (run / "run.json").write_text(json.dumps(facts))
    page = compare_runs.report_on(runs, tmp_path / "out", 0).report.read_text()
    a = "a" * 12
    assert f"different code: {a}, {a} with 1 changed file, {a} with 2 changed files" in page


def test_what_a_run_or_its_stage_1_warns_of_is_told(copied: Path, tmp_path: Path) -> None:
    runs = sorted(copied.glob("units/stage2-*/"))
    stage1 = read_run(runs[0]).config.checkpoint
    assert stage1 is not None
    for folder, text in ((runs[0], "2 of the 2 validation takes were seen"), (stage1, "trained for 4 of its 6 steps")):
        facts = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(facts | {"warnings": [text]}))
    made = compare_runs.report_on(runs, tmp_path / "out", 0)
    notes = json.loads(made.metrics.read_text())["notes"]
    arm = read_run(runs[0]).arm
    assert f"Warning of {arm}, seed 0: 2 of the 2 validation takes were seen." in notes
    told = next(note for note in notes if note.endswith("stage 1: trained for 4 of its 6 steps."))
    assert arm in told
    assert "2 of the 2 validation takes were seen" in made.report.read_text()


def planned_run(config: CompareConfig, arm: str, seed: int) -> FinishedRun:
    """A run as its plan has it, with a record of its own and no outputs."""
    below, above = stage1_of(config, arm, seed), stage2_of(config, arm, seed, Path("stage1"))
    facts = {
        "git": None, "weights": {f"weights of {arm}": "0"}, "stage1": {"predictor_sha256": f"{arm} {seed}"},
        "classes": {"step": {"sha256": "1"}},
    }  # fmt: skip
    empty = Run(seed, {}, {})
    told = dict.fromkeys(BASELINES, empty)
    return FinishedRun(Path(arm), arm, above, below, facts, empty, f"start {seed}", told, ())


def test_what_is_not_matched_between_runs_is_told(settings: Settings, tmp_path: Path) -> None:
    config = CompareConfig.model_validate(settings(tmp_path))
    arms = ("none", "probe", "world+probe", "encoder")
    runs = [planned_run(config, arm, seed) for arm in arms for seed in (0, 1)]
    assert warnings_of(runs) == [], "gaze, the seed and what the probe reads are what arms differ in"
    assert warnings_of(runs[:-1]) == [
        "Missing runs: encoder (seed 1). Differences are over the seeds that both arms have."
    ]
    assert warnings_of([*runs[:-2], runs[0]._replace(arm="other", run=Run(2, {}, {}), initial_sha256=None)]) == [
        "Missing runs: none (seed 2), probe (seed 2), world+probe (seed 2), other (seeds 0, 1). "
        "Differences are over the seeds that both arms have."
    ]
    other = runs[3]._replace(initial_sha256="another start")
    assert warnings_of([*runs[:3], other, *runs[4:]]) == [
        "Not matched: the initial weights of seed 1 differ between arms."
    ]
    git = {"commit": "0123456789abcdef", "changed_files": 0}
    of_git = [runs[index]._replace(facts={"git": git | {"changed_files": index}}) for index in (0, 1)]
    assert warnings_of([*of_git, *runs[2:]]) == [
        "The runs were made by different code: 0123456789ab, 0123456789ab with 1 changed file, no checkout."
    ]
    assert warnings_of([of_git[0], *runs[1:]]) == ["The runs were made by different code: 0123456789ab, no checkout."]
    longer = runs[2].config.model_copy(
        update={"probe": runs[2].config.probe.model_copy(update={"num_epochs": 9, "gaze_point": "estimated"})}
    )
    assert warnings_of([*runs[:2], runs[2]._replace(config=longer), *runs[3:]]) == [
        "Not matched: stage 2 of the arms differs in probe.num_epochs."
    ]
    changed = runs[0]._replace(facts={"git": None, "weights": {"weights of none": "another", "more": "1"}})
    assert warnings_of([changed, *runs[1:]]) == [
        "Not matched: the weight files of weights of none differ between runs."
    ]
    videos = {"stage 1, train videos": {"expected": 4, "used": 4, "excluded": {}}}
    fewer = {"stage 1, train videos": {"expected": 4, "used": 3, "excluded": {"0 bytes": 1}}}
    assert warnings_of([run._replace(coverage=fewer) for run in runs]) == [], "all of them lack it"
    of_some = [run._replace(coverage=videos) for run in runs[1:]]
    assert warnings_of([runs[0]._replace(coverage=fewer), *of_some]) == [
        "Not matched: stage 1, train videos: 3 of 4 (left out: 1 × 0 bytes) or 4 of 4."
    ]
    apart = [run._replace(arm="vjepa2", stage1=None, config=longer, facts=changed.facts) for run in runs[:2]]
    assert warnings_of([*runs, *apart]) == [], "V-JEPA 2 has settings of its own"


def test_settings_are_shared_where_all_runs_have_one_value(settings: Settings, tmp_path: Path) -> None:
    config = CompareConfig.model_validate(settings(tmp_path))
    config = config.model_copy(update={"folder": Path("我的视频")})
    runs = [planned_run(config, "none", seed) for seed in (0, 1)]
    for stage, told in shared_settings(runs).items():
        assert "seed" not in told, stage
        assert told["name"] == '"unnamed"', stage
        assert told["folder"] == '"我的视频/units"', "paths as their owner reads them"
    shared = shared_settings(runs)
    assert shared["stage 1"]["optim.batch_size"] == "4"
    assert shared["stage 2"]["probe.num_epochs"] == "2"
    assert shared_settings(runs[:1])["stage 1"]["seed"] == "0"


@pytest.mark.parametrize(
    ("arm", "view", "gaze", "words"),
    [
        ("world", "ego", "measured", ["Measured gaze is an input"]),
        ("probe", "ego", "measured", ["Measured gaze is an input"]),
        ("world", "ego", "estimated", ["in an ego view its map is a guess"]),
        ("probe", "ego", "estimated", ["in an ego view its map is a guess"]),
        ("none", "ego", "estimated", []),
        ("none", "cam01", "estimated", ["The camera cam01 sees the person"]),
    ],
)
def test_cautions_are_of_the_gaze_and_the_view_of_the_runs(
    arm: str, view: str, gaze: str, words: list[str], settings: Settings, toy_world: Path, tmp_path: Path
) -> None:
    made = settings(tmp_path)
    for stage in ("pretrain", "anticipate"):
        made[stage]["gaze_files"] = {"folder": toy_world}
    made["pretrain"]["gaze"] = gaze
    made["anticipate"]["annotations"]["view"] = view
    said = cautions([planned_run(CompareConfig.model_validate(made), arm, 0)])
    assert len(said) == len(words)
    for caution, word in zip(said, words, strict=True):
        assert word in caution


def test_the_page_tells_where_its_runs_come_from(settings: Settings, tmp_path: Path) -> None:
    made = settings(tmp_path)
    made["anticipate"]["protocol"]["train_horizon_sec"] = [0.5, 1.5]
    config = CompareConfig.model_validate(made)
    runs = [planned_run(config, arm, seed) for arm in ("none", "probe") for seed in (1, 0)]
    protocol = runs[3].config.protocol.model_copy(update={"beyond_start_sec": 0.5})
    runs[3] = runs[3]._replace(
        config=runs[3].config.model_copy(update={"protocol": protocol}), initial_sha256="another start",
        facts={**runs[3].facts, "git": {"commit": "0123456789abcdef", "changed_files": 2}},
    )  # fmt: skip
    told = provenance_of(runs)
    assert told["Protocol"]["last frame seen"] == "at or before start − 1 s"
    assert told["Protocol"]["horizons of training"] == "0.5 s to 1.5 s"
    assert told["Protocol"]["imagined up to"] == "the start or start + 0.5 s"
    assert told["World models, sha256 of the tensors"] == {
        f"{arm}, seed {seed}": f"{arm} {seed}" for arm in ("none", "probe") for seed in (0, 1)
    }
    assert told["Weights, sha256 of the files"] == {"weights of none": "0", "weights of probe": "0"}
    other = runs[2]._replace(facts={**runs[2].facts, "weights": {"weights of none": "another"}})
    assert provenance_of([runs[0], other])["Weights, sha256 of the files"] == {"weights of none": "0 / another"}
    trained = {"expected": 9, "used": 4, "excluded": {"0 bytes": 3, "not longer than": 2}}
    used = provenance_of([run._replace(coverage={"train segments": trained}) for run in runs])["Data that were used"]
    assert used == {"train segments": "4 of 9 (left out: 3 × 0 bytes, 2 × not longer than)"}
    assert told["Matched"] == {
        "initial weights, seed 0": "another start / start 0", "initial weights, seed 1": "start 1",
        "commits of the runs": "0123456789ab with 2 changed files, no checkout",
    }  # fmt: skip


def test_world_models_are_told_apart_by_gaze_and_control_and_have_every_seed(
    settings: Settings, tmp_path: Path
) -> None:
    config = CompareConfig.model_validate(settings(tmp_path))
    arms = ("none", "probe", "world+probe", "shuffled")
    runs = [planned_run(config, arm, seed) for arm in arms for seed in (1, 0)]
    worlds = compare_runs._worlds(runs)
    assert set(worlds) == {"without gaze", "with estimated gaze", "with estimated gaze, shuffled"}
    assert all([run.seed for run in world.runs] == [0, 1] for world in worlds.values())
    arms_told = {arm.name: [run.seed for run in arm.runs] for arm in compare_runs._arms(runs)}
    assert arms_told == {name: [0, 1] for name in (*arms, "majority", "previous-step")}


def test_what_v_jepa_2_reads_does_not_make_a_baseline_of_the_runs_without_gaze(
    settings: Settings, tmp_path: Path
) -> None:
    config = CompareConfig.model_validate(settings(tmp_path))
    context = planned_run(config, "encoder", 0)
    other = planned_run(config, "none", 0)
    assert other.config.probe.inputs != "context"
    told = compare_runs._matched([context, other._replace(arm="vjepa2", stage1=None)])
    assert [run.arm for run in told] == ["none", "vjepa2"]
    assert [run.arm for run in compare_runs._matched([context, other])] == ["encoder", "none"]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[CompareFindings]:
    """What reports are written of, instead of the pages."""
    found: list[CompareFindings] = []

    def write(out: Path, told: CompareFindings, *rest: object) -> Written:
        found.append(told)
        return Written(out, out, {}, {})

    monkeypatch.setattr(compare_runs, "write_report", write)
    return found


def test_a_report_is_of_each_run_once_and_of_all_that_was_expected(
    copied: Path, findings: list[CompareFindings], tmp_path: Path
) -> None:
    runs = sorted(copied.glob("units/stage2-*/"))
    facts = json.loads((runs[0] / "run.json").read_text())
    facts["coverage"]["val segments"] |= {"expected": 901, "items": [{"item": "take 7", "reason": "no such video"}]}
    (runs[0] / "run.json").write_text(json.dumps(facts))
    compare_runs.report_on([*runs, runs[0], runs[0] / ".." / runs[0].name], tmp_path, 0, missing=["one"], bound=0.07)
    (told,) = findings
    assert told.coverage == (901, [("take 7", "no such video")])
    assert told.experiment.bound == 0.07
    assert [len(arm.runs) for arm in told.experiment.arms.values()] == [1] * 5
    assert [arm.is_trained for arm in told.experiment.arms.values()] == [True] * 3 + [False] * 2
    assert not told.is_legacy
    assert told.notes[0] == "Missing: one"
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("start-minus-tau/v1", "legacy-end-minus-tau"))
    compare_runs.report_on(runs[:1], tmp_path, 0)
    assert findings[1].is_legacy
    assert "The camera cam01 sees the person" in told.notes[-1]


def test_examples_are_of_the_widest_contrast_and_of_runs_of_one_seed(
    copied: Path, findings: list[CompareFindings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {folder.name.split("-seed")[0]: folder for folder in copied.glob("units/stage2-*/")}
    later = []
    for name in ("stage2-none", "stage2-world-probe"):
        later.append(shutil.copytree(runs[name], tmp_path / name))
        config = (later[-1] / "config.yaml").read_text()
        assert config.count("\nseed: 0\n") == 1
        (later[-1] / "config.yaml").write_text(config.replace("\nseed: 0\n", "\nseed: 1\n"))
    asked: list[tuple[object, ...]] = []

    def pictures(*of: object) -> list[Picture]:
        asked.append(of)
        return []

    monkeypatch.setattr(compare_runs, "example_pictures", pictures)
    compare_runs.report_on([*later, *runs.values()], tmp_path, 3)
    (of,) = asked
    assert of[1:] == (("world+probe", "none", 0), runs["stage2-world-probe"], runs["stage2-none"], 3)
    assert [len(arm.runs) for arm in findings[0].experiment.arms.values()] == [2, 1, 2, 2, 2]


def test_what_was_said_is_read_at_every_horizon(copied: Path) -> None:
    folder = next(copied.glob("units/stage2-none-*/"))
    path = folder / "outputs-0.5s-majority.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"logits": tensors["logits"] + 7}, path)
    rows = json.loads((folder / "segments-0.5s.json").read_text())
    rows["segments"][0]["start_sec"] += 0.25
    (folder / "segments-0.5s.json").write_text(json.dumps(rows))
    own = load_file(folder / "outputs-0.5s.safetensors")
    save_file(own | {"logits": own["logits"] + 7}, folder / "outputs-0.5s.safetensors")
    run = read_run(folder)
    assert torch.equal(run.run.outputs[0.5].tasks["step"].logits_SC, own["logits"] + 7)
    told = run.baselines["majority"].outputs
    assert torch.equal(told[0.5].tasks["step"].logits_SC, tensors["logits"] + 7)
    assert not torch.equal(told[1.0].tasks["step"].logits_SC, tensors["logits"] + 7)
    assert told[0.5].segments[0].start_sec == told[1.0].segments[0].start_sec + 0.25


def test_a_run_is_read_back_with_what_its_stage_1_recorded(copied: Path, tmp_path: Path) -> None:
    folder = next(copied.glob("units/stage2-world-probe-*/"))
    whole = read_run(folder)
    stage1 = whole.config.checkpoint
    assert stage1 is not None
    rows = json.loads((folder / "segments.json").read_text())["segments"]
    assert whole.run.scenarios == {row["row"]: row["scenario"] for row in rows}
    assert whole.run.probe == read_metrics(folder)
    assert whole.run.stage1 == read_metrics(stage1)
    assert whole.run.forecast == read_facts(stage1)["gaze_forecast"]
    assert whole.run.skill_by_take is not None
    assert not whole.run.asked_apart
    config = (folder / "config.yaml").read_text()
    checkpoint = max((stage1 / "checkpoints").glob("step-*"))
    changed = config.replace(str(stage1), str(checkpoint)).replace("cross-entropy", "focal")
    assert changed.count(str(checkpoint)) == changed.count("focal") == 1
    (folder / "config.yaml").write_text(changed)
    again = read_run(folder)
    assert (again.arm, again.stage1, again.initial_sha256) == (whole.arm, whole.stage1, whole.initial_sha256)
    assert again.run.asked_apart
    (stage1 / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"whose settings cannot be read(.|\n)*put its run folder back"):
        read_run(folder)


def test_a_run_is_reopened_on_the_segments_whose_class_is_known(copied: Path) -> None:
    folder = next(copied.glob("units/stage2-none-*/"))
    rows = [row["row"] for row in json.loads((folder / "segments.json").read_text())["segments"]]
    tensors = load_file(folder / "outputs.safetensors")
    labels = tensors["labels"].clone()
    labels[0], labels[1] = -1, 0
    save_file(tensors | {"labels": labels}, folder / "outputs.safetensors")
    config = (folder / "config.yaml").read_text()
    for loss in ("cross-entropy", "focal"):
        (folder / "config.yaml").write_text(config.replace("cross-entropy", loss))
        result = reopen(folder).result
        assert result.asked_apart == (loss == "focal")
        assert [sample.segment.row for sample in result.samples] == rows[1:]
        assert torch.equal(result.labels_S, labels[1:])
        torch.testing.assert_close(result.logits_SC, tensors["logits"][1:].float())
    segments = json.loads((folder / "segments.json").read_text())
    segments["segments"][2]["row"] = "elsewhere"
    (folder / "segments.json").write_text(json.dumps(segments))
    with pytest.raises(RunError, match=r"1 segment of .* can no longer be found(.|\n)*no elsewhere"):
        reopen(folder)


def test_an_example_says_which_arm_was_right_and_shows_their_guesses(
    finished: Path, findings: list[CompareFindings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: next(finished.glob(f"units/stage2-{name}-*/")) for name in ("none", "world-probe")}
    compare_runs.report_on([*folders.values()], tmp_path, 0)
    experiment = findings[0].experiment
    pair = choose_pair(experiment)
    assert pair == ("world+probe", "none", 0)
    whole = reopen(folders["none"])
    (output,) = whole.result.outputs
    right_SZC = 9.0 * torch.nn.functional.one_hot(output.labels_SZ, len(output.task.classes))
    wrong_SZC = right_SZC.roll(1, 2)
    first_S = torch.arange(len(right_SZC))[:, None, None] == 0
    said = {True: right_SZC, False: wrong_SZC, "first": right_SZC.where(first_S, wrong_SZC)}
    said["others"] = wrong_SZC.where(first_S, right_SZC)
    monkeypatch.setattr(compare_examples, "last_frame", lambda *_: np.zeros((4, 4, 3), np.uint8))

    def shown(first: bool | str, second: bool | str) -> list[Picture]:
        of = dict(zip(folders.values(), (second, first), strict=True))
        monkeypatch.setattr(
            compare_examples, "reopen",
            lambda folder: whole._replace(
                result=whole.result._replace(outputs=(output._replace(logits_SZC=said[of[folder]]),))
            ),
        )  # fmt: skip
        return example_pictures(experiment, pair, folders["world-probe"], folders["none"], 1)

    words = {(True, False): "Won by gaze: ", (False, True): "Lost by gaze: ", (True, True): "Right in both: ",
             (False, False): "Wrong in both: "}  # fmt: skip
    for answers, word in {("first", "others"): "Won by gaze: ", **words}.items():
        (picture,) = shown(*answers)
        assert picture.caption.startswith(word)
    table = picture.table
    assert table is not None
    assert [row.cells[0] for row in table.rows] == ["1 s", "0.5 s"], "farthest first"
    samples = whole.result.samples
    places = [f"{s.segment.take}, {s.observation.last_time_sec:.2f} s." in picture.caption for s in samples]
    place = places.index(True)
    truth = whole.result.classes.names[int(whole.result.labels_S[place])]
    for column, arm in ((1, "world+probe"), (2, "none")):
        best = experiment.guesses(arm, 0, samples[place].segment.row, 5)[1.0]
        told = [f"{100 * share:.0f} % {'✓ ' if name == truth else ''}{name}" for name, share in best]
        assert table.rows[0].cells[column] == "\n".join(told)


def test_the_report_is_one_page_with_every_arm(finished: Path) -> None:
    folder = finished / "all"
    page = (folder / "report.html").read_text()
    outside = re.sub(r'(?:src|href)="(?:data:|#)', "", page)
    assert not re.findall(r'(?:src|href)="', outside), "everything is inside"
    assert "<script" not in page
    assert "default-src 'none'" in page
    for title in ("A · no gaze", "B · gaze in probe", "C · gaze in world model and probe", "majority", "previous step"):
        assert title in page
    for words in (
        "conditioning the world model adds (C − B)",
        "gaze point in the probe adds (B − A)",
        "initial weights",
    ):
        assert words in page.replace("\N{NO-BREAK SPACE}", " ")
    drawn = {path.name for path in (folder / "figures").iterdir()}
    for name in ("top1", "top1-by-horizon", "gain-by-horizon", "gains", "gate", "stage1-loss", "probe-loss",
                 "gain-by-step-world-model", "confusion-1", "reliability", "selective-accuracy", "skill-by-step",
                 "gaze-forecast-estimated"):  # fmt: skip
        assert {f"{name}.svg", f"{name}.png", f"{name}.csv"} <= drawn
    assert {"example-1.png", "example-2.png"} <= drawn
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["arms"]) == {"none", "probe", "world+probe", "majority", "previous-step"}
    for world in metrics["world_models"].values():
        (told,) = world["seeds"].values()
        assert {"near/skill_1", "elsewhere/skill_1", "drift/error_2", "retrieval/top1_1"} <= set(told["validation"])
    assert "Settings of stage 1 that all arms share" in page
    assert set(metrics["arms"]["none"]["scores"]) == {"0.5", "1"}
    assert [(pair["arm"], pair["other"]) for pair in metrics["pairs"]] == [
        ("probe", "none"), ("world+probe", "probe"), ("majority", "none"), ("previous-step", "none"),
    ]  # fmt: skip
    examples = page[page.index("Won and lost by gaze") :]
    assert examples.count('<th scope="row">0.5 s</th>') == examples.count('<th scope="row">1 s</th>') == 2
    assert re.search(r'<td class="break">\d+&nbsp;% .+\n\d+&nbsp;% ', examples), "one guess a line"
    assert "&nbsp;% ✓ " in examples


def test_what_baselines_say_of_each_segment_gives_their_scores(finished: Path) -> None:
    for folder in finished.glob("units/stage2-*/"):
        told = read_facts(folder)["scores_by_horizon"]
        for horizon, suffix in (("1", ""), ("0.5", "-0.5s")):
            for name in ("majority", "previous step"):
                tensors = f"outputs{suffix}-{name.replace(' ', '-')}.safetensors"
                task = read_outputs(folder, tensors, f"segments{suffix}.json").tasks["step"]
                known = task.labels_S >= 0
                assert score(task.logits_SC[known], task.labels_S[known]).top1 == told[horizon][name]["top1"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_or_killed_comparison_stops_its_units_and_can_go_on(
    number: signal.Signals, code: int, settings: Settings, tmp_path: Path
) -> None:
    long = settings(tmp_path / "runs")
    long["pretrain"]["optim"] = long["pretrain"]["optim"] | {"num_steps": 100_000}
    recipe = tmp_path / "compare.yaml"
    dump_config(CompareConfig.model_validate(long), recipe)
    child = subprocess.Popen([sys.executable, "-m", "hwm", "compare", str(recipe)], start_new_session=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("runs/units/*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(number)
    assert child.wait(90) == code
    try:
        (going,) = {path.parents[1] for path in tmp_path.glob("runs/units/*/checkpoints/step-*")}
        until = time.monotonic() + 60
        while read_facts(going)["status"] == "running" and time.monotonic() < until:
            time.sleep(0.1)
        assert read_facts(going)["status"] == "stopped", "it has saved before it stopped"
        states = [(unit.verb, unit.state) for unit in plan_of(long).units]
        assert states.count(("pretrain", "interrupted")) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ["world+probe"]}, "matched model"),
        ({"arms": ["none", "none"]}, "twice"),
        ({"name": "units"}, "share"),
        ({"horizons_sec": [0.5, 2.0]}, "horizon_sec"),
        ({"baselines": ["vjepa2"]}, "go together"),
        ({"controls": ["measured"]}, "gaze_files"),
        ({"anticipate.probe.inputs": "context"}, r"world\+probe differ in what the world model imagines"),
    ],
)
def test_a_comparison_that_says_nothing_is_refused(
    changes: dict[str, Any], words: str, settings: Settings, tmp_path: Path
) -> None:
    made = settings(tmp_path, **{name: value for name, value in changes.items() if "." not in name})
    if inputs := changes.get("anticipate.probe.inputs"):
        made["anticipate"]["probe"]["inputs"] = inputs
    with pytest.raises(ValidationError, match=words):
        CompareConfig.model_validate(made)


def test_wrong_recipes_are_code_2(tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("compare", "compare/toyworld", "arm=[none]") == 2
    assert "did you mean 'arms'" in capsys.readouterr().err
    unfit = settings(tmp_path)
    unfit["pretrain"]["loss"] = {"rollout_steps": 9}
    with pytest.raises((ConfigError, ValidationError), match="rollout_steps"):
        plan_of(unfit)
