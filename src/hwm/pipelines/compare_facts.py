"""What the comparison's page says beside the numbers: cautions, what is not matched, provenance, shared settings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.engine.provenance import provenance
from hwm.engine.runlog import MAY_CHANGE, flat_settings
from hwm.pipelines.compare_read import FinishedRun
from hwm.terminal import counted

_OF_ARMS = (
    "name", "seed", "checkpoint", "tokens", "gaze", "runtime.devices", "backbone", "probe.gaze_point", "probe.inputs",
)  # fmt: skip
"""Settings that tell arms apart, or decide nothing; `gaze` begins `gaze_control`, `gazelle` and `gaze_files` too."""


def cautions(runs: Sequence[FinishedRun]) -> list[str]:
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


def _until(beyond_sec: float) -> str:
    return f"start + {beyond_sec:g} s" if beyond_sec else "the start"


def provenance_of(runs: Sequence[FinishedRun]) -> dict[str, dict[str, object]]:
    """Code, protocol, data, weights and matching, each as names and values."""
    facts, first = provenance(), runs[0]
    annotations = first.config.annotations
    predictors = {
        f"{run.arm}, seed {run.run.seed}": run.facts["stage1"]["predictor_sha256"]
        for run in runs
        if run.stage1 is not None
    }
    beyond = {run.config.protocol.beyond_start_sec for run in runs}
    return {
        "Protocol": {
            "id": first.config.protocol.id,
            "last frame seen": f"at or before start − {first.config.protocol.horizon_sec:g} s",
            "imagined up to": " or ".join(_until(sec) for sec in sorted(beyond)),
            "horizons of training": " to ".join(f"{sec:g} s" for sec in first.config.protocol.train_horizon_sec),
            **{f"class table of {name}, sha256": of["sha256"] for name, of in first.facts["classes"].items()},
        },
        "Data": {
            "data set": annotations.dataset,
            "view": annotations.view,
            "train": annotations.train,
            "val": annotations.val,
        },
        "Data that were used": {what: " or ".join(sorted(of)) for what, of in _used(runs).items()},
        "Weights, sha256 of the files": {name: " / ".join(sorted(of)) for name, of in sorted(_weights(runs).items())},
        "World models, sha256 of the tensors": dict(sorted(predictors.items())),
        "Matched": _matched(runs),
        "Software": facts["versions"],
        "This report": {
            "command": " ".join(map(str, facts["command"])),
            "commit": _commit(facts.get("git")),
            "runs": ", ".join(run.folder.name for run in runs),
        },
    }


def _weights(runs: Iterable[FinishedRun]) -> dict[str, set[str]]:
    """Frozen model → sha256 of its files; several where runs read others under one name."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, digest in run.facts.get("weights", {}).items():
            found.setdefault(name, set()).add(digest)
    return found


def _used(runs: Iterable[FinishedRun]) -> dict[str, set[str]]:
    """Kind of data → how much of it was used and what was left out, in words; several where runs differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for what, told in run.coverage.items():
            reasons = ", ".join(f"{count} × {reason}" for reason, count in told["excluded"].items())
            said = f"{told['used']} of {told['expected']}" + (f" (left out: {reasons})" if reasons else "")
            found.setdefault(what, set()).add(said)
    return found


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
    return git["commit"][:12] + (f" with {counted(changed, 'changed file')}" if changed else "")


def warnings_of(runs: Sequence[FinishedRun]) -> list[str]:
    """What a reader must know before the numbers: what runs themselves warn of, and anything that is not matched."""
    said = _own_warnings(runs)
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
    own = _weights(run for run in runs if run.arm != "vjepa2")  # whose encoder may be another one
    if others := sorted(name for name, digests in own.items() if len(digests) > 1):
        said.append(f"Not matched: the weight files of {', '.join(others)} differ between runs.")
    for what, of in _used(runs).items():
        if len(of) > 1:
            said.append(f"Not matched: {what}: {' or '.join(sorted(of))}.")
    seeds = {arm: {run.run.seed for run in runs if run.arm == arm} for arm in dict.fromkeys(run.arm for run in runs)}
    everything = set.union(*seeds.values())
    lacking = [f"{arm} ({_seeds(everything - has)})" for arm, has in seeds.items() if has != everything]
    if lacking:
        said.append(f"Missing runs: {', '.join(lacking)}. Differences are over the seeds that both arms have.")
    if len(commits := {_commit(run.facts.get("git")) for run in runs}) > 1:
        said.append(f"The runs were made by different code: {', '.join(sorted(commits))}.")
    return said


def _own_warnings(runs: Sequence[FinishedRun]) -> list[str]:
    """What runs themselves warn of, each text once with the arms and seeds that say it."""
    warned: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        for text in run.warnings:
            warned.setdefault(text, {}).setdefault(run.arm, []).append(run.run.seed)
    return [
        f"Warning of {'; '.join(f'{arm}, {_seeds(of)}' for arm, of in seeds_of.items())}: {text}."
        for text, seeds_of in warned.items()
    ]


def _seeds(seeds: Iterable[int]) -> str:
    told = sorted(set(seeds))
    return f"seed{'s' if len(told) > 1 else ''} {', '.join(map(str, told))}"


def shared_settings(runs: Sequence[FinishedRun]) -> dict[str, dict[str, object]]:
    """Stage in words → setting → value, where all its runs have one value."""
    stages = {
        "stage 1": [run.stage1 for run in runs if run.stage1 is not None],
        "stage 2": [run.config for run in runs if run.arm != "vjepa2"],
    }
    shared: dict[str, dict[str, object]] = {}
    for stage, configs in stages.items():
        flat = [flat_settings(config.model_dump(mode="json")) for config in configs]
        if flat:
            shared[stage] = {
                key: json.dumps(value, ensure_ascii=False) for key, value in flat[0].items()
                if all(key in other and other[key] == value for other in flat)
            }  # fmt: skip
    return shared


def settings_that_differ(configs: Sequence[PretrainConfig | AnticipateConfig]) -> list[str]:
    """Settings in which runs differ that no arm asks for: anything but gaze, seed and names."""
    flat = [flat_settings(config.model_dump(mode="json")) for config in configs]
    keys = {key for settings in flat for key in settings if not key.startswith((*MAY_CHANGE, *_OF_ARMS))}
    return sorted(key for key in keys if len({json.dumps(settings.get(key)) for settings in flat}) > 1)
