"""The section on world models: means over the seeds that were trained, for each of the models, where it is told."""

import re
from pathlib import Path

import numpy as np
import pytest

from hwm.evaluation.compare_world import WITHOUT_GAZE, World, world_section
from hwm.evaluation.experiment import Run
from hwm.evaluation.report import Report
from hwm.evaluation.skill_by_take import TakeErrors, skill_gain

PLACES = ("", "near/", "elsewhere/", "moving/", "static/")
FORECASTS = {"imagined": 0.125, "true tokens": 0.0, "persistence": 0.25, "centre prior": 0.5}


def run(seed: int, skill: float, *, has_gaze: bool, by_take: TakeErrors | None = None) -> Run:
    validation = {"skill": skill, "drift/error_1": 1.0, "drift/error_2": 1.5, "drift/norm_2": 0.9}
    validation |= {f"{place}skill_{k}": skill + 0.01 * k for place in PLACES for k in (1, 2)}
    validation |= {"retrieval/top1_1": 0.75, "retrieval/top1_2": 0.25}
    metrics = {"auc": 0.9, "nss": 2.0, "kl": 1.0}
    scores = {
        name: {f"{metric}_{k}": value for metric, value in (metrics | {"l2": l2}).items() for k in (1, 2)}
        for name, l2 in FORECASTS.items()
    }
    logged = [{"step": 2, "train/deviation_ratio": 0.1}, {"step": 4, "train/deviation_ratio": 0.81}]
    forecast = {"estimated": scores} if has_gaze else {}
    return Run(seed, {}, {}, stage1=logged, validation=validation, skill_by_take=by_take, forecast=forecast)


@pytest.fixture
def report() -> Report:
    worlds = {
        "with estimated gaze": World([run(0, 0.2, has_gaze=True), run(1, 0.3, has_gaze=True)], 4.0, 64),
        "without gaze": World([run(0, 0.1, has_gaze=False)], 4.0, 64),
    }
    made = Report("Worlds")
    world_section(made, worlds)
    return made


def rows(page: str) -> list[list[str]]:
    """The text of each table row of a page."""
    of = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    return [re.findall(r"<t[hd][^>]*>(?:<span[^>]*>)?([^<]*)", row) for row in of]


def test_skill_is_told_by_place_step_and_model(report: Report) -> None:
    told = rows(report.html())
    for place in ("everywhere", "near gaze", "elsewhere", "clips that change most", "clips that change least"):
        assert [place, "with estimated gaze", "26.0", "27.0"] in told
        assert [place, "without gaze", "11.0", "12.0"] in told


def test_skill_and_what_gaze_adds_have_intervals_where_takes_were_recorded() -> None:
    def by_take(skills: tuple[float, float]) -> TakeErrors:
        sums = np.array([[[1 - skill, 1 - skill], [1.0, 1.0]] for skill in skills])
        return TakeErrors(("a", "b"), {"": sums, "near/": sums})

    of = {seed: by_take(skills) for seed, skills in ((0, (0.2, 0.0)), (1, (0.3, 0.1)))}
    better = {seed: by_take(skills) for seed, skills in ((0, (0.3, 0.1)), (1, (0.5, 0.3)))}
    worlds = {
        "with estimated gaze": World([run(s, 0.2, has_gaze=True, by_take=better[s]) for s in (1, 0)], 4.0, 64),
        WITHOUT_GAZE: World([run(s, 0.1, has_gaze=False, by_take=of[s]) for s in (0, 1)], 4.0, 64),
    }
    made = Report("Worlds")
    world_section(made, worlds)
    page = made.html()
    skills, gains = page.split("Skill by steps ahead. ")
    assert re.search(r"everywhere</t[hd]><td[^>]*>with estimated gaze</td><td[^>]*>(<[^>]*>)*30\.0", skills)
    # Seed by seed: 10 points in seed 0, 20 in seed 1, alike in all takes.
    assert re.search(r"near gaze</t[hd]><td[^>]*>with estimated gaze</td><td[^>]*>(<[^>]*>)*15\.0", gains)
    paired = skill_gain([better[0], better[1]], [of[0], of[1]], "near/", 1)
    assert paired is not None
    _, low, high, *_ = paired.interval()
    assert low is not None
    assert high is not None
    assert f"{100 * low:.1f} … {100 * high:.1f}".replace("-", "−") in gains
    assert "Skill gained over the world model without gaze" in gains


def test_drift_retrieval_and_collapse_are_told(report: Report) -> None:
    told = rows(report.html())
    assert ["with estimated gaze", "25.0", "1.50", "90.0", "75.0", "25.0", "0.81", "–"] in told


def test_gaze_ahead_is_told_beside_persistence_and_in_pixels(report: Report, tmp_path: Path) -> None:
    told = rows(report.html())
    assert ["L2 in px", "imagined, with estimated gaze", "8.00", "8.00"] in told
    assert ["L2 in px", "persistence", "16.00", "16.00"] in told
    assert ["L2 in px", "centre prior", "32.00", "32.00"] in told
    assert not any("imagined, without gaze" in row for row in told), "a model without gaze forecasts none"
    report.write(tmp_path / "report.html")
    drawn = (tmp_path / "figures" / "gaze-forecast-estimated.csv").read_text().splitlines()
    assert "L2 in px (lower is better),persistence,1.0,16.0,," not in drawn, "two seeds have a range"
    assert "L2 in px (lower is better),persistence,1.0,16.0,16.0,16.0" in drawn
    skill = (tmp_path / "figures" / "skill-by-step.csv").read_text()
    assert "near gaze,without gaze,1.0,0.11,," in skill


def test_nothing_is_said_of_world_models_that_recorded_nothing() -> None:
    made = Report("Worlds")
    world_section(made, {"bare": World([Run(0, {}, {})], 4.0, 64)})
    assert "World models" not in made.html()
