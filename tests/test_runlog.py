"""The run's record: means, truncation on resume, the lock, coverage, and what may change when a run goes on."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from ruamel.yaml import YAML
from torch import nn

from hwm.config import ClipDataConfig, OptimConfig, PretrainConfig
from hwm.data.exclusions import Exclusion
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.logged import read_metrics
from hwm.engine.optim import adamw
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.errors import ConfigError, DataError, RunError
from hwm.recipes import load_config


def configuration(folder: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig(name="run", folder=folder, data=ClipDataConfig(train=("a",), val=("b",)), **changes)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def train(folder: Path, until: int, *, resume: bool, log_every: int = 4, save_at: tuple[int, ...] = ()) -> None:
    """A run of the shape that pipelines have; the loss is a function of the step."""
    module = nn.Linear(2, 1)
    optimizer = adamw(module, 1e-3, 0.0)
    with RunLog.open(configuration(folder), "pretrain", resume=resume) as log:
        store = CheckpointStore(log.folder / "checkpoints", keep_last=2)
        for step in range(log.resume_from(store, {"model": module}, optimizer), until):
            log.add(step + 1, {"train/total": 1 / (step + 1)})
            if (step + 1) % log_every == 0:
                log.flush(step + 1)
            if step + 1 in save_at:
                log.save(store, step + 1, {"model": module}, optimizer)


def test_lines_hold_means_over_the_window(tmp_path: Path) -> None:
    train(tmp_path, 8, resume=False)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [4, 8]
    assert lines[0]["train/total"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert lines[1]["train/total"] == pytest.approx((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)


def test_a_resumed_run_writes_the_same_metrics_as_a_straight_one(tmp_path: Path) -> None:
    """Also where the checkpoint falls inside a window, and where lines were written after it."""
    train(tmp_path / "a", 12, resume=False)
    train(tmp_path / "b", 9, resume=False, save_at=(3, 6))
    with (tmp_path / "b/run/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "train/to')  # cut short by a crash
    train(tmp_path / "b", 12, resume=True)
    names = ("a/run/metrics.jsonl", "b/run/metrics.jsonl")
    straight, resumed = ((tmp_path / name).read_bytes() for name in names)
    assert resumed == straight
    assert facts(tmp_path / "b")["warnings"] == [], "the step of the line that was cut short is done again"
    assert [entry["step"] for entry in facts(tmp_path / "b")["resumed"]] == [6]


@pytest.mark.parametrize("damaged", ["cut", "bytes"])
def test_a_line_that_is_lost_is_told_when_the_run_goes_on(tmp_path: Path, damaged: str) -> None:
    """Not only left out: a plot, and the page of a comparison, would lack it without a word."""
    train(tmp_path, 9, resume=False, log_every=2, save_at=(4,))
    path = tmp_path / "run/metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if damaged == "bytes":  # one line is no text; what follows it still says that it belongs to the run
        lines[0] = b"\0" * len(lines[0]) + b"\n"
    else:  # the last line: what is left of it says its step
        lines = [*lines[:1], lines[1][:-5]]
    path.write_bytes(b"".join(lines))
    train(tmp_path, 9, resume=True, log_every=2)
    warning = "metrics.jsonl: 1 line of steps up to 4 cannot be read and is gone"
    assert facts(tmp_path)["warnings"] == [warning]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == ([4, 6, 8] if damaged == "bytes" else [2, 6, 8])


def test_fresh_throws_the_earlier_run_away_and_nothing_else(tmp_path: Path) -> None:
    train(tmp_path, 8, resume=False, save_at=(4,))
    (tmp_path / "run/notes.txt").write_text("mine")
    train(tmp_path, 4, resume=False)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4]
    assert not (tmp_path / "run/checkpoints").exists()
    assert (tmp_path / "run/notes.txt").exists()
    assert "resumed" not in facts(tmp_path)


def test_a_run_of_another_command_is_never_cleared(tmp_path: Path) -> None:
    train(tmp_path, 4, resume=False, save_at=(4,))
    for resume in (False, True):
        with pytest.raises(RunError, match=r"one of `hwm anticipate`(?s:.*)one of `hwm pretrain`"):
            RunLog.open(configuration(tmp_path), "anticipate", resume=resume)
    assert facts(tmp_path)["verb"] == "pretrain"
    train(tmp_path, 4, resume=True)  # the lock was given back, and the checkpoint is there
    assert facts(tmp_path)["resumed"][0]["step"] == 4


def test_the_record_says_what_ran_and_how_it_ended(tmp_path: Path) -> None:
    with RunLog.open(configuration(tmp_path, seed=7), "pretrain", resume=True) as log:
        assert facts(tmp_path)["status"] == "running"
        log.record(weights={"encoder": "abc"})
    record = facts(tmp_path)
    assert (record["verb"], record["seed"], record["status"]) == ("pretrain", 7, "finished")
    assert record["weights"] == {"encoder": "abc"}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
    assert {"python", "hwm", "numpy", "av"} <= record["versions"].keys()
    assert load_config(PretrainConfig, tmp_path / "run/config.yaml") == configuration(tmp_path, seed=7)


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(143), "stopped"), (KeyboardInterrupt(), "stopped"), (RunError("bad"), "failed")]
)
def test_an_end_before_the_end_is_recorded(tmp_path: Path, error: BaseException, status: str) -> None:
    def break_off() -> None:
        with RunLog.open(configuration(tmp_path), "pretrain", resume=True):
            raise error

    with pytest.raises(type(error)):
        break_off()
    assert facts(tmp_path)["status"] == status
    assert ("error" in facts(tmp_path)) == (status == "failed")


def test_a_full_disk_does_not_hide_what_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run(error: RunError | None) -> None:
        with RunLog.open(configuration(tmp_path), "pretrain", resume=False):
            monkeypatch.setattr(os, "fsync", full)
            if error is not None:
                raise error

    with pytest.raises(RunError, match="the first"):
        run(RunError("the first"))
    assert "run.json could not be written (No space left on device) and still says `running`" in capsys.readouterr().out
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        run(None)
    monkeypatch.undo()
    train(tmp_path, 1, resume=False)  # the lock was given back


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl"])
def test_a_line_that_cannot_be_written_names_its_file(tmp_path: Path, name: str) -> None:
    with RunLog.open(configuration(tmp_path), "pretrain", resume=False) as log:
        (log.folder / name).symlink_to("/dev/full")
        write = log.write if name == "metrics.jsonl" else log.write_timings
        with pytest.raises(RunError, match=rf"/run/{name} \(step 7\) cannot be used: No space left(.|\n)*run the same"):
            write(7, {"x": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", [".lock", "config.yaml.tmp"])
def test_a_disk_that_is_full_from_the_start_names_the_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    opened = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        return opened(Path("/dev/full") if path.name == name else path, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match=r"run folder .*/run cannot be used: "):
        RunLog.open(configuration(tmp_path), "pretrain", resume=False)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True):
        with pytest.raises(RunError, match="in use"):
            RunLog.open(configuration(tmp_path), "pretrain", resume=True)
        with pytest.raises(RunError, match="in use"):
            RunLog.open(configuration(tmp_path), "pretrain", resume=False)
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True):
        pass


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / 'run' / '.lock')!r}, 'a+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use"):
            RunLog.open(configuration(tmp_path), "pretrain", resume=True)
        holder.kill()
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True):
        pass


def test_a_run_goes_on_only_with_the_settings_that_decide_what_is_learned(tmp_path: Path) -> None:
    train(tmp_path, 4, resume=False, save_at=(4,))
    with pytest.raises(RunError, match=r"optim\.lr \(was 0\.0004, now 0\.1\)"):
        RunLog.open(configuration(tmp_path, optim=OptimConfig(lr=0.1)), "pretrain", resume=True)
    with RunLog.open(configuration(tmp_path, keep_last=9, log_every=3), "pretrain", resume=True):
        pass
    assert load_config(PretrainConfig, tmp_path / "run/config.yaml").keep_last == 9


@pytest.mark.parametrize("content", ["", "name: run\ndata:\n  tra"], ids=["empty", "cut short"])
def test_a_run_whose_settings_are_lost_says_what_to_do_and_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    train(tmp_path, 4, resume=False, save_at=(4,))
    (tmp_path / "run/config.yaml").write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml cannot be read(.|\n)*--fresh"):
        RunLog.open(configuration(tmp_path), "pretrain", resume=True)
    assert (tmp_path / "run/checkpoints/step-000004").is_dir()


def test_a_full_disk_leaves_the_settings_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, 4, resume=False, save_at=(4,))
    stored = tmp_path / "run/config.yaml"
    before = stored.read_bytes()

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(YAML, "dump", refuse)
        with pytest.raises(RunError, match="No space left on device"):
            RunLog.open(configuration(tmp_path), "pretrain", resume=True)
    assert stored.read_bytes() == before
    train(tmp_path, 8, resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 8]


def test_bytes_that_are_no_text_in_the_metrics_cost_their_line_alone(tmp_path: Path) -> None:
    train(tmp_path, 4, resume=False, save_at=(4,))
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 5, "train\xff\xfe\n')
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4]
    train(tmp_path, 8, resume=True)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 8]


def test_other_settings_are_free_while_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    train(tmp_path, 2, resume=False)
    with RunLog.open(configuration(tmp_path, optim=OptimConfig(lr=0.1)), "pretrain", resume=True):
        assert load_config(PretrainConfig, tmp_path / "run/config.yaml").optim.lr == 0.1


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path) -> None:
    train(tmp_path, 8, resume=False, save_at=(4, 8))
    (tmp_path / "run/checkpoints/step-000008/state.json").write_text("{}")
    train(tmp_path, 8, resume=True)
    assert "step-000008 is damaged" in facts(tmp_path)["warnings"][0]
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [4, 8]


def test_coverage_must_add_up(tmp_path: Path) -> None:
    left_out = [Exclusion("a.mp4", "too short"), Exclusion("b.mp4", "too short"), Exclusion("c.mp4", "unreadable")]
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True) as log:
        log.record_coverage("train videos", expected=5, used=2, excluded=left_out)
        with pytest.raises(DataError, match="lost track"):
            log.record_coverage("val videos", expected=5, used=1, excluded=left_out)
    coverage = facts(tmp_path)["coverage"]["train videos"]
    assert coverage["excluded"] == {"too short": 2, "unreadable": 1}
    assert coverage["items"][2] == {"item": "c.mp4", "reason": "unreadable"}


def test_what_is_left_out_is_said_and_not_only_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left_out = [Exclusion("a.mp4", "too short"), Exclusion("b.mp4", "too short")]
    left_out += [Exclusion(name, f"damaged \x1b[2J{name}") for name in ("c.mp4", "d.mp4", "e.mp4")]
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True) as log:
        log.record_coverage("val videos", expected=2, used=2, excluded=[])
        assert capsys.readouterr().out == ""
        log.record_coverage("train videos", expected=7, used=2, excluded=left_out)
    said = capsys.readouterr().out
    assert said.startswith("train videos: 2 of 7 used, left out: 2 × too short, 1 × damaged ")
    assert "1 for other reasons" in said
    assert str(tmp_path / "run/run.json") in said
    assert "\x1b" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True) as log:
        with pytest.raises(RunError, match=r"step 3.*\n.*val/skill"):
            log.write(3, {"val/skill": value, "val/l1": 1.0})
        with pytest.raises(RunError, match="step 4"):
            log.add(4, {"train/total": value})
    assert read_metrics(tmp_path / "run") == []


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with RunLog.open(configuration(tmp_path), "pretrain", resume=True, is_writer=False) as log:
        log.add(1, {"x": 1.0})
        log.flush(1)
        log.record(a=1)
    assert not list(tmp_path.iterdir())


def test_a_mirror_that_is_not_installed_is_refused_and_one_that_is_gets_all_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train(tmp_path, 4, resume=False, save_at=(4,))
    with pytest.raises(ConfigError, match=r"pip install 'hwm\[wandb\]'"):
        RunLog.open(configuration(tmp_path, mirrors=("wandb",)), "pretrain", resume=False)
    assert (tmp_path / "run" / "checkpoints" / "step-000004").is_dir(), "nothing is cleared for a run that cannot start"

    lines: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run/tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            lines.append((name, value, step))

        def close(self) -> None:
            lines.append(("closed", 0.0, 0))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with RunLog.open(configuration(tmp_path, mirrors=("tensorboard",)), "pretrain", resume=True) as log:
        log.write(5, {"val/skill": 0.25})
    assert lines == [("val/skill", 0.25, 5), ("closed", 0.0, 0)]


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_is_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with (
        Progress("outer", total=2, console=console) as outer,
        Progress("stage 1", total=4, done=2, console=console) as bar,
    ):
        bar.advance(loss=0.5)
        bar.advance()
        outer.set(1)
    text = shown(console)
    assert all(word in text for word in ("stage 1", "4/4", "loss 0.5", "/s", "outer", "1/2"))


def test_progress_is_plain_lines_elsewhere_and_silence_for_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=40)
    with Progress("quick", total=1, console=console) as bar:
        bar.advance()
    assert shown(console) == ""
    clock = iter(float(second) for second in range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress("slow [b]", total=10, console=console) as bar:
        for _ in range(10):
            bar.advance(loss=1.0)
    lines = shown(console).splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("slow [b]: ") for line in lines)
    assert lines[-1].startswith("slow [b]: 10/10")
    assert " s left" in lines[0]


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_where_things_differ_in_length_their_rate_tells_no_time_left(
    on_a_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), force_terminal=on_a_terminal, width=120)
    clock = iter(float(second) for second in range(0, 100_000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Progress("units", total=10, console=console, even=False) as bar:
        for _ in range(5):
            bar.advance(**{"minutes left about": 3.5})
    text = shown(console)
    assert "5/10" in text
    assert "minutes left about 3.5" in text
    assert " s left" not in text
    assert not re.search(r"-:--:--|\d:\d\d:\d\d\W+(\S+ )?\d:\d\d:\d\d", text), "the time that has passed, and no other"
