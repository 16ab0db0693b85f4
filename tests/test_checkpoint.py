"""The checkpoint store: bit-exact resume, and no moment at which a crash loses the newest good checkpoint."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwm.config import OptimConfig
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.disk import Disk
from hwm.engine.optim import adamw, clip_gradients, scheduled_lr, set_lr
from hwm.engine.runtime import rng_for, seeded_weights
from hwm.errors import RunError

CONFIG = OptimConfig(lr=1e-2, warmup_steps=3, num_steps=10)


class Run:
    """A tiny training run whose data is a function of the step and whose dropout draws from the global generator."""

    def __init__(self, folder: Path, keep_last: int = 3, disk: Disk | None = None) -> None:
        with seeded_weights(0, "tiny"):
            self.module = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.3), nn.BatchNorm1d(5), nn.Linear(5, 1))
        self.optimizer = adamw(self.module, CONFIG.lr, CONFIG.weight_decay, CONFIG.betas)
        self.store = CheckpointStore(folder, keep_last, disk=disk)
        self.step = 0
        torch.manual_seed(1)
        np.random.seed(1)

    def train(self, until: int) -> "Run":
        for step in range(self.step, until):
            batch = torch.from_numpy(rng_for(0, "data", step).normal(size=(6, 3)).astype(np.float32))
            noise = float(np.random.normal())
            self.optimizer.zero_grad()
            loss = (self.module(batch) + 1e-3 * noise).pow(2).mean()
            loss.backward()
            set_lr(self.optimizer, scheduled_lr(CONFIG, step))
            clip_gradients(self.module, {"total": loss}, CONFIG.clip_norm, f"step {step}")
            self.optimizer.step()
        self.step = until
        return self

    def save(self, **extra: Any) -> "Run":
        self.store.save(self.step, {"model": self.module}, self.optimizer, extra)
        return self

    def load(self, step: int | None = None) -> Any:
        restored = self.store.load({"model": self.module}, self.optimizer, step)
        self.step = restored.step
        return restored

    def bits(self) -> dict[str, bytes]:
        """Everything that decides how the run goes on."""
        state = self.optimizer.state_dict()["state"]
        found = {name: value.numpy().tobytes() for name, value in self.module.state_dict().items()}
        found |= {f"optimizer.{i}.{key}": v.numpy().tobytes() for i, slots in state.items() for key, v in slots.items()}
        found |= {"lr": str([group["lr"] for group in self.optimizer.param_groups]).encode()}
        words, position = np.random.get_state(legacy=True)[1:3]
        return found | {
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": bytes(words) + bytes([position % 256]),
        }


class Crash(BaseException):
    """Stands for SIGKILL or a power cut: no handler for errors sees it."""


class FailingDisk(Disk):
    """Fails at the n-th operation, by a crash or by an error, after doing half of it where there are halves."""

    def __init__(self, fail_at: int, error: BaseException) -> None:
        self.count, self.fail_at, self.error = 0, fail_at, error

    def _due(self) -> bool:
        self.count += 1
        return self.count - 1 == self.fail_at

    def write(self, path: Path, content: bytes) -> None:
        if self._due():
            path.write_bytes(content[: len(content) // 2])
            raise self.error
        super().write(path, content)

    def sync_folder(self, folder: Path) -> None:
        if self._due():
            raise self.error
        super().sync_folder(folder)

    def rename(self, source: Path, target: Path) -> None:
        if self._due():
            raise self.error
        super().rename(source, target)

    def remove(self, folder: Path) -> None:
        if self._due():
            for path in sorted(folder.iterdir())[::2]:
                path.unlink()
            raise self.error
        super().remove(folder)


def test_resuming_equals_running_straight_through_bit_for_bit(tmp_path: Path) -> None:
    straight = Run(tmp_path / "a").train(10).bits()
    Run(tmp_path / "b").train(5).save(note="half way")
    resumed = Run(tmp_path / "b")
    resumed.train(2)  # anything that was there before is overwritten
    restored = resumed.load()
    assert (restored.step, restored.extra, restored.rejected) == (5, {"note": "half way"}, ())
    assert resumed.train(10).bits() == straight


def test_the_python_generator_is_kept_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    random.seed(5)
    words = random.getstate()[1][:624]
    run.save()
    random.seed(6)
    run.load()
    assert random.getstate()[1][:624] == words  # not its position: the type checker under test draws from it as well


def test_many_resumes_in_a_row_change_nothing(tmp_path: Path) -> None:
    straight = Run(tmp_path / "a").train(10).bits()
    Run(tmp_path / "b").save()
    for until in (1, 2, 3, 7, 10):
        run = Run(tmp_path / "b")
        run.load()
        run.train(until).save()
    last = Run(tmp_path / "b")
    last.load()
    assert last.bits() == straight


def test_a_later_step_differs_so_that_equality_means_something(tmp_path: Path) -> None:
    assert Run(tmp_path).train(9).bits() != Run(tmp_path).train(10).bits()


def test_old_checkpoints_go_only_after_a_new_one_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_last=2)
    for until in (1, 2, 3, 4):
        run.train(until).save()
    assert run.store.steps() == [3, 4]
    assert os.readlink(tmp_path / "latest") == "step-000004"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000003", "step-000004"]


def test_checkpoints_of_an_abandoned_future_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for until in (2, 4, 6):
        run.train(until).save()
    run.load(2)
    run.train(3).save()
    assert run.store.steps() == [2, 3]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path).train(2).save(turn=1).save(turn=2)
    assert run.load().extra == {"turn": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000002"]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    CheckpointStore(tmp_path / "c", 1, is_writer=False).save(1, {"model": run.module}, run.optimizer, {})
    assert not (tmp_path / "c").exists()


def test_processes_that_only_read_leave_everything_as_it_lies(tmp_path: Path) -> None:
    run = Run(tmp_path).train(2).save()
    (tmp_path / "step-000002").rename(tmp_path / "step-000002.old")  # the writer is at it
    reader = CheckpointStore(tmp_path, 3, is_writer=False)
    with pytest.raises(RunError, match="no usable checkpoint"):
        reader.load({"model": run.module}, run.optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000002.old"]


def test_a_replacement_that_was_cut_short_is_not_lost_to_a_next_save_that_fails_too(tmp_path: Path) -> None:
    before = Run(tmp_path).train(2).save().bits()
    (tmp_path / "step-000002").rename(tmp_path / "step-000002.old")
    fails_at_the_first_file = FailingDisk(1, OSError(28, "No space left on device"))
    with pytest.raises(RunError, match="could not be written"):
        Run(tmp_path, disk=fails_at_the_first_file).train(3).save()
    after = Run(tmp_path)
    assert after.load().step == 2
    assert after.bits() == before


def operations_of_a_save(folder: Path, end: int) -> int:
    counter = FailingDisk(-1, Crash())
    Run(folder, keep_last=1).train(2).save()
    run = Run(folder, 1, counter)
    run.load()
    run.train(end).save()
    return counter.count


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_a_crash_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path, again: bool) -> None:
    """At every write, flush, rename and removal: what loads is the last state or the one before, bit for bit."""
    end = 2 if again else 3
    allowed = {step: Run(tmp_path).train(step).bits() for step in (2, end)}
    total = operations_of_a_save(tmp_path / "count", end)
    assert total >= 12
    seen = set()
    for moment in range(total):
        folder = tmp_path / f"run-{moment}"
        Run(folder, keep_last=1).train(2).save()
        run = Run(folder, 1, FailingDisk(moment, Crash()))
        run.load()
        with pytest.raises(Crash):
            run.train(end).save()
        after = Run(folder, keep_last=1)
        restored = after.load()
        assert restored.rejected == (), "nothing torn carries the name of a checkpoint"
        seen.add(restored.step)
        assert after.bits() == allowed[restored.step], f"moment {moment}"
        after.load()
        after.train(4).save()
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["latest", "step-000004"], f"moment {moment}: remains are cleared"
    assert seen == set(allowed)


def test_a_full_disk_at_any_moment_is_told_and_costs_nothing(tmp_path: Path) -> None:
    total = operations_of_a_save(tmp_path / "count", 3)
    told = 0
    for moment in range(total):
        folder = tmp_path / f"run-{moment}"
        past = Run(folder, keep_last=1).train(2).save().bits()
        run = Run(folder, 1, FailingDisk(moment, OSError(28, "No space left on device")))
        run.load()
        run.train(3)
        message = save_on_a_full_disk(run)
        if message is not None:
            told += 1
            assert all(word in message for word in ("No space left", "B free below", "step-000003")), message
        after = Run(folder, keep_last=1)
        assert after.load().step in (2, 3)
        assert not list(folder.glob("step-000003.tmp")) or after.store.steps() == [3]
        if after.step == 2:
            assert after.bits() == past
    assert told >= 8


def save_on_a_full_disk(run: Run) -> str | None:
    try:
        saved = run.store.save(3, {"model": run.module}, run.optimizer, {})
    except RunError as error:
        return str(error)
    assert saved.not_removed, "only the removal of an old checkpoint may fail without stopping the run"
    return None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "swapped", "empty"])
def test_a_damaged_file_is_found_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    run = Run(tmp_path).train(1).save().train(2).save()
    file = tmp_path / "step-000002" / name
    content = file.read_bytes()
    spoil(file, content, damage, tmp_path / "step-000001" / "manifest.json")
    restored = run.load()
    assert restored.step == 1
    assert restored.rejected[0].folder == "step-000002"
    assert name in restored.rejected[0].reason
    with pytest.raises(RunError, match=f"(?s)of step 2.*{name}"):
        run.load(2)


def spoil(file: Path, content: bytes, damage: str, other: Path) -> None:
    if damage == "missing":
        file.unlink()
        return
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 4
    spoiled = {"truncated": content[:-1], "flipped": bytes(flipped), "swapped": other.read_bytes(), "empty": b""}
    file.write_bytes(spoiled[damage])


def test_no_single_flipped_bit_of_a_manifest_goes_unseen(tmp_path: Path) -> None:
    """Any flip is found, or changes nothing that is used."""
    run = Run(tmp_path).train(2).save()
    want = run.bits()
    manifest = tmp_path / "step-000002" / "manifest.json"
    content = manifest.read_bytes()
    rng = rng_for(0, "flips")
    outcomes = set()
    for position in rng.choice(len(content), size=min(len(content), 150), replace=False):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(rng.integers(8))
        manifest.write_bytes(flipped)
        after = Run(tmp_path)
        try:
            after.load()
        except RunError:
            outcomes.add("refused")
        else:
            outcomes.add("loaded")
            assert after.bits() == want, "a flip in white space may pass"
    assert "refused" in outcomes


def test_none_at_all_and_only_bad_ones_are_errors(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(RunError, match="no usable checkpoint"):
        run.load()
    run.train(1).save()
    (tmp_path / "step-000001" / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"manifest\.json is missing") as caught:
        run.load()
    assert caught.value.fix is not None
    assert "--fresh" in caught.value.fix, "a step that is damaged is nothing to go on from"


def test_folders_that_only_look_like_checkpoints_are_not_used(tmp_path: Path) -> None:
    run = Run(tmp_path).train(1).save()
    (tmp_path / "step-000009").mkdir()
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000005")  # a checkpoint under another step's name
    shutil.copytree(tmp_path / "step-000001", tmp_path / "12")
    restored = run.load()
    assert restored.step == 1
    assert [rejected.folder for rejected in restored.rejected] == ["step-000009", "step-000005"]


def test_a_checkpoint_of_another_format_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path).train(1).save().train(2).save()
    path = tmp_path / "step-000002" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest | {"format": manifest["format"] + 1}))
    restored = run.load()
    assert (restored.step, [rejected.folder for rejected in restored.rejected]) == (1, ["step-000002"])


def test_a_whole_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path).train(1).save()
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    with pytest.raises(RunError, match="does not fit"):
        run.store.load({"model": other}, adamw(other, 1e-3, 0.0))
    more = nn.Sequential(*run.module, nn.BatchNorm1d(1, affine=False))  # the same parameters, and buffers beside them
    with pytest.raises(RunError, match=r"does not fit(.|\n)*Missing key"):
        run.store.load({"model": more}, adamw(more, 1e-3, 0.0))
    backwards = adamw(run.module, CONFIG.lr, CONFIG.weight_decay, CONFIG.betas)
    for group in backwards.param_groups:
        group["params"].reverse()
    with pytest.raises(RunError, match=r"does not fit(.|\n)*belongs to another parameter"):
        run.store.load({"model": run.module}, backwards)
    with pytest.raises(RunError, match=r"holds the modules \['model'\]"):
        run.store.load({"predictor": run.module}, run.optimizer)


def test_names_and_values_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="optimizer"):
        run.store.save(1, {"optimizer": run.module}, run.optimizer, {})
    with pytest.raises(ValueError, match="JSON"):
        run.save(loss=float("nan"))
    assert not tmp_path.joinpath("step-000000").exists()


def test_modules_that_share_a_tensor_are_kept(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    optimizer, store = adamw(tied, 1e-3, 0.0), CheckpointStore(tmp_path, 1)
    wanted = layer.weight.detach().clone()
    store.save(1, {"model": tied}, optimizer, {})
    with torch.no_grad():
        layer.weight.zero_()
    store.load({"model": tied}, optimizer)
    assert torch.equal(layer.weight, wanted)


def test_nothing_in_a_checkpoint_is_pickle(tmp_path: Path) -> None:
    Run(tmp_path).train(1).save()
    for path in (tmp_path / "step-000001").iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        else:
            header = int.from_bytes(content[:8], "little")
            json.loads(content[8 : 8 + header])


@pytest.mark.slow
def test_being_killed_at_random_moments_costs_at_most_one_save(tmp_path: Path) -> None:
    """A real SIGKILL of a real process that saves without pause; then the newest checkpoint is whole."""
    code = """
        import sys
        sys.path.insert(0, {tests!r})
        from pathlib import Path
        from test_checkpoint import Run
        run = Run(Path({folder!r}), keep_last=2)
        if run.store.steps():
            run.load()
        for step in range(run.step + 1, 10_000):
            run.train(step).save()
            print(step, flush=True)
    """
    code = textwrap.dedent(code).format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    rng = rng_for(0, "kill")
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline()]
            time.sleep(float(rng.uniform(0.0, 0.3)))
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        done = max(int(line) for line in lines if line.endswith("\n"))
        run = Run(tmp_path, keep_last=2)
        restored = run.load()
        assert restored.rejected == ()
        assert restored.step >= done
