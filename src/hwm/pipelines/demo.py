"""`hwm demo`: the whole of the mission at small size, from nothing to a report.

A toy world is drawn → stage 1 with gaze and without (same seed, same clips) → stage 2 on both, each with the gaze point
in its probe and without, and on the encoder alone → one `report.html` with the known ceilings. The same pipelines as
any other run: this file only calls them and tells.
"""

import time
from pathlib import Path
from typing import NamedTuple

from hwm.config import AnticipateConfig, DemoConfig, Gaze, GazelleConfig, PretrainConfig, TokenConfig
from hwm.data.toyworld import ToyWorldSummary, generate
from hwm.engine.logged import read_metrics
from hwm.engine.progress import Progress
from hwm.engine.provenance import provenance
from hwm.engine.runtime import StopFlag
from hwm.errors import ConfigError
from hwm.evaluation.demo_report import Arm, Arms, BestScores, DemoFindings, write_report
from hwm.evaluation.metrics import per_class_recall, top_k_hits
from hwm.pipelines import anticipate, pretrain
from hwm.pipelines.anticipate import AnticipateResult
from hwm.pipelines.examples import annotated_examples
from hwm.pipelines.pretrain import PretrainResult

BOTH = "gaze in world model and probe"
PROBE = "gaze in probe"
WORLD_MODEL = "gaze in world model"
NOWHERE = "no gaze"
ENCODER_ONLY = "encoder only, no gaze"


class DemoResult(NamedTuple):
    """What the demo found."""

    report: Path
    skill: dict[str, float]
    """Stage 1, by arm: share of the copy's error that the roll-out removes at its last step."""
    scores: dict[str, dict[str, float]]
    """Stage 2, and the baselines and ceilings beside it."""
    seconds: float


def run(config: DemoConfig) -> DemoResult:
    """Draw, train, score, report.

    Raises:
        HwmError: a folder that cannot be used, or whatever the stages raise.
    """
    started = time.monotonic()
    folder = config.folder
    with StopFlag() as stop, Progress("toy world, takes drawn", total=config.world.num_takes) as bar:
        world = generate(folder / "world", config.world, stop.checked(lambda done, total: bar.set(done)))

    stage1 = {
        WORLD_MODEL: pretrain.run(_stage1(config, "stage1-gaze", "estimated"), resume=False),
        NOWHERE: pretrain.run(_stage1(config, "stage1-no-gaze", "none"), resume=False),
    }
    gaze, no_gaze = stage1[WORLD_MODEL], stage1[NOWHERE]
    inputs, own = config.anticipate.probe.inputs, config.pretrain.gazelle
    stage2 = {
        name: anticipate.run(settings)
        for name, settings in {
            BOTH: _stage2(config, "stage2-gaze-both", gaze, inputs, gaze_point="estimated"),
            PROBE: _stage2(config, "stage2-gaze-probe", no_gaze, inputs, gaze_point="estimated", gazelle=own),
            WORLD_MODEL: _stage2(config, "stage2-gaze-world-model", gaze, inputs, gaze_point="none"),
            NOWHERE: _stage2(config, "stage2-no-gaze", no_gaze, inputs, gaze_point="none"),
            ENCODER_ONLY: _stage2(config, "stage2-encoder", no_gaze, "context", gaze_point="none"),
        }.items()
    }

    best = best_scores(world, config.anticipate.protocol.horizon_sec)
    pictures, clip = annotated_examples(gaze.folder, stage2[BOTH], stage2[NOWHERE], config.num_examples)
    findings = _findings(config, stage1, stage2, best, round(time.monotonic() - started, 1))
    report = write_report(folder / "report.html", findings, pictures, clip)
    shown = ("top1", "top5", "mean_average_precision", "class_mean_recall_at_1")
    rows = {arm.name: arm.scores for arm in findings.arms} | dict(findings.baselines)
    table = {name: {metric: row[metric] for metric in shown} for name, row in rows.items()}
    ceilings = {
        "best possible, gaze known": {"top1": best.with_gaze},
        "best possible, history alone": {"top1": best.without_gaze},
    }
    farthest = f"skill_{config.pretrain.data.num_steps // 2}"
    skill = {name: result.validation[farthest] for name, result in stage1.items() if farthest in result.validation}
    return DemoResult(report, skill, table | ceilings, findings.seconds)


