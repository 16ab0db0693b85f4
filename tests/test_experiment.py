"""The numbers behind the report of a comparison: matched pairs, equal segments, known gains, marks of what is odd."""

import csv
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from hwm.errors import DataError
from hwm.evaluation import compare_report
from hwm.evaluation.compare_report import LEGACY, CompareFindings, write_report
from hwm.evaluation.experiment import Arm, Experiment, Run
from hwm.evaluation.figures_compare import Gain, confusion_matrix, gain_bars
from hwm.evaluation.outputs import ClassList, RunOutputs, SegmentRow, TaskOutputs
from hwm.evaluation.verdicts import Outcome

TAKES, OF_TAKE, CLASSES = 12, 5, 4


def outputs(right: Sequence[bool], first_row: int = 0) -> RunOutputs:
    """A run that is right on exactly these segments."""
    labels = torch.arange(len(right)) % CLASSES
    said = torch.where(torch.tensor(right), labels, (labels + 1) % CLASSES)
    logits = torch.nn.functional.one_hot(said, CLASSES).float()
    segments = tuple(
        SegmentRow(
            row=f"val.json#{first_row + i}", take=f"take {i // OF_TAKE}", start_sec=float(i), labels=(int(label),)
        )
        for i, label in enumerate(labels)
    )
    names = tuple(f"step <{label}>" for label in range(CLASSES))
    task = TaskOutputs(
        ClassList(ids=tuple(range(CLASSES)), names=names, sha256="0" * 64), logits[:, None], labels[:, None]
    )
    return RunOutputs(Path("run"), segments, {"step": task})


def arm(name: str, share: float, seeds: Sequence[int] = (0, 1), matched: str = "", kind: str = "arm") -> Arm:
    """Right on a share of each take's segments, the same in every take."""
    right = [i % OF_TAKE < share * OF_TAKE for i in range(TAKES * OF_TAKE)]
    runs = []
    for seed in seeds:
        told = outputs(right)
        scenarios = {segment.row: "tea" if place < 30 else "coffee" for place, segment in enumerate(told.segments)}
        runs.append(Run(seed, {1.0: told, 2.0: told}, scenarios))
    return Arm(name, f"{name.upper()} · an arm", kind, matched, runs)  # pyright: ignore[reportArgumentType]


def test_gains_are_those_of_matched_pairs() -> None:
    experiment = Experiment([arm("none", 0.4), arm("probe", 0.6, matched="none")], 1.0, 0.02)
    gain = experiment.gain("probe", "none", "top1", 1.0)
    assert gain is not None
    assert gain.value == pytest.approx(0.2)
    assert experiment.pairs() == [("probe", "none")]
    assert experiment.headline("probe", "none").decision.outcome is Outcome.BETTER
    assert experiment.headline("probe", "probe").decision.outcome is Outcome.EQUIVALENT


def test_only_seeds_that_both_arms_have_are_compared() -> None:
    experiment = Experiment([arm("none", 0.4, (0, 1, 2)), arm("probe", 0.6, (1, 5), "none")], 1.0, 0.02)
    assert experiment.seeds("probe", "none") == [1]
    gain = experiment.gain("probe", "none", "top1", 2.0)
    assert gain is not None
    assert gain.num_seeds == 1
    without = Experiment([arm("none", 0.4, (0,)), arm("probe", 0.6, (1,), "none")], 1.0, 0.02)
    assert without.gain("probe", "none", "top1", 1.0) is None
    assert without.pairs() == []


def test_runs_of_other_segments_are_refused() -> None:
    other = arm("probe", 0.6)
    shifted = outputs([True] * TAKES * OF_TAKE, first_row=1)
    moved = other._replace(runs=[other.runs[0]._replace(outputs={1.0: shifted})])
    with pytest.raises(DataError, match="not of the same segments"):
        Experiment([arm("none", 0.4), moved], 1.0, 0.02)


def test_two_runs_of_one_seed_are_refused() -> None:
    with pytest.raises(DataError, match="one seed"):
        Experiment([arm("none", 0.4, (0, 0))], 1.0, 0.02)


