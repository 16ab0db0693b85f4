"""Scores of several tasks: unknown labels are counted and not scored, subsets and sequences by hand."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwm.data.segments import UNKNOWN, ClassTable, Segment, Task
from hwm.data.video import VideoInfo
from hwm.engine.saved_probe import TrainedOn, load_probe, save_probe
from hwm.engine.sweep import loss_of_known
from hwm.errors import ConfigError, DataError, RunError
from hwm.evaluation.sequence_metrics import edit_distance, edit_distances, sample_sequences
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.pipelines.scoring import TaskOutput, labels_of, score_all, write_outputs

VIDEO = VideoInfo(Path("v.mp4"), 100.0, 16, 16, 30.0, "h264", 0, 1)


def table(count: int) -> ClassTable:
    return ClassTable(tuple(range(count)), tuple(f"class {i}" for i in range(count)))


def segment(
    labels: tuple[int, ...], previous: tuple[int, ...] | None = None, following: Sequence[tuple[int, ...]] = (),
    subsets: tuple[tuple[str, ...], ...] = ((), ()),
) -> Segment:  # fmt: skip
    before = previous or (UNKNOWN,) * len(labels)
    return Segment(VIDEO, 1.0, 2.0, labels, before, tuple(following), "take", None, "", "row", subsets)


def sure_of(classes: Sequence[int], count: int) -> torch.Tensor:
    """Logits [S, 1, C] that name these classes."""
    return 9 * torch.nn.functional.one_hot(torch.tensor(classes), count).float()[:, None]


VERB, NOUN = Task("verb", table(7)), Task("noun", table(8))


def test_each_task_is_scored_on_what_it_knows() -> None:
    val = [segment((0, 0)), segment((0, UNKNOWN)), segment((3, 2)), segment((UNKNOWN, 2))]
    labels = labels_of((VERB, NOUN), val)
    assert labels["noun"].tolist() == [[0], [UNKNOWN], [2], [2]]
    outputs = [
        TaskOutput(VERB, sure_of([0, 1, 3, 3], 7), torch.from_numpy(labels["verb"])),
        TaskOutput(NOUN, sure_of([0, 0, 1, 2], 8), torch.from_numpy(labels["noun"])),
    ]
    train = [segment((0, 2), (3, 3)), segment((3, 2))]
    scores = score_all(outputs, train, val, (), seed=0)
    assert set(scores) == {"probe", "majority", "previous step"}
    probe = scores["probe"]
    assert probe["verb/top1"] == pytest.approx(2 / 3)
    assert probe["noun/top1"] == pytest.approx(2 / 3)
    assert (probe["verb/num_segments"], probe["verb/num_unknown_labels"]) == (3, 1)
    assert probe["verb/class_mean_recall_at_1"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["majority"]["noun/top1"] == pytest.approx(2 / 3)
    assert not any("edit_distance" in name for name in probe)


def test_the_previous_step_guesses_for_each_task() -> None:
    train = [segment((1, 5), (0, 4)), segment((2, 6), (0, 3)), segment((2, 6), (3, UNKNOWN))] * 3
    val = [segment((1, 5), (0, 4)), segment((2, 6), (3, 3)), segment((2, 6), (UNKNOWN, UNKNOWN))]
    outputs = [
        TaskOutput(task, torch.zeros(3, 1, len(task.classes)), torch.from_numpy(labels))
        for task, labels in zip((VERB, NOUN), labels_of((VERB, NOUN), val).values(), strict=True)
    ]
    scores = score_all(outputs, train, val, (), seed=0)["previous step"]
    assert (scores["verb/top1"], scores["noun/top1"]) == (pytest.approx(2 / 3), 1.0)


def test_subsets_have_their_own_class_means() -> None:
    """Ten verbs; the probe's first five guesses are always classes 0 to 4."""
    verb = Task("verb", table(10))
    val = [
        segment((0,), subsets=(("tail",),)), segment((0,), subsets=(("tail",),)), segment((7,), subsets=(("tail",),)),
        segment((1,)), segment((UNKNOWN,), subsets=(("tail", "unseen"),)),
    ]  # fmt: skip
    logits = torch.arange(10, 0, -1).float().expand(5, 1, 10)
    output = TaskOutput(verb, logits, torch.from_numpy(labels_of((verb,), val)["verb"]))
    scores = score_all([output], val[:2], val, ("unseen", "tail"), seed=0)["probe"]
    assert scores["class_mean_recall_at_5"] == pytest.approx(2 / 3)
    assert (scores["tail/num_segments"], scores["tail/class_mean_recall_at_5"]) == (3, pytest.approx(1 / 2))
    assert scores["unseen/num_segments"] == 0
    assert "unseen/class_mean_recall_at_5" not in scores


