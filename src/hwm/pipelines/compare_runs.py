"""From finished stage-2 runs to the report: `hwm compare --from RUN...`.

Run folders of `anticipate` -> what each said, which arm it is (told by its settings, not by its name), the training of
its world model -> `report.html`, `figures/` and `metrics.json`. Runs must have finished, share one protocol and one
class table, and have seen the same segments; whatever does not fit is an error that names the run.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from hwm.config import CompareConfig
from hwm.data.protocol import START_MINUS_TAU
from hwm.engine.progress import LateProgress
from hwm.errors import DataError, RunError
from hwm.evaluation.compare_report import CompareFindings, Written, write_report
from hwm.evaluation.compare_world import WITHOUT_GAZE, World
from hwm.evaluation.experiment import Arm, Experiment
from hwm.evaluation.paired_comparison import BOUNDS
from hwm.pipelines.compare_arms import ARMS
from hwm.pipelines.compare_examples import choose_pair, example_pictures
from hwm.pipelines.compare_facts import cautions, provenance_of, shared_settings, warnings_of
from hwm.pipelines.compare_read import FinishedRun, read_run
from hwm.pipelines.scoring import BASELINES


def run(folders: Sequence[Path], out: Path, *, frames: bool) -> Written:
    """`hwm compare --from RUN...`: a report of finished runs, and nothing else.

    Raises:
        HwmError: see `report_on`.
    """
    return report_on(folders, out, CompareConfig.model_fields["num_examples"].default if frames else 0)


def report_on(
    folders: Sequence[Path],
    out: Path,
    num_examples: int,
    ceilings: Path | None = None,
    missing: Sequence[str] = (),
    bound: float = BOUNDS["top1"],
) -> Written:
    """Write the report of finished stage-2 runs to a folder.

    Args:
        folders: run folders of `hwm anticipate`.
        out: where `report.html`, `metrics.json` and `figures/` go.
        num_examples: annotated frames; 0 opens no video.
        ceilings: `toyworld.json` with the best possible scores.
        missing: units that failed, to be told in the report.
        bound: differences of Top-1 of this share or less do not matter.

    Raises:
        DataError: runs that cannot be compared.
        RunError: a folder is no finished stage-2 run.
    """
    runs = _matched([read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in folders)])
    _require_one_question(runs)
    first = runs[0]
    experiment = Experiment(_arms(runs), first.config.protocol.horizon_sec, bound)
    pictures = []
    if num_examples and (pair := choose_pair(experiment)) is not None:
        chosen = [next(r for r in runs if r.arm == arm and r.run.seed == pair.seed).folder for arm in pair[:2]]
        pictures = example_pictures(experiment, pair, chosen[0], chosen[1], num_examples)
    findings = CompareFindings(
        experiment,
        worlds=_worlds(runs),
        best=_ceilings(ceilings),
        coverage=_coverage(first),
        provenance=provenance_of(runs),
        notes=(*(f"Missing: {failed}" for failed in missing), *warnings_of(runs), *cautions(runs)),
        is_legacy=first.config.protocol.id != START_MINUS_TAU,
        settings=shared_settings(runs),
    )
    with LateProgress("parts of the page") as bar:
        return write_report(out, findings, pictures, bar)


def _arms(runs: Sequence[FinishedRun]) -> list[Arm]:
    """The arms in the order of the report; last the baselines that see no video, once a seed."""
    arms = [
        Arm(name, spec.title, spec.kind, spec.matched, [r.run for r in sorted(of, key=lambda r: r.run.seed)])
        for name, spec in ARMS.items()
        if (of := [run for run in runs if run.arm == name])
    ]
    of_seed = {run.run.seed: run.baselines for run in reversed(runs)}
    for title in BASELINES:
        told = [of_seed[seed][title] for seed in sorted(of_seed)]
        arms.append(Arm(title.replace(" ", "-"), title, "baseline", "none", told, is_trained=False))
    return arms


def _matched(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Where no probe reads imagined steps, the one without gaze is no baseline: the others are matched with it."""
    if any(run.config.probe.inputs != "context" for run in runs if run.arm != "vjepa2"):
        return list(runs)
    return [run._replace(arm="none") if run.arm == "encoder" else run for run in runs]


def _require_one_question(runs: Sequence[FinishedRun]) -> None:
    """All runs must have been asked the same thing."""
    if not runs:
        raise RunError("there is nothing to compare", fix="give run folders of stage 2: hwm compare --from RUN...")
    first = runs[0]
    for run in runs[1:]:
        for what, expected, found in (
            ("protocol", first.config.protocol.id, run.config.protocol.id),
            ("horizon", first.config.protocol.horizon_sec, run.config.protocol.horizon_sec),
        ):
            if expected != found:
                raise DataError(
                    f"{run.folder} and {first.folder} do not share one {what}", expected=str(expected),
                    found=str(found), fix="compare runs that answer the same question",
                )  # fmt: skip


def _coverage(run: FinishedRun) -> tuple[int, list[tuple[str, str]]]:
    """Expected validation segments, and those left out with their reasons."""
    told = run.facts["coverage"]["val segments"]
    return told["expected"], [(item["item"], item["reason"]) for item in told["items"]]


def _ceilings(path: Path | None) -> dict[str, dict[float, float]]:
    """Best possible Top-1 of the validation takes by horizon, of an observer who knows gaze and of one who does not."""
    if path is None:
        return {}
    try:
        rows = json.loads(path.read_bytes())["ceilings"]["val"]
        return {
            f"best possible, {label}": {row["horizon_sec"]: row[key] for row in rows}
            for label, key in (("gaze known", "with_gaze"), ("history alone", "without_gaze"))
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path} holds no ceilings", expected="toyworld.json of `hwm toyworld`", found=f"{error}"
        ) from error


def _worlds(runs: Sequence[FinishedRun]) -> dict[str, World]:
    """World model in words → what stage 1 recorded, once a seed; arms that share a world model count once."""
    worlds: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        if run.stage1 is not None:
            control = run.stage1.gaze_control
            label = {"none": WITHOUT_GAZE}.get(run.stage1.gaze, f"with {run.stage1.gaze} gaze")
            label = label if control == "none" else f"{label}, {control}"
            worlds.setdefault(label, {})[run.run.seed] = run
    told = {}
    for label, of in sorted(worlds.items()):
        first = next(iter(of.values())).stage1
        assert first is not None, "only runs on a world model are here"
        told[label] = World([of[seed].run for seed in sorted(of)], first.data.fps, first.encoder.resolution)
    return told