def test_confusions_count_every_segment_once_in_its_scenario() -> None:
    tea, coffee = Experiment([arm("none", 0.4)], 1.0, 0.02).confusions("none", 99)
    assert {tea.scenario, coffee.scenario} == {"tea", "coffee"}
    assert tea.counts.sum() == pytest.approx(30)
    assert coffee.counts.sum() == pytest.approx(30)
    right = sum(np.trace(matrix.counts[:, :-1]) for matrix in (tea, coffee))
    assert right == pytest.approx(0.4 * TAKES * OF_TAKE)


def test_of_many_classes_a_matrix_has_the_commonest() -> None:
    experiment = Experiment([arm("none", 0.4)], 1.0, 0.02)
    (whole, *_), (cut, *_) = experiment.confusions("none", 99), experiment.confusions("none", 2)
    assert (whole.num_classes, cut.num_classes, cut.counts.shape) == (CLASSES, CLASSES, (2, 3))
    of_class = dict(zip(whole.names, whole.counts.sum(1), strict=True))
    assert set(cut.counts.sum(1)) == set(sorted(of_class.values())[-2:])
    assert [of_class[name] for name in cut.names] == list(cut.counts.sum(1))


def test_class_gains_have_their_support() -> None:
    gains = Experiment([arm("none", 0.4), arm("probe", 0.6)], 1.0, 0.02).class_gains("probe", "none")
    assert sum(gain.support for gain in gains) == TAKES * OF_TAKE
    weighted = sum(gain.support * gain.difference.value for gain in gains) / (TAKES * OF_TAKE)
    assert weighted == pytest.approx(0.2)


def test_calibration_is_that_of_the_segments() -> None:
    experiment = Experiment([arm("none", 0.4), arm("probe", 0.6, matched="none")], 1.0, 0.02)
    sure = 1 / (1 + (CLASSES - 1) * np.exp(-1))  # softmax of a one-hot
    for name, share in (("none", 0.4), ("probe", 0.6)):
        ece, brier = (experiment.score(name, score, 1.0) for score in ("ece", "brier"))
        assert ece is not None
        assert brier is not None
        assert ece.value == pytest.approx(abs(sure - share))
        rest = (1 - sure) / (CLASSES - 1)
        right, wrong = (1 - sure) ** 2 + 3 * rest**2, sure**2 + (1 - rest) ** 2 + 2 * rest**2
        assert brier.value == pytest.approx(share * right + (1 - share) * wrong)
        assert ece.interval().low is not None
        bins, low, high = experiment.reliability(name)
        assert bins.accuracy == pytest.approx((share,))
        assert bins.num_segments == (2 * TAKES * OF_TAKE,), "the segments of both seeds"
        assert low == pytest.approx([share]), "all takes are alike"
        assert high == pytest.approx([share])
        assert experiment.selective_accuracy(name).accuracy[0].value == pytest.approx(share), "all are equally sure"
    gain = experiment.gain("probe", "none", "ece", 1.0)
    assert gain is not None
    assert gain.value == pytest.approx(abs(sure - 0.6) - abs(sure - 0.4))


def test_untrained_baselines_have_intervals_and_pairs_and_no_seeds(tmp_path: Path) -> None:
    base = arm("majority", 0.2, matched="none", kind="baseline")._replace(title="majority", is_trained=False)
    experiment = Experiment([arm("none", 0.4), base], 1.0, 0.02)
    assert ("majority", "none") in experiment.pairs()
    page = write_report(tmp_path, findings(is_legacy=False)._replace(experiment=experiment), []).report.read_text()
    row = next(part for part in page.split("<tr") if ">majority</th>" in part)
    assert "20.0 … 20.0" in row
    assert '<td class="number">–</td>' in row, "seeds that train nothing are not counted"
    assert "majority − NONE" in page
    told = json.loads((tmp_path / "metrics.json").read_text())
    pair = next(pair for pair in told["pairs"] if pair["arm"] == "majority")
    assert pair["horizons"]["1"]["value"] == pytest.approx(-0.2)
    assert pair["horizons"]["1"]["high"] == pytest.approx(-0.2)


