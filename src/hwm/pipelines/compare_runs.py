"""From finished stage-2 runs to the report: `hwm compare --from RUN...`.

Run folders of `anticipate` -> what each said, which arm it is (told by its settings, not by its name), the training of
its world model -> `report.html`, `figures/` and `metrics.json`. Runs must have finished, share one protocol and one
class table, and have seen the same segments; whatever does not fit is an error that names the run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnticipateConfig, CompareConfig, PretrainConfig
from hwm.data.protocol import START_MINUS_TAU
from hwm.engine.assemble import CHECKPOINTS
from hwm.engine.provenance import provenance
from hwm.engine.runlog import MAY_CHANGE, flat_settings, read_facts, read_metrics
from hwm.errors import DataError, RunError
from hwm.evaluation.compare_report import CompareFindings, Written, write_report
from hwm.evaluation.compare_world import World
from hwm.evaluation.experiment import Arm, Experiment, Run
from hwm.evaluation.outputs import read_outputs
from hwm.evaluation.paired_comparison import BOUNDS
from hwm.pipelines.anticipate import curve_name
from hwm.pipelines.compare_arms import ARMS, name_of
from hwm.pipelines.compare_examples import choose_pair, example_pictures
from hwm.pipelines.scoring import BASELINES, baseline_file
from hwm.recipes import load_config

_OF_ARMS = (
    "name", "seed", "checkpoint", "tokens", "gaze", "runtime.devices", "backbone", "probe.gaze_point", "probe.inputs",
)  # fmt: skip
"""Settings that tell arms apart, or decide nothing; `gaze` begins `gaze_control`, `gazelle` and `gaze_files` too."""


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
    runs = [read_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in folders)]
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
        provenance=_provenance(runs),
        notes=(*(f"Missing: {failed}" for failed in missing), *_warnings(runs), *_cautions(runs)),
        is_legacy=first.config.protocol.id != START_MINUS_TAU,
    )
    return write_report(out, findings, pictures)


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
            fix="give run folders of stage 2, after they have finished",
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
        about.get("gaze_forecast", {}),
    )  # fmt: skip
    return FinishedRun(
        folder, name_of(stage1, config), config, stage1, facts, run, about.get("initial_sha256"), baselines
    )


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
            label = {"none": "without gaze"}.get(run.stage1.gaze, f"with {run.stage1.gaze} gaze")
            label = label if control == "none" else f"{label}, {control}"
            worlds.setdefault(label, {})[run.run.seed] = run
    told = {}
    for label, of in sorted(worlds.items()):
        first = next(iter(of.values())).stage1
        assert first is not None, "only runs on a world model are here"
        told[label] = World([of[seed].run for seed in sorted(of)], first.data.fps, first.encoder.resolution)
    return told


def _cautions(runs: Sequence[FinishedRun]) -> list[str]:
    """What the numbers do not say."""
    said = []
    sources = {run.stage1.gaze for run in runs if run.stage1} | {run.config.probe.gaze_point for run in runs}
    if "measured" in sources:
        said.append("Measured gaze is an input that the data set's official track does not allow: no entry for it.")
    annotations = runs[0].config.annotations
    if annotations.dataset == "keystep" and annotations.view != "ego":
        said.append(
            f"The camera {annotations.view} sees the person, so that the arm without gaze can learn where heads point."
        )
    elif "estimated" in sources:
        said.append(
            "Gaze-LLE was made for a visible person; in an ego view its map is a guess of what draws attention."
        )
    return said


def _provenance(runs: Sequence[FinishedRun]) -> dict[str, dict[str, object]]:
    """Code, protocol, data, weights and matching, each as names and values."""
    facts, first = provenance(), runs[0]
    annotations = first.config.annotations
    weights = {name: digest for run in runs for name, digest in run.facts.get("weights", {}).items()}
    predictors = {
        f"{run.arm}, seed {run.run.seed}": run.facts["stage1"]["predictor_sha256"]
        for run in runs
        if run.stage1 is not None
    }
    return {
        "Protocol": {
            "id": first.config.protocol.id,
            "last frame seen": f"at or before start − {first.config.protocol.horizon_sec:g} s",
            "horizons of training": " to ".join(f"{sec:g} s" for sec in first.config.protocol.train_horizon_sec),
            **{f"class table of {name}, sha256": of["sha256"] for name, of in first.facts["classes"].items()},
        },
        "Data": {
            "data set": annotations.dataset,
            "view": annotations.view,
            "train": annotations.train,
            "val": annotations.val,
        },
        "Weights, sha256 of the files": dict(sorted(weights.items())),
        "World models, sha256 of the tensors": dict(sorted(predictors.items())),
        "Matched": _matched(runs),
        "Software": facts["versions"],
        "This report": {
            "command": " ".join(map(str, facts["command"])),
            "commit": _commit(facts.get("git")),
            "runs": ", ".join(run.folder.name for run in runs),
        },
    }


def _matched(runs: Sequence[FinishedRun]) -> dict[str, object]:
    """What paired runs share, by seed."""
    by_seed: dict[int, set[str]] = {}
    for run in runs:
        if run.initial_sha256 is not None:
            by_seed.setdefault(run.run.seed, set()).add(run.initial_sha256)
    initial = {f"initial weights, seed {seed}": " / ".join(sorted(found)) for seed, found in sorted(by_seed.items())}
    commits = sorted({_commit(run.facts.get("git")) for run in runs})
    return {**initial, "commits of the runs": ", ".join(commits)}


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "no checkout"
    changed = git["changed_files"]
    return git["commit"][:12] + (f" with {changed} changed files" if changed else "")


def _warnings(runs: Sequence[FinishedRun]) -> list[str]:
    """What a reader must know before the numbers: anything that is not matched."""
    said = []
    for seed in sorted({run.run.seed for run in runs}):
        found = {run.initial_sha256 for run in runs if run.run.seed == seed and run.initial_sha256}
        if len(found) > 1:
            said.append(f"Not matched: the initial weights of seed {seed} differ between arms.")
    for stage, configs in (
        ("stage 1", [run.stage1 for run in runs if run.stage1 is not None]),
        ("stage 2", [run.config for run in runs if run.arm != "vjepa2"]),
    ):
        if differing := settings_that_differ(configs):
            said.append(f"Not matched: {stage} of the arms differs in {', '.join(differing)}.")
    seeds = {arm: {run.run.seed for run in runs if run.arm == arm} for arm in dict.fromkeys(run.arm for run in runs)}
    everything = set.union(*seeds.values())
    lacking = [f"{arm} (seeds {sorted(everything - has)})" for arm, has in seeds.items() if has != everything]
    if lacking:
        said.append(f"Missing runs: {', '.join(lacking)}. Differences are over the seeds that both arms have.")
    if len(commits := {_commit(run.facts.get("git")) for run in runs}) > 1:
        said.append(f"The runs were made by different code: {', '.join(sorted(commits))}.")
    return said


def settings_that_differ(configs: Sequence[PretrainConfig | AnticipateConfig]) -> list[str]:
    """Settings in which runs differ that no arm asks for: anything but gaze, seed and names."""
    flat = [flat_settings(config.model_dump(mode="json")) for config in configs]
    keys = {key for settings in flat for key in settings if not key.startswith((*MAY_CHANGE, *_OF_ARMS))}
    return sorted(key for key in keys if len({json.dumps(settings.get(key)) for settings in flat}) > 1)