def distance_by_search(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Optimal string alignment, by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    best = min(distance_by_search(a[1:], b) + 1, distance_by_search(a, b[1:]) + 1)
    best = min(best, distance_by_search(a[1:], b[1:]) + (a[0] != b[0]))
    if len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0]:
        best = min(best, distance_by_search(a[2:], b[2:]) + 1)
    return best


def test_edit_distances_are_those_of_the_definition() -> None:
    sequences = list(itertools.product(range(3), repeat=4))
    guesses = torch.tensor(sequences).expand(len(sequences), -1, -1)
    found = edit_distances(guesses, torch.tensor(sequences))
    rng = np.random.default_rng(0)
    for truth, guess in rng.integers(0, len(sequences), (300, 2)):
        assert found[truth, guess] == distance_by_search(sequences[guess], sequences[truth])


def test_the_best_guess_counts_over_the_length() -> None:
    truth = torch.tensor([[1, 2, 3, 4], [5, 5, 5, 5]])
    guesses = torch.tensor([[[2, 1, 3, 4], [9, 9, 9, 9]], [[5, 5, 9, 9], [5, 9, 9, 9]]])
    assert edit_distances(guesses, truth).tolist() == [[1, 4], [2, 3]]  # a swap of neighbours costs 1
    assert edit_distance(guesses, truth) == pytest.approx((1 / 4 + 2 / 4) / 2)
    with pytest.raises(DataError, match="no sequences to score"):
        edit_distance(guesses[:0], truth[:0])


def test_sequences_are_drawn_from_the_softmax_and_follow_the_seed() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).expand(1, 2, 3)
    drawn = sample_sequences(logits, torch.Generator().manual_seed(0), 20_000)
    assert drawn.shape == (1, 20_000, 2)
    for place in range(2):
        shares = drawn[0, :, place].bincount() / 20_000
        torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.015, rtol=0)
    assert torch.equal(drawn, sample_sequences(logits, torch.Generator().manual_seed(0), 20_000))
    assert not torch.equal(drawn, sample_sequences(logits, torch.Generator().manual_seed(1), 20_000))


def test_a_sequence_is_scored_where_all_of_it_is_there() -> None:
    verb, noun, action = Task("verb", table(4), 3), Task("noun", table(4), 3), Task("action", table(4))
    tasks = (verb, noun, action)
    val = [
        segment((0, 1, 0), following=((1, 2, 1), (2, 3, 2)), subsets=((),) * 3),
        segment((0, 1, 0), following=((1, UNKNOWN, UNKNOWN), (2, 3, 2)), subsets=((),) * 3),
        segment((1, 2, 1), following=((2, 3, 2),), subsets=((),) * 3),  # the clip ends: not scored as a sequence
    ]
    labels = labels_of(tasks, val)
    assert labels["verb"].tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, UNKNOWN]]
    assert labels["action"].tolist() == [[0], [0], [1]]
    right_verbs = torch.cat([sure_of([0, 1, 2], 4)] * 3, dim=1).transpose(0, 1)  # [S, Z, C]: 0, 1, 2
    right_nouns = torch.cat([sure_of([1, 2, 3], 4)] * 3, dim=1).transpose(0, 1)
    logits = (30 * right_verbs, 30 * right_nouns, sure_of([0, 0, 1], 4))
    outputs = [TaskOutput(t, part, torch.from_numpy(labels[t.name])) for t, part in zip(tasks, logits, strict=True)]
    scores = score_all(outputs, val, val, (), seed=0)
    probe = scores["probe"]
    assert probe["num_sequences"] == 2
    assert probe["verb/edit_distance_at_3"] == 0
    assert probe["noun/edit_distance_at_3"] == pytest.approx((0 + 1 / 3) / 2)  # an unknown noun is never matched
    assert probe["action/edit_distance_at_3"] == pytest.approx((0 + 1 / 3) / 2)
    assert probe["action/top1"] == 1
    assert 0 < scores["majority"]["verb/edit_distance_at_3"] <= 1
    assert "num_sequences" not in scores["previous step"]
    nothing = score_all(
        [o._replace(labels_SZ=o.labels_SZ[2:], logits_SZC=o.logits_SZC[2:]) for o in outputs], val, val[2:], (), 0
    )
    assert nothing["probe"]["num_sequences"] == 0


