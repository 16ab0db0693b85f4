"""Known answers: comparisons whose right verdict follows from the toy world's rules; figures in `docs/results.md`.

Budget: two hours on two cores (an hour and a half when it was run last), 20 GB of disk. Not part of the usual run:

    make known-answers                                    in a temporary folder
    HWM_KNOWN_ANSWERS=FOLDER make known-answers           in a folder that is kept; what is finished is not run again
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hwm.config import CompareConfig, ToyWorldConfig
from hwm.data.toyworld import ToyWorldSummary, generate
from hwm.pipelines import compare
from hwm.pipelines.compare_runs import report_on
from hwm.pipelines.compare_units import make_plan
from hwm.recipes import load_config

pytestmark = [pytest.mark.known_answers, pytest.mark.timeout(3 * 3600)]

SEEING = ToyWorldConfig(num_takes=3400, val_fraction=0.125, fps=8, grid_fps=8, seed=7, views="ego")
BLIND = ToyWorldConfig(num_takes=1200, fps=4, seed=5, views="ego", gaze="uninformative")
BLIND_SEEDS, MAY_ERR = 20, 2


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all comparisons."""
    kept = os.environ.get("HWM_KNOWN_ANSWERS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("known-answers")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def world(workplace: Path) -> ToyWorldSummary:
    return generate(Path("data/known-answers"), SEEING)


@pytest.fixture(scope="module")
def seeing(world: ToyWorldSummary) -> dict[str, Any]:
    """`metrics.json` of the comparison in which gaze tells something."""
    written = compare.run(make_plan(load_config(CompareConfig, "compare/known-answers")))
    return json.loads(written.metrics.read_text(encoding="utf-8"))


def top1_of(metrics: dict[str, Any], arm: str) -> float:
    return metrics["arms"][arm]["scores"]["1"]["top1"]["value"]


def verdict_of(metrics: dict[str, Any], arm: str, other: str) -> str:
    pair = next(pair for pair in metrics["pairs"] if (pair["arm"], pair["other"]) == (arm, other))
    return next(verdict["outcome"] for verdict in pair["verdicts"] if verdict["metric"] == "top1")


def test_measured_gaze_goes_most_of_the_way_to_the_ceiling(seeing: dict[str, Any], world: ToyWorldSummary) -> None:
    """70 % of the way from the best without gaze to the best with it, which knows the target from its turn on."""
    best = next(row for row in world.ceilings["val"] if row.horizon_sec == 1.0)
    gained = top1_of(seeing, "probe") - best.without_gaze
    assert gained / (best.with_gaze - best.without_gaze) >= 0.7
    assert top1_of(seeing, "probe") < best.with_gaze
    assert verdict_of(seeing, "probe", "none") == "better"


def test_the_gaze_of_another_video_loses_the_gain(seeing: dict[str, Any]) -> None:
    assert verdict_of(seeing, "point-shuffled", "probe") == "worse"
    lost = top1_of(seeing, "probe") - top1_of(seeing, "point-shuffled")
    assert lost > 0.8 * (top1_of(seeing, "probe") - top1_of(seeing, "none"))


def test_the_gaze_of_the_next_step_beats_all_and_is_marked_as_an_oracle(seeing: dict[str, Any]) -> None:
    assert verdict_of(seeing, "point-future", "probe") == "better"
    best = max(seeing["arms"], key=lambda arm: top1_of(seeing, arm))
    assert best == "point-future"
    assert [name for name, arm in seeing["arms"].items() if arm["kind"] == "oracle"] == ["point-future"]


def test_gaze_that_tells_nothing_makes_no_difference(workplace: Path) -> None:
    """To no gaze and to that of another video, within five points; each seed has a report of its own."""
    generate(Path("data/known-answers-blind"), BLIND)
    config = load_config(CompareConfig, "compare/known-answers-blind", [f"seeds={BLIND_SEEDS}"])
    plan = make_plan(config)
    compare.run(plan)
    outcomes: dict[str, list[str]] = {"to no gaze": [], "to another video's": []}
    for seed in range(BLIND_SEEDS):
        folders = [u.folder for u in plan.units if u.verb == "anticipate" and u.config.seed == seed]
        assert len(folders) == 3
        written = report_on(folders, Path(f"runs/blind-{seed}"), 0, bound=config.equivalence)
        metrics = json.loads(written.metrics.read_text(encoding="utf-8"))
        outcomes["to no gaze"].append(verdict_of(metrics, "probe", "none"))
        outcomes["to another video's"].append(verdict_of(metrics, "point-shuffled", "probe"))
    for found in outcomes.values():
        assert found.count("no difference") >= BLIND_SEEDS - MAY_ERR, outcomes
