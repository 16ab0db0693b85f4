"""Per-segment outputs: read back as they were written, aligned by row, and refused where they do not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hwm.data.segments import UNKNOWN, ClassTable, Segment, Task
from hwm.data.video import VideoInfo
from hwm.errors import DataError, WeightsError
from hwm.evaluation.outputs import RunOutputs, align, read_outputs
from hwm.evaluation.paired_comparison import compare_outputs
from hwm.evaluation.resampled import METRICS
from hwm.evaluation.tests_of_difference import holm
from hwm.evaluation.verdicts import Outcome
from hwm.pipelines.scoring import TaskOutput, labels_of, write_outputs
from small_disk import files_of_at_most

VIDEO = VideoInfo(Path("v.mp4"), 100.0, 16, 16, 30.0, "h264", 0, 1)
NUM_TAKES, EACH, CLASSES = 12, 10, 20


def table(count: int) -> ClassTable:
    return ClassTable(tuple(range(count)), tuple(f"class {i}" for i in range(count)))


def segments(num_tasks: int) -> list[Segment]:
    rng = np.random.default_rng(0)
    found = []
    for index in range(NUM_TAKES * EACH):
        labels = tuple(rng.integers(0, CLASSES, num_tasks).tolist())
        labels = (UNKNOWN, *labels[1:]) if num_tasks > 1 and index % 7 == 0 else labels
        found.append(
            Segment(VIDEO, float(index), index + 1.0, labels, labels, (labels,), f"take {index % NUM_TAKES}", None, "",
                    f"val.json#{index}")
        )  # fmt: skip
    return found


def write(folder: Path, tasks: tuple[Task, ...], strength: float, seed: int, order: list[int] | None = None) -> Path:
    """A run folder whose model is right more often the higher the strength."""
    folder.mkdir()
    rows = segments(len(tasks))
    labels = labels_of(tasks, rows)
    outputs = []
    for task in tasks:
        generator = torch.Generator().manual_seed(seed)
        labels_SZ = torch.from_numpy(labels[task.name])
        truth = torch.nn.functional.one_hot(labels_SZ.clamp(min=0), len(task.classes))
        outputs.append(TaskOutput(task, strength * truth + torch.randn(truth.shape, generator=generator), labels_SZ))
    if order is not None:
        rows = [rows[index] for index in order]
        outputs = [TaskOutput(o.task, o.logits_SZC[order], o.labels_SZ[order]) for o in outputs]
    write_outputs(folder, outputs, rows)
    return folder


STEP = (Task("step", table(CLASSES)),)
TWO = (Task("verb", table(CLASSES), 2), Task("noun", table(CLASSES + 1)))


@pytest.mark.parametrize(("num_bytes", "name"), [(2000, "outputs.safetensors"), (12_000, "segments.json")])
def test_a_full_disk_names_the_file(tmp_path: Path, num_bytes: int, name: str) -> None:
    with files_of_at_most(num_bytes), pytest.raises((WeightsError, OSError), match="too large") as caught:
        write(tmp_path / "run", STEP, 1.0, 0)
    assert f"{tmp_path}/run/{name}" in f"{caught.value}"


@pytest.mark.parametrize("tasks", [STEP, TWO], ids=["one task", "two tasks, one with a sequence"])
def test_outputs_are_read_as_they_were_written(tmp_path, tasks):
    run = read_outputs(write(tmp_path / "run", tasks, 1.0, 0))
    written, rows = load_file(tmp_path / "run" / "outputs.safetensors"), segments(len(tasks))
    assert [s.row for s in run.segments] == [s.row for s in rows]
    assert run.takes == tuple(s.take for s in rows)
    assert list(run.tasks) == [task.name for task in tasks]
    for task in tasks:
        found, prefix = run.tasks[task.name], "" if len(tasks) == 1 else f"{task.name}/"
        assert torch.equal(found.logits_SZC.squeeze(1), written[prefix + "logits"])
        assert found.labels_S.tolist() == [s.labels[tasks.index(task)] for s in rows]
        assert (found.classes.ids, found.classes.sha256) == (task.classes.ids, task.classes.sha256)


def test_runs_are_aligned_by_row(tmp_path):
    order = list(reversed(range(NUM_TAKES * EACH)))
    first = read_outputs(write(tmp_path / "a", TWO, 1.0, 0))
    same, other = align([first, read_outputs(write(tmp_path / "b", TWO, 1.0, 0, order))])
    assert same is first
    assert other.segments == first.segments
    for name, task in first.tasks.items():
        assert torch.equal(task.logits_SZC, other.tasks[name].logits_SZC)


Edit = Callable[[dict], None]


def change(folder: Path, edit: Edit) -> RunOutputs:
    path = folder / "segments.json"
    told = json.loads(path.read_text())
    edit(told)
    path.write_text(json.dumps(told))
    return read_outputs(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda told: told["segments"][4].update(row="val.json#other"), "segments[\\s\\S]*val.json#4"),
        (lambda told: told["segments"][3].update(take="other"), "segments[\\s\\S]*val.json#3[\\s\\S]*other"),
        (lambda told: told["segments"][5].update(start_sec=5.5), "segments[\\s\\S]*val.json#5"),
        (lambda told: told["classes"]["step"]["names"].__setitem__(2, "cut"), r"classes of step \(label 2\)[\s\S]*cut"),
        (lambda told: told["classes"].update(other=told["classes"].pop("step")), "tasks[\\s\\S]*other"),
    ],
)  # fmt: skip
def test_the_first_thing_that_differs_is_named(tmp_path, edit, message):
    first = read_outputs(write(tmp_path / "a", STEP, 1.0, 0))
    other = change(write(tmp_path / "b", STEP, 1.0, 1), edit)
    with pytest.raises(DataError, match=f"not of the same {message}"):
        align([first, other])


def test_a_run_with_more_segments_does_not_fit(tmp_path):
    whole = read_outputs(write(tmp_path / "a", STEP, 1.0, 0))
    part = read_outputs(write(tmp_path / "b", STEP, 1.0, 0, order=list(range(50))))
    with pytest.raises(DataError, match="json#50"):
        align([part, whole])
    with pytest.raises(DataError, match="json#50"):
        align([whole, part])
    with pytest.raises(DataError, match="no runs"):
        align([])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda told: told["segments"][1].update(row=told["segments"][0]["row"]), "twice"),
        (lambda told: told["segments"][1].update(labels=[0, 1]), "one a task"),
        (lambda told: told["segments"][1].update(labels=[CLASSES - 1 - told["segments"][1]["labels"][0]]), "labels of"),
        (lambda told: told["segments"].pop(), "does not fit its segments"),
        (lambda told: told["segments"].clear(), "nothing to compare"),
        (lambda told: told["segments"][1].update(take=7), "segments.1.take"),
        (lambda told: told["classes"]["step"]["ids"].pop(), "does not fit"),
        (lambda told: told["classes"]["step"]["names"].pop(), "class table"),
        (lambda told: told.pop("classes"), "classes"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path, edit, message):
    with pytest.raises(DataError, match=message):
        change(write(tmp_path / "run", STEP, 1.0, 0), edit)


def test_missing_and_damaged_files_are_refused(tmp_path):
    folder = write(tmp_path / "run", STEP, 1.0, 0)
    with pytest.raises(DataError, match="cannot be read"):
        read_outputs(tmp_path / "nowhere")
    tensors = folder / "outputs.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="safetensors cannot be read"):
        read_outputs(folder)
    save_file({"logits": torch.zeros(120, CLASSES)}, tensors)
    with pytest.raises(DataError, match="no labels of the task step"):
        read_outputs(folder)
    (folder / "segments.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not a list of segments"):
        read_outputs(folder)


def test_a_clear_gain_is_found_in_every_task_and_metric_and_equal_runs_are_equivalent(tmp_path):
    strong = [read_outputs(write(tmp_path / f"a{seed}", TWO, 2.5, seed)) for seed in range(3)]
    weak = [read_outputs(write(tmp_path / f"b{seed}", TWO, 0.5, seed + 9)) for seed in range(3)]
    found = compare_outputs(strong, weak, np.random.default_rng(0), num_resamples=400)
    assert [(item.task, item.metric) for item in found] == [(task, m) for task in ("verb", "noun") for m in METRICS]
    for item in found:
        assert item.value_a - item.value_b == pytest.approx(item.difference.value)
        assert item.decision.outcome is Outcome.BETTER, item.decision.text
        assert item.adjusted_p >= item.difference.p_value
        assert (item.sign_test is not None) == item.metric.startswith("top") == (item.permutation_p is not None)
    assert found[0].num_segments == sum(s.labels[0] != UNKNOWN for s in segments(2))
    assert found[0].sign_test.num_ahead == NUM_TAKES
    p_values = [item.difference.p_value for item in found]
    assert [item.adjusted_p for item in found] == list(holm(p_values)) != p_values
    equal = compare_outputs(strong, strong, np.random.default_rng(0), ("top1",), num_resamples=100)
    assert [item.decision.outcome for item in equal] == [Outcome.EQUIVALENT] * 2
    with pytest.raises(DataError, match="same seeds"):
        compare_outputs(strong, weak[:2], np.random.default_rng(0), num_resamples=10)


def test_the_sign_test_counts_the_takes_of_the_segments_whose_class_is_known(tmp_path):
    """By hand, at 1 and at 5 guesses, of models that are nearly alike."""
    pairs = [[read_outputs(write(tmp_path / f"{of}{seed}", TWO, 1.0, seed + of)) for seed in range(2)] for of in (0, 9)]
    found = compare_outputs(*pairs, np.random.default_rng(0), ("top1", "top5"), num_resamples=50)
    for item in found:
        told = []
        for runs in pairs:
            tasks = [run.tasks[item.task] for run in runs]
            order = [task.logits_SC.argsort(dim=1, descending=True)[:, : int(item.metric[3:])] for task in tasks]
            told.append(sum((o == t.labels_S[:, None]).any(1).int() for o, t in zip(order, tasks, strict=True)))
        gains: dict[str, int] = {}
        for take, label, gain in zip(pairs[0][0].takes, tasks[0].labels_S, told[0] - told[1], strict=True):
            if label >= 0:
                gains[take] = gains.get(take, 0) + int(gain)
        ahead, behind = sum(gain > 0 for gain in gains.values()), sum(gain < 0 for gain in gains.values())
        assert (item.sign_test.num_ahead, item.sign_test.num_behind) == (ahead, behind)
        assert ahead
        assert behind