def test_the_loss_is_the_sum_over_tasks_of_the_known() -> None:
    torch.manual_seed(0)
    logits = {"verb": torch.randn(3, 2, 5), "noun": torch.randn(3, 1, 4)}
    labels = {"verb": torch.tensor([[1, -1], [-1, -1], [4, 0]]), "noun": torch.tensor([[-1], [-1], [2]])}
    verbs, nouns = logits["verb"].log_softmax(2), logits["noun"].log_softmax(2)
    expected = -(verbs[0, 0, 1] + verbs[2, 0, 4] + verbs[2, 1, 0]) / 3 - nouns[2, 0, 2]
    torch.testing.assert_close(loss_of_known("cross-entropy", logits, labels), expected)
    labels["noun"][:] = UNKNOWN
    torch.testing.assert_close(loss_of_known("cross-entropy", logits, labels), expected + nouns[2, 0, 2])
    labels["verb"][:] = UNKNOWN
    with pytest.raises(RunError, match="no known label"):
        loss_of_known("cross-entropy", logits, labels)


@pytest.mark.parametrize("gaze_point", [False, True])
def test_heads_read_queries_of_their_own(gaze_point: bool) -> None:
    """With one query a task, the query of the verb does not reach the noun."""
    torch.manual_seed(0)
    heads = {"verb": (3, 5), "noun": (1, 4)}
    probe = StepProbe(StepProbeSpec(8, 2, 3, heads, num_heads=2, num_queries=2, gaze_point=gaze_point)).eval()
    features, valid = torch.randn(2, 2, 3, 8), torch.ones(2, 2, dtype=torch.bool)
    before = probe(features, valid)
    assert {task: tuple(part.shape) for task, part in before.items()} == {"verb": (2, 3, 5), "noun": (2, 1, 4)}
    with torch.no_grad():
        probe.probe.pooler.query_tokens[:, 0] += 1
    after = probe(features, valid)
    assert torch.equal(after["noun"], before["noun"])
    assert not torch.equal(after["verb"], before["verb"])
    if gaze_point:
        with torch.no_grad():
            probe.gaze_head.weight[:15].normal_()  # the verb's rows
        shifted = probe(features, valid)
        assert torch.equal(shifted["noun"], after["noun"])
        assert not torch.allclose(shifted["verb"], after["verb"])


def test_a_saved_probe_knows_its_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = StepProbeSpec(8, 2, 3, {"verb": (2, 7), "noun": (1, 8)}, num_heads=2, num_queries=2, gaze_point=True)
    probe, path = StepProbe(spec), tmp_path / "probe.safetensors"
    classes = {"verb": VERB.classes.sha256, "noun": NOUN.classes.sha256}
    given = TrainedOn(classes, {"predictor": "hash"}, "context+future", 1, "estimated", positions=True)
    save_probe(path, probe, given)
    loaded = load_probe(path, given)
    assert loaded.spec == spec
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in probe.state_dict().items())
    renamed = Task("noun", ClassTable(NOUN.classes.ids, ("other", *NOUN.classes.names[1:])))
    for wrong in ((VERB, renamed), (VERB,), (NOUN, Task("verb", table(8)))):
        with pytest.raises(DataError, match="was trained on other classes"):
            load_probe(path, given._replace(classes_sha256={task.name: task.classes.sha256 for task in wrong}))
    others = {"frozen_sha256": {"predictor": "x"}, "inputs": "future", "num_steps": 2, "gaze_point": "none"}
    for name, value in (others | {"positions": False, "rollout": "copy-last"}).items():
        with pytest.raises(ConfigError, match=f"was trained on another {name}"):
            load_probe(path, given._replace(**{name: value}))


def test_outputs_are_written_with_their_class_tables(tmp_path: Path) -> None:
    val = [segment((0, 5)), segment((UNKNOWN, 2))]
    labels = labels_of((VERB, NOUN), val)
    outputs = [TaskOutput(t, torch.randn(2, 1, len(t.classes)), torch.from_numpy(labels[t.name])) for t in (VERB, NOUN)]
    write_outputs(tmp_path, outputs, val)
    stored = load_file(tmp_path / "outputs.safetensors")
    assert set(stored) == {"verb/logits", "verb/labels", "noun/logits", "noun/labels"}
    assert torch.equal(stored["noun/logits"], outputs[1].logits_SZC[:, 0])
    told = json.loads((tmp_path / "segments.json").read_text())
    assert [row["labels"] for row in told["segments"]] == [[0, 5], [UNKNOWN, 2]]
    assert told["classes"]["verb"]["sha256"] == VERB.classes.sha256
    assert told["classes"]["noun"]["ids"] == list(range(8))
