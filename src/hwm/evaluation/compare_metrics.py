"""`metrics.json`: every number of the comparison's report, for machines.

    {"schema": 1, "headline_sec": 1.0, "arms": {"probe": {"scores": {"1": {"top1": {"value": 0.39, "low": …, …}}}}},
     "pairs": [{"arm": "world+probe", "other": "probe", "horizons": {…}, "verdicts": [{"metric": "top1", …}]}], …}

Shares are fractions, with bounds within 0..1 (differences: within -1..1). Horizons are keys as text in seconds
(`"0.5"`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwm.errors import naming
from hwm.evaluation.compare_sections import highest
from hwm.evaluation.compare_world import World
from hwm.evaluation.differences import Difference
from hwm.evaluation.experiment import Arm, Experiment
from hwm.evaluation.paired_comparison import Comparison
from hwm.evaluation.resampled import METRICS
from hwm.evaluation.resampled_calibration import CALIBRATIONS

SCHEMA = 1


def write_metrics(
    path: Path,
    experiment: Experiment,
    worlds: Mapping[str, World],
    best: Mapping[str, Mapping[float, float]],
    provenance: Mapping[str, Mapping[str, object]],
    notes: Sequence[str],
) -> Path:
    """Write all numbers of a comparison; returns `path`."""
    content = {
        "schema": SCHEMA,
        "headline_sec": experiment.headline_sec,
        "equivalence": experiment.bound,
        "num_segments": experiment.num_scored,
        "num_takes": experiment.num_takes,
        "arms": {arm.name: _arm(experiment, arm) for arm in experiment.arms.values()},
        "best_possible": {label: {f"{tau:g}": top1 for tau, top1 in of.items()} for label, of in best.items()},
        "pairs": [_pair(experiment, arm, other) for arm, other in experiment.pairs()],
        "world_models": {label: _world(world) for label, world in worlds.items()},
        "notes": list(notes),
        "provenance": provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with naming(path):
        aside.write_text(json.dumps(content, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
        aside.replace(path)
    return path


def _arm(experiment: Experiment, arm: Arm) -> dict[str, Any]:
    scores = {
        f"{horizon:g}": {
            metric: _difference(score, 0.0, highest(metric, [arm]))
            for metric in (*METRICS, *CALIBRATIONS)
            if (score := experiment.score(arm.name, metric, horizon)) is not None
        }
        for horizon in experiment.horizons
    }
    selective = experiment.selective_accuracy(arm.name)
    shares = [_difference(share, 0.0, 1.0) for share in selective.accuracy]
    return {
        "title": arm.title, "kind": arm.kind, "seeds": experiment.seeds(arm.name), "scores": scores,
        "selective_accuracy": {"coverage": list(selective.coverage), "top1": shares},
    }  # fmt: skip


def _world(world: World) -> dict[str, Any]:
    """What stage 1 recorded, by seed."""
    return {
        "seconds_a_step": 1 / world.fps,
        "view_px": world.view_px,
        "seeds": {str(r.seed): {"validation": dict(r.validation), "gaze_forecast": r.forecast} for r in world.runs},
    }


def _pair(experiment: Experiment, arm: str, other: str) -> dict[str, Any]:
    gains = {
        f"{horizon:g}": _difference(gain, -1.0, 1.0)
        for horizon in experiment.horizons
        if (gain := experiment.gain(arm, other, "top1", horizon)) is not None
    }
    both = [experiment.arms[name] for name in (arm, other)]
    calibration = {
        name: _difference(gain, -most, most)
        for name in CALIBRATIONS
        if (gain := experiment.gain(arm, other, name, experiment.headline_sec)) is not None
        and (most := highest(name, both))
    }
    classes = [
        {"class": experiment.class_names[gain.label], "num_segments": gain.support}
        | _difference(gain.difference, -1.0, 1.0)
        for gain in experiment.class_gains(arm, other)
    ]
    verdicts = [_verdict(found) for found in experiment.verdicts(arm, other)]
    return {
        "arm": arm, "other": other, "horizons": gains, "calibration": calibration, "classes": classes,
        "verdicts": verdicts,
    }  # fmt: skip


def _verdict(found: Comparison) -> dict[str, Any]:
    return {
        "task": found.task,
        "metric": found.metric,
        "value": found.value_a,
        "other": found.value_b,
        "difference": _difference(found.difference, -1.0, 1.0),
        "adjusted_p": found.adjusted_p,
        "outcome": str(found.decision.outcome),
        "text": found.decision.text,
        "sign_test": None if found.sign_test is None else found.sign_test._asdict(),
        "permutation_p": found.permutation_p,
        "smallest_detectable": found.difference.smallest_detectable(),
    }


def _difference(difference: Difference, least: float, most: float) -> dict[str, Any]:
    interval = difference.interval().within(least, most)
    told = {"value": interval.value, "low": interval.low, "high": interval.high, "level": interval.level}
    return told | {"p": difference.p_value, "of_seed": list(difference.of_seed)}