def best_scores(world: ToyWorldSummary, horizon_sec: float) -> BestScores:
    """The ceiling of the validation takes at one horizon.

    Raises:
        ConfigError: the toy world's ceilings do not include the horizon.
    """
    for ceiling in world.ceilings["val"]:
        if ceiling.horizon_sec == horizon_sec:
            return BestScores(
                ceiling.with_gaze,
                ceiling.without_gaze,
                ceiling.realised_with_gaze,
                ceiling.realised_without_gaze,
            )
    known = ", ".join(f"{ceiling.horizon_sec:g}" for ceiling in world.ceilings["val"])
    raise ConfigError("the toy world has no ceiling at this horizon", expected=known, found=f"{horizon_sec:g} s")


def _stage1(config: DemoConfig, name: str, gaze: Gaze) -> PretrainConfig:
    lists = config.folder / "world" / "lists"
    data = config.pretrain.data.model_copy(
        update={"train": (str(lists / f"train_{config.view}.txt"),), "val": (str(lists / f"val_{config.view}.txt"),)}
    )
    return config.pretrain.model_copy(
        update={"name": name, "folder": config.folder, "gaze": gaze, "data": data, "tokens": _tokens(config)}
    )


def _stage2(
    config: DemoConfig, name: str, stage1: PretrainResult, inputs: str, *, gaze_point: Gaze,
    gazelle: GazelleConfig | None = None,
) -> AnticipateConfig:  # fmt: skip
    world = config.folder / "world"
    annotations = config.anticipate.annotations.model_copy(
        update={
            "train": world / "annotations" / "keystep_train.json",
            "val": world / "annotations" / "keystep_val.json",
            "videos": world,
            "takes": world / "takes.json",
            "view": config.view,
        }
    )
    return config.anticipate.model_copy(
        update={
            "name": name,
            "folder": config.folder,
            "checkpoint": stage1.folder,
            "annotations": annotations,
            "probe": config.anticipate.probe.model_copy(update={"inputs": inputs, "gaze_point": gaze_point}),
            "gazelle": gazelle,
            "tokens": _tokens(config),
        }
    )


def _tokens(config: DemoConfig) -> TokenConfig:
    return TokenConfig(source="cached", folder=config.folder / "tokens")


def _findings(
    config: DemoConfig,
    stage1: dict[str, PretrainResult],
    stage2: dict[str, AnticipateResult],
    best: BestScores,
    seconds: float,
) -> DemoFindings:
    scored = stage2[BOTH]
    facts = provenance()
    return DemoFindings(
        arms=Arms(*(_arm(name, stage1.get(name), result) for name, result in stage2.items())),  # in their order
        baselines={name: scored.scores[name] for name in ("majority", "previous step")},
        best=best,
        takes_S=[sample.segment.take for sample in scored.samples],
        horizon_sec=config.anticipate.protocol.horizon_sec,
        view=f"the camera {config.view}",
        expected=len(scored.samples) + len(scored.excluded),
        exclusions=scored.excluded,
        provenance={
            "Protocol": {"id": config.anticipate.protocol.id, "class table sha256": scored.classes.sha256},
            "Toy world": {"takes": config.world.num_takes, "seed": config.world.seed, "gaze": config.world.gaze},
            "Stage-1 weights": {name: result.predictor_sha256 for name, result in stage1.items()},
            "Software": facts["versions"],
            "Run": {"command": " ".join(facts["command"]), "seed": config.pretrain.seed, "seconds": seconds},
        },
        seconds=seconds,
    )


def _arm(name: str, stage1: PretrainResult | None, stage2: AnticipateResult) -> Arm:
    recall, support = per_class_recall(stage2.logits_SC, stage2.labels_S, 1)
    named = zip(stage2.classes.names, recall.tolist(), support.tolist(), strict=True)
    return Arm(
        name,
        stage2.scores["probe"],
        top_k_hits(stage2.logits_SC, stage2.labels_S, 1).numpy(),
        () if stage1 is None else read_metrics(stage1.folder),
        {} if stage1 is None else stage1.validation,
        {step: (value, count) for step, value, count in named if count},
    )
