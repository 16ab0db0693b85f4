"""Skill of world models with its interval over takes, and what one model gains over another on the same takes.

    world_scores.json      schema, takes, and of each take the errors that skill is made of, by place and step ahead

Skill is 1 − error / error of the copy, each summed over clips (`world_scores`). A resample of the takes sums over the
clips of the takes that it draws, as often as it draws them; all models see the same resamples. `differences` makes the
interval, over takes and seeds.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from hwm.errors import RunError, naming
from hwm.evaluation.differences import Difference, difference_of
from hwm.evaluation.statistics import NUM_RESAMPLES, RESAMPLING_SEED, draw_takes

FILE = "world_scores.json"
SCHEMA = 1


class TakeErrors(NamedTuple):
    """What skill is made of, take by take."""

    takes: tuple[str, ...]
    sums: Mapping[str, Float[np.ndarray, "p 2 k"]]
    """Place ("" is everywhere; see `world_scores`) → the error and the copy's error, summed over the clips of each of
    the P takes, 1 … K steps ahead."""


def write_errors(folder: Path, errors: TakeErrors) -> str:
    """Write `world_scores.json` into a run folder; its sha256."""
    sums = {place: sums_P2K.tolist() for place, sums_P2K in errors.sums.items()}
    tree = {"schema_version": SCHEMA, "takes": errors.takes, "sums": sums}
    aside = folder / f"{FILE}.tmp"
    content = json.dumps(tree, allow_nan=False).encode()
    with naming(folder / FILE):
        aside.write_bytes(content)
        aside.replace(folder / FILE)
    return hashlib.sha256(content).hexdigest()


def read_errors(folder: Path, recorded: str | None) -> TakeErrors | None:
    """What `write_errors` wrote.

    Args:
        folder: of the run.
        recorded: the sha256 that its `run.json` says; None where the run is older than this file.

    Raises:
        RunError: the file is not there, not the run's, or of another version.
    """
    if recorded is None:
        return None
    path = folder / FILE
    try:
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found == recorded:
            tree = json.loads(content)
            if tree["schema_version"] == SCHEMA:
                return TakeErrors(tuple(tree["takes"]), {place: np.array(of) for place, of in tree["sums"].items()})
            found = f"schema {tree['schema_version']}"
    except OSError as error:
        found = error.strerror or str(error)
    raise RunError(
        f"{path} is not what the run wrote", expected=f"sha256 {recorded}, schema {SCHEMA}", found=found,
        fix="write it again, nothing is trained: hwm pretrain CONFIG --resume",
    )  # fmt: skip


def skill(models: Sequence[TakeErrors], place: str, step: int) -> Difference | None:
    """Skill of a model (its difference from none), a training a seed; None where it cannot be told.

    Args:
        models: of each seed.
        place: a key of `TakeErrors.sums`.
        step: steps ahead, from 1.
    """
    return _difference([models], place, step)


def skill_gain(models: Sequence[TakeErrors], others: Sequence[TakeErrors], place: str, step: int) -> Difference | None:
    """Skill of a model less that of another, seed by seed on the same takes; see `skill`."""
    return _difference([models, others], place, step)


def _difference(sides: Sequence[Sequence[TakeErrors]], place: str, step: int) -> Difference | None:
    every = [errors for models in sides for errors in models]
    if not every or any(errors.takes != every[0].takes for errors in every):
        return None
    if any(place not in errors.sums or not 0 < step <= errors.sums[place].shape[2] for errors in every):
        return None
    num_takes = len(every[0].takes)
    draws_RP = draw_takes(num_takes, NUM_RESAMPLES, np.random.default_rng(RESAMPLING_SEED))
    draws_RP = np.vstack([np.ones((1, num_takes), dtype=draws_RP.dtype), draws_RP])
    of_side = [np.stack([_skill(errors.sums[place][:, :, step - 1], draws_RP) for errors in of], 1) for of in sides]
    told_RJ = of_side[0] if len(sides) == 1 else of_side[0] - of_side[1]
    if not np.isfinite(told_RJ[0]).all():
        return None
    told_RJ = told_RJ[np.isfinite(told_RJ).all(axis=1)]  # a resample without any clip of this place says nothing
    return difference_of(told_RJ[0], told_RJ[1:], num_takes)


def _skill(sums_P2: NDArray[np.float64], draws_RP: NDArray[np.int64]) -> NDArray[np.float64]:
    error_R, copied_R = (draws_RP @ sums_P2).T
    return np.divide(copied_R - error_R, copied_R, out=np.full(len(draws_RP), np.nan), where=copied_R > 0)