def test_guesses_are_told_by_horizon() -> None:
    told = Experiment([arm("none", 0.4)], 1.0, 0.02).guesses("none", 1, "val.json#0", 2)
    assert list(told) == [1.0, 2.0]
    assert told[2.0][0][0] == "step <0>"
    assert told[2.0][0][1] > told[2.0][1][1] > 0


def test_what_a_probe_of_the_focal_loss_says_is_its_sigmoids_as_hwm_predict_says_it(tmp_path: Path) -> None:
    none, probe = arm("none", 0.4), arm("probe", 0.4, matched="none")
    probe = probe._replace(runs=[run._replace(asked_apart=True) for run in probe.runs])
    experiment = Experiment([none, probe], 1.0, 0.02)
    one, zero = 1 / (1 + math.exp(-1)), 0.5
    told = experiment.guesses("probe", 1, "val.json#0", 2)[1.0]
    assert [share for _, share in told] == pytest.approx([one, zero])
    softmax = math.e / (math.e + CLASSES - 1)
    assert experiment.guesses("none", 1, "val.json#0", 1)[1.0][0][1] == pytest.approx(softmax)
    assert experiment.reliability("probe").bins.confidence == pytest.approx([one])
    assert experiment.reliability("none").bins.confidence == pytest.approx([softmax])
    ece, brier = (experiment.score("probe", name, 1.0) for name in ("ece", "brier"))
    assert ece is not None
    assert ece.value == pytest.approx(one - 0.4)
    distance = (CLASSES - 2) * zero**2
    assert brier is not None
    expected = 0.4 * ((1 - one) ** 2 + zero**2) + 0.6 * (zero**2 + one**2)
    assert brier.value == pytest.approx(distance + expected)
    page = write_report(tmp_path, findings(is_legacy=False)._replace(experiment=experiment), []).report.read_text()
    assert "own sigmoid" in page


def findings(*, is_legacy: bool) -> CompareFindings:
    arms = [arm("none", 0.4), arm("probe", 0.6, matched="none"), arm("future", 0.8, matched="probe", kind="oracle")]
    return CompareFindings(
        Experiment(arms, 1.0, 0.02),
        worlds={},
        best={"best possible": {1.0: 0.9}},
        coverage=(TAKES * OF_TAKE + 1, [("val.json#99", "starts before the horizon")]),
        provenance={"Protocol": {"id": "x"}},
        notes=["A note."],
        is_legacy=is_legacy,
    )


def test_the_legacy_protocol_is_marked_on_every_number(tmp_path: Path) -> None:
    page = write_report(tmp_path, findings(is_legacy=True), []).report.read_text()
    titles = [part.split("</h2>")[0] for part in page.split("<h2>")[1:]]
    numbers = [title for title in titles if title != "Coverage and provenance"]
    assert numbers
    assert all(LEGACY in title for title in numbers)
    assert page.count(LEGACY) > len(numbers) + 5, "figures and cards carry it too"
    assert LEGACY not in write_report(tmp_path, findings(is_legacy=False), []).report.read_text()


def test_oracles_are_set_apart_and_never_the_best(tmp_path: Path) -> None:
    page = write_report(tmp_path, findings(is_legacy=False), []).report.read_text()
    row = next(part for part in page.split("<tr") if "FUTURE · an arm</th>" in part)
    assert 'class="reference' in row
    assert 'class="best"' not in row
    assert "80.0" in row


def test_names_of_steps_cannot_steer_the_page(tmp_path: Path) -> None:
    page = write_report(tmp_path, findings(is_legacy=False), []).report.read_text()
    assert "step <" not in page
    assert "step &lt;1&gt;" in page


