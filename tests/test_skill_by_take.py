"""Skill by take: an interval of the very skill that is told, on resamples of whole takes, seeds paired."""

from pathlib import Path

import numpy as np
import pytest

from hwm.errors import RunError
from hwm.evaluation.skill_by_take import FILE, TakeErrors, read_errors, skill, skill_gain, write_errors
from hwm.evaluation.statistics import NUM_RESAMPLES, RESAMPLING_SEED, draw_takes

NUM_TAKES, NUM_STEPS = 12, 3


def made(seed: int, level: float, names: tuple[str, ...] = ("", "near/")) -> TakeErrors:
    """Errors of a model whose skill is about 1 - level, in takes that hold one to five clips."""
    rng = np.random.default_rng(seed)
    clips_P = np.random.default_rng(0).integers(1, 6, NUM_TAKES)  # the takes are the same for all models
    sums = {}
    for name in names:
        copied_PK = clips_P[:, None] * np.random.default_rng(1).uniform(0.5, 1.5, (NUM_TAKES, NUM_STEPS))
        error_PK = copied_PK * (level + rng.normal(0, 0.05, (NUM_TAKES, NUM_STEPS)))
        sums[name] = np.stack([error_PK, copied_PK], axis=1)
    return TakeErrors(tuple(f"take{index:02d}" for index in range(NUM_TAKES)), sums)


def test_the_skill_is_that_of_all_clips_and_the_interval_that_of_resampled_takes() -> None:
    model = made(2, 0.8)
    told = skill([model], "near/", 2)
    assert told is not None
    error_P, copied_P = model.sums["near/"][:, 0, 1], model.sums["near/"][:, 1, 1]
    assert told.value == pytest.approx(1 - error_P.sum() / copied_P.sum(), abs=1e-12)
    # By hand: one resample at a time, takes with their sums as often as they are drawn.
    draws_RP = draw_takes(NUM_TAKES, NUM_RESAMPLES, np.random.default_rng(RESAMPLING_SEED))
    drawn = [np.repeat(np.arange(NUM_TAKES), draws_P) for draws_P in draws_RP]
    by_hand = np.array([1 - error_P[takes].sum() / copied_P[takes].sum() for takes in drawn])
    assert told.standard_error == pytest.approx(by_hand.std() * np.sqrt(NUM_TAKES / (NUM_TAKES - 1)), rel=1e-9)
    assert told.num_takes == NUM_TAKES


def test_what_two_models_share_cancels_and_seeds_are_paired() -> None:
    others = [made(seed, 0.9) for seed in (3, 4)]
    models = []
    for other, gained in zip(others, (0.1, 0.2), strict=True):
        sums = {}
        for name, sums_P2K in other.sums.items():
            copied_PK = sums_P2K[:, 1]
            sums[name] = np.stack([sums_P2K[:, 0] - gained * copied_PK, copied_PK], axis=1)
        models.append(TakeErrors(other.takes, sums))
    for model, other, gained in zip(models, others, (0.1, 0.2), strict=True):
        told = skill_gain([model], [other], "", 1)
        assert told is not None
        assert told.value == pytest.approx(gained, abs=1e-12)
        assert told.standard_error == pytest.approx(0, abs=1e-9), "the takes are no harder for one than for the other"
        alone = skill([model], "", 1)
        assert alone is not None
        assert alone.standard_error is not None
        assert alone.standard_error > 0.005
    both = skill_gain(models, others, "", 1)
    assert both is not None
    assert both.of_seed == pytest.approx((0.1, 0.2), abs=1e-12)


def test_nothing_is_told_of_other_takes_places_and_steps_or_where_nothing_moves() -> None:
    model, other = made(2, 0.8), made(3, 0.9)
    assert skill_gain([model], [other._replace(takes=("x", *other.takes[1:]))], "", 1) is None
    assert skill([model], "elsewhere/", 1) is None
    assert skill([model], "", NUM_STEPS + 1) is None
    assert skill([], "", 1) is None
    still = TakeErrors(model.takes, {"": np.zeros((NUM_TAKES, 2, NUM_STEPS))})
    assert skill([still], "", 1) is None
    # Gaze that is known in one take only: resamples without it say nothing, the others all the same.
    sums_P2K = np.zeros((NUM_TAKES, 2, NUM_STEPS))
    sums_P2K[4] = [[0.5] * NUM_STEPS, [1.0] * NUM_STEPS]
    told = skill([TakeErrors(model.takes, {"near/": sums_P2K})], "near/", 1)
    assert told is not None
    assert (told.value, told.standard_error) == (0.5, 0)


def test_the_file_is_the_runs_own_or_refused(tmp_path: Path) -> None:
    model = made(2, 0.8)
    recorded = write_errors(tmp_path, model)
    again = read_errors(tmp_path, recorded)
    assert again is not None
    assert again.takes == model.takes
    assert all(np.array_equal(again.sums[name], model.sums[name]) for name in model.sums)
    assert read_errors(tmp_path, None) is None
    with pytest.raises(RunError, match="is not what the run wrote"):
        read_errors(tmp_path, "0" * 64)
    (tmp_path / FILE).unlink()
    with pytest.raises(RunError, match=r"No such file(?s:.*)--resume"):
        read_errors(tmp_path, recorded)
