"""SIGTERM ends a run in order: what can be saved is saved, the exit code is 143, and the run can be run again."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwm.config import AdaptConfig, AdaptGazeConfig, AnticipateConfig, PretrainConfig
from hwm.data import content
from hwm.engine.checkpoint import CHECKPOINTS, CheckpointStore
from hwm.engine.logged import read_metrics
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog, read_facts
from hwm.engine.runtime import EXIT_STOPPED
from hwm.pipelines import adapt, adapt_gaze, anticipate, extract, pretrain
from hwm.tokens.video_hashes import VIDEO_HASHES
from process_groups import is_gone_within, own_group

OPTIM = {"lr": 1e-3, "num_steps": 5, "warmup_steps": 1, "batch_size": 2}
STOPPED_IN = 3


def _pretrain(settings: dict[str, Any], name: str) -> Path:
    return pretrain.run(PretrainConfig(**settings | {"name": name, "optim": OPTIM, "save_every": 5})).folder


def _adapt(settings: dict[str, Any], name: str) -> Path:
    videos = settings["data"]["train"]
    given: dict[str, Any] = {
        "name": name, "folder": settings["folder"], "resolution": 64, "optim": OPTIM, "save_every": 5, "log_every": 1,
        "model": {"width": 32, "depth": 1, "num_heads": 2}, "predictor": {"width": 24, "depth": 1, "num_heads": 2},
        "data": {"train": videos, "val": videos, "num_steps": 2},
    }  # fmt: skip
    return adapt.run(AdaptConfig(**given)).folder


def _adapt_gaze(settings: dict[str, Any], name: str) -> Path:
    world = Path(settings["data"]["train"][0]).parents[1]
    given: dict[str, Any] = {
        "name": name, "folder": settings["folder"], "world": world, "resolution": 56, "decoder_width": 16,
        "optim": OPTIM, "backbone": {"width": 24, "depth": 1, "num_heads": 2}, "log_every": 1,
    }  # fmt: skip
    return adapt_gaze.run(AdaptGazeConfig(**given)).folder


@pytest.mark.parametrize("run", [_pretrain, _adapt, _adapt_gaze])
def test_a_training_saves_where_it_is_and_goes_on_as_if_nothing_had_been(
    run: Callable[[dict[str, Any], str], Path], stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(stage1_settings, "straight")
    add = RunLog.add

    def asked_to_stop(self: RunLog, step: int, values: dict[str, float]) -> None:
        add(self, step, values)
        if step == STOPPED_IN:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = stage1_settings["folder"] / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "add", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            run(stage1_settings, "stopped")
    assert ended.value.code == EXIT_STOPPED
    assert read_facts(folder)["status"] == "stopped"
    assert CheckpointStore(folder / CHECKPOINTS, 1, is_writer=False).steps() == [STOPPED_IN]
    run(stage1_settings, "stopped")
    assert read_facts(folder)["status"] == "finished"
    assert [entry["step"] for entry in read_facts(folder)["resumed"]] == [STOPPED_IN]
    assert read_metrics(folder) == read_metrics(straight)


def test_stage_1_stops_while_its_cache_fills_and_keeps_what_is_done(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, cache = Progress.set, stage1_settings["tokens"]["folder"]

    def asked_to_stop(self: Progress, done: int, **values: float) -> None:
        shown(self, done, **values)
        if self.label == "train videos" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "set", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            _pretrain(stage1_settings, "stopped")
    assert ended.value.code == EXIT_STOPPED
    folder = stage1_settings["folder"] / "stopped"
    assert read_facts(folder)["status"] == "stopped"
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("z-*/*.safetensors")}
    assert 2 <= len(kept) < 6, "of six training videos"
    _pretrain(stage1_settings, "stopped")
    assert read_facts(folder)["status"] == "finished"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def _extract(settings: dict[str, Any], name: str) -> Path:
    given: dict[str, Any] = settings | {"name": name}
    return extract.run(PretrainConfig(**given), lambda estimate: None).record


@pytest.mark.parametrize(("run", "name"), [(_pretrain, "stopped"), (_extract, "stopped-extract")])
def test_a_run_stops_within_a_video_that_is_hashed(
    run: Callable[[dict[str, Any], str], Path], name: str, stage1_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shown, told = Progress.advance, list[tuple[str, int, int]]()
    monkeypatch.setattr(content, "_BLOCK", 1 << 10)

    def asked_to_stop(self: Progress, count: int = 1, **values: float) -> None:
        shown(self, count, **values)
        told.append((self.label, self.done, self.total))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "advance", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            run(stage1_settings, "stopped")
    assert ended.value.code == EXIT_STOPPED
    videos = [Path(line) for line in Path(stage1_settings["data"]["train"][0]).read_text().split()]
    folder = Path(stage1_settings["data"]["train"][0]).parent
    assert told == [("bytes hashed", 1 << 10, told[0][2])]
    assert told[0][2] >= sum((folder / video).stat().st_size for video in videos)
    assert read_facts(stage1_settings["folder"] / name)["status"] == "stopped"
    assert not list(stage1_settings["tokens"]["folder"].rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("run", "name", "label"),
    [
        (_pretrain, "stopped", "train videos probed"),
        (_pretrain, "stopped", "val videos probed"),
        (_extract, "stopped-extract", "train videos probed"),
        (_adapt, "stopped", "train videos probed"),
    ],
)
def test_a_run_stops_while_its_videos_are_probed(
    run: Callable[[dict[str, Any], str], Path], name: str, label: str, stage1_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shown, told = Progress.set, list[tuple[str, int]]()

    def asked_to_stop(self: Progress, done: int, **values: float) -> None:
        shown(self, done, **values)
        told.append((self.label, self.total))
        if self.label == label:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "set", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            run(stage1_settings, "stopped")
    assert ended.value.code == EXIT_STOPPED
    assert read_facts(stage1_settings["folder"] / name)["status"] == "stopped"
    assert told[-1] == (label, 6 if label.startswith("train") else 2)
    assert [entry[0] for entry in told].count(label) == 1


def test_extract_stops_within_a_video_and_keeps_those_that_are_done(
    stage1_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, made = PretrainConfig(**stage1_settings), list[int]()
    assert config.tokens.folder is not None
    shown = Progress.advance

    def asked_to_stop(self: Progress, count: int = 1, **values: float) -> None:
        shown(self, count, **values)
        made.extend([count] if self.label == "steps encoded" else [])
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "advance", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            extract.run(config, lambda estimate: None)
    assert ended.value.code == EXIT_STOPPED
    assert len(made) in (3, 4)
    assert read_facts(config.folder / "stage1-extract")["status"] == "stopped"
    left = [path for path in config.tokens.folder.rglob("*") if path.is_file() and path.name != VIDEO_HASHES]
    assert left
    assert all(path.suffix == ".safetensors" for path in left)
    assert extract.run(config, lambda estimate: None).crops_held == len(left) // 2
    assert read_facts(config.folder / "stage1-extract")["status"] == "finished"


@pytest.mark.parametrize("label", ["train videos probed", "val videos probed", "videos", "features", "stage 2"])
def test_stage_2_stops_at_once_and_leaves_no_result(
    label: str, stage1_settings: dict[str, Any], stage2_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage1_settings["optim"]["num_steps"] = 1
    config = AnticipateConfig(**stage2_settings, checkpoint=pretrain.run(PretrainConfig(**stage1_settings)).folder)
    folder, told = config.folder / config.name, list[str]()
    shown = Progress.set

    def asked_to_stop(self: Progress, done: int, **values: float) -> None:
        shown(self, done, **values)
        if self.label == "bytes hashed":  # a bar within that of the videos
            return
        told.append(self.label)
        if self.label.startswith(label):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "set", asked_to_stop)
        with pytest.raises(SystemExit) as ended:
            anticipate.run(config)
    assert ended.value.code == EXIT_STOPPED
    assert [name.startswith(label) for name in told].count(True) == 1, "nothing went on after it was asked to stop"
    assert told[-1].startswith(label)
    assert read_facts(folder)["status"] == "stopped"
    left = {path.name for path in folder.iterdir()} - {".lock"}
    assert left == {"config.yaml", "run.json"}
    again = anticipate.run(config)
    assert read_facts(folder)["status"] == "finished"
    assert again.scores["probe"]["num_segments"] > 0
    assert not list(folder.glob("features-*"))


def test_a_run_that_is_killed_while_its_workers_start_leaves_none_of_them() -> None:
    """Torch's own watch takes whatever parent a worker has by then for the one to stay with."""
    code = """
import os, signal
import torch
from torch.utils.data import DataLoader
from hwm.models.world_model import TimeGrid
from hwm.tokens.source import decode_batches

start = DataLoader.__iter__

def killed(loader):
    kept = start(loader)  # whose end would end the workers
    os.kill(os.getpid(), signal.SIGKILL)

DataLoader.__iter__ = killed
next(decode_batches([[]] * 9, TimeGrid(4, "frame", 64, None), 2, torch.device("cpu")))
"""
    with own_group([sys.executable, "-c", code]) as child:
        assert child.wait(120) == -signal.SIGKILL
        assert is_gone_within(child.pid, 60)
