"""A finished stage-2 run read back: what it said at every horizon, and the training of its world model.

A run folder of `hwm anticipate` -> `FinishedRun`. Which arm it is follows from its settings and those of its stage 1.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.assemble import CHECKPOINTS
from hwm.engine.logged import read_metrics
from hwm.engine.runlog import read_facts
from hwm.errors import RunError
from hwm.evaluation.experiment import Run
from hwm.evaluation.outputs import read_outputs
from hwm.evaluation.skill_by_take import read_errors
from hwm.pipelines.anticipate import curve_name
from hwm.pipelines.compare_arms import name_of
from hwm.pipelines.scoring import BASELINES, baseline_file
from hwm.recipes import load_config

_GIVE = "give run folders of stage 2, after they have finished"


class FinishedRun(NamedTuple):
    """One stage-2 run, read back."""

    folder: Path
    arm: str
    config: AnticipateConfig
    stage1: PretrainConfig | None
    facts: Mapping[str, Any]
    run: Run
    initial_sha256: str | None
    """Hash of the initial weights that models with and without gaze have in common."""
    baselines: Mapping[str, Run]
    """`majority` and `previous step`: what they said of the same segments."""
    warnings: tuple[str, ...]
    """What its own record warns of, and that of its stage 1."""
    coverage: Mapping[str, Mapping[str, Any]] = {}
    """What of its data was used and left out, by its own record and by that of its stage 1."""


def read_run(folder: Path) -> FinishedRun:
    """A finished stage-2 run.

    Raises:
        RunError: the folder is no finished run of `hwm anticipate`, or its files are damaged.
    """
    facts = read_facts(folder)
    if facts.get("verb") != "anticipate" or facts.get("status") != "finished":
        said = f"{facts.get('verb', 'no run.json')}, {facts.get('status', '')}".strip(", ")
        raise RunError(
            f"{folder} cannot be compared", expected="a finished run of `hwm anticipate`", found=said,
            fix=_GIVE + (": with a pattern, one that ends in / (units/stage2-*/)" if folder.is_file() else ""),
        )  # fmt: skip
    config = load_config(AnticipateConfig, folder / "config.yaml")
    stage1, below = _stage1(config, folder)
    suffixes = {config.protocol.horizon_sec: ""}
    suffixes |= {tau: curve_name(tau).removeprefix("val") for tau in config.protocol.curve_sec}
    outputs = {
        tau: read_outputs(folder, f"outputs{suffix}.safetensors", f"segments{suffix}.json")
        for tau, suffix in suffixes.items()
    }
    try:
        rows = json.loads((folder / "segments.json").read_bytes())["segments"]
        scenarios = {row["row"]: row["scenario"] for row in rows}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{folder} lacks what the report needs", found=f"{type(error).__name__}: {error}", fix="run stage 2 again"
        ) from error
    baselines = {
        name: Run(config.seed, {
            tau: read_outputs(folder, baseline_file(name, suffix), f"segments{suffix}.json")
            for tau, suffix in suffixes.items()
        }, scenarios)
        for name in BASELINES
    }  # fmt: skip
    about = {} if below is None else read_facts(below)
    trained = () if below is None else read_metrics(below)
    run = Run(
        config.seed, outputs, scenarios, read_metrics(folder), trained, about.get("validation", {}),
        None if below is None else read_errors(below, about.get("world_scores_sha256")),
        config.probe.loss == "focal", about.get("gaze_forecast", {}),
    )  # fmt: skip
    warnings = [*facts.get("warnings", ()), *(f"stage 1: {text}" for text in about.get("warnings", ()))]
    coverage = {f"stage 1, {what}": told for what, told in about.get("coverage", {}).items()} | facts["coverage"]
    return FinishedRun(
        folder, name_of(stage1, config), config, stage1, facts, run, about.get("initial_sha256"), baselines,
        tuple(warnings), coverage,
    )  # fmt: skip


def _stage1(config: AnticipateConfig, folder: Path) -> tuple[PretrainConfig | None, Path | None]:
    """The configuration and run folder of the world model under a run; None for V-JEPA 2's own pair."""
    if config.checkpoint is None:
        return None, None
    path = config.checkpoint
    run = path.parents[1] if path.parent.name == CHECKPOINTS else path
    if not (run / "config.yaml").is_file():
        raise RunError(
            f"{folder} stands on {path}, whose settings cannot be read", expected=f"{run / 'config.yaml'}",
            fix="the arm of a run is told by stage 1's settings: put its run folder back (relative paths start here)",
        )  # fmt: skip
    return load_config(PretrainConfig, run / "config.yaml"), run