def test_of_many_classes_the_page_draws_those_with_most_segments_not_those_with_most_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_report, "MAX_STEPS", 2)
    found = findings(is_legacy=False)
    told = found.experiment.class_gains("probe", "none")
    commonest = sorted(told, key=lambda gain: (-gain.support, gain.label))[:2]
    page = write_report(tmp_path, found, []).report.read_text()
    assert f"The 2 steps with most segments, of {CLASSES}; metrics.json has all." in page
    drawn = csv.reader((tmp_path / "figures" / "gain-by-step-gaze-point.csv").read_text().splitlines()[1:])
    assert {row[0] for row in drawn} == {found.experiment.class_names[gain.label] for gain in commonest}


def test_bounds_of_shares_lie_where_shares_can_lie(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):  # two seeds that differ much: Student's t goes far beyond what a share can be
        told = outputs([seed == 0] * TAKES * OF_TAKE)
        runs.append(Run(seed, {1.0: told}, dict.fromkeys((segment.row for segment in told.segments), "tea")))
    arms = [arm("none", 0.4), Arm("probe", "B · an arm", "arm", "none", runs)]
    experiment = Experiment(arms, 1.0, 0.02)
    free = experiment.score("probe", "top1", 1.0)
    assert free is not None
    reach = free.interval().high
    assert reach is not None
    assert reach > 1
    told = json.loads(
        write_report(tmp_path, findings(is_legacy=False)._replace(experiment=experiment), []).metrics.read_text()
    )
    assert told["arms"]["probe"]["scores"]["1"]["top1"] | {"p": 0} == {
        "value": 0.5, "low": 0.0, "high": 1.0, "level": 0.95, "p": 0, "of_seed": [1.0, 0.0],
    }  # fmt: skip
    assert told["arms"]["probe"]["scores"]["1"]["brier"]["low"] == 0.0
    (pair,) = told["pairs"]
    assert (pair["horizons"]["1"]["low"], pair["horizons"]["1"]["high"]) == (-1.0, 1.0)
    assert all(abs(one["difference"][bound]) <= 1 for one in pair["verdicts"] for bound in ("low", "high"))
    assert "interval -100.0 to +100.0" in pair["verdicts"][0]["text"]


def test_a_p_value_is_never_shown_as_zero_and_a_pair_stays_on_one_line(tmp_path: Path) -> None:
    page = write_report(tmp_path, findings(is_legacy=False), []).report.read_text()
    row = next(part for part in page.split("<tr") if ">PROBE − NONE</th>" in part)
    told = json.loads((tmp_path / "metrics.json").read_text())["pairs"][0]["verdicts"][0]
    assert told["adjusted_p"] < 0.0005
    assert '<td class="number">&lt;0.001</td>' in row
    assert '<td class="number">0.000</td>' not in page
    assert "(B\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}A)" in page


@pytest.mark.parametrize("num_classes", [15, 24])
def test_names_below_a_confusion_matrix_do_not_collide(num_classes: int) -> None:
    names = [f"Remove the onion from the saucepan {number}" for number in range(num_classes)]
    svg = confusion_matrix("m", names, np.eye(num_classes, num_classes + 1), "M").svg
    told = re.findall(r'font-size: ([\d.]+)px[^>]*transform="rotate\(-([1-9]\d*) ([\d.]+) ', svg)
    assert len(told) == num_classes + 1
    size, slant = float(told[0][0]), math.radians(int(told[0][1]))
    apart = min(right - left for left, right in itertools.pairwise(float(x) for *_, x in told)) * math.sin(slant)
    assert apart > 1.2 * size, "a line of text is higher than its letters' size"


def test_figures_hold_the_numbers_drawn() -> None:
    figure = gain_bars("gains", [Gain("a, b", 0.1, 0.05, 0.15, 7), Gain("c", -0.2, None, None)], "Gains")
    assert figure.csv.splitlines()[1:] == ['"a, b",0.1,0.05,0.15,7', "c,-0.2,,,"]
    matrix = confusion_matrix("m", ["x", "y"], np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), "M")
    assert matrix.csv.splitlines()[1:4] == ["x,x,3.0,0.75", "x,y,1.0,0.25", "x,any other,0.0,0.0"]
