"""What each arm, control and baseline of a comparison is: the settings in which it differs from the others.

A `CompareConfig`, the name of an arm and a seed -> the configurations of its two stages; and back: the configurations
of finished runs -> the name of the arm. All else (data, order of the clips, compute, initial weights of the world
models) is equal by construction, since it comes from one template and one seed.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from hwm.config import AnticipateConfig, CompareConfig, HwmBackboneConfig, PretrainConfig, RunConfig

Kind = Literal["arm", "control", "oracle", "baseline"]
_Run = TypeVar("_Run", bound=RunConfig)

UNNAMED = "unnamed"
"""Name of a configuration whose unit is not named yet."""


class ArmSpec(NamedTuple):
    """Where an arm has gaze, and what stands in for it."""

    title: str
    kind: Kind
    in_world: bool = False
    in_probe: bool = False
    world_control: str = "none"
    """`gaze_control` of stage 1."""
    point_control: str = "none"
    """`probe.gaze_point_control` of stage 2."""
    matched: str = ""
    """The arm that it differs from in this one thing."""


def _world_control(title: str, control: str, kind: Kind = "control") -> ArmSpec:
    return ArmSpec(title, kind, True, True, world_control=control, matched="world+probe")


def _point_control(title: str, control: str, kind: Kind = "control") -> ArmSpec:
    return ArmSpec(title, kind, in_probe=True, point_control=control, matched="probe")


ARMS: dict[str, ArmSpec] = {
    "none": ArmSpec("A · no gaze", "arm"),
    "probe": ArmSpec("B · gaze in probe", "arm", in_probe=True, matched="none"),
    "world": ArmSpec("C′ · gaze in world model", "arm", in_world=True, matched="none"),
    "world+probe": ArmSpec("C · gaze in world model and probe", "arm", True, True, matched="probe"),
    "shuffled": _world_control("C with another video's gaze", "shuffled"),
    "time-shuffled": _world_control("C with gaze in another order", "time-shuffled"),
    "mean": _world_control("C with the mean gaze", "mean"),
    "dinov2": _world_control("C with plain DINOv2 features", "dinov2"),
    "point-shuffled": _point_control("B with another video's gaze", "shuffled"),
    "point-time-shuffled": _point_control("B with gaze in another order", "time-shuffled"),
    "point-mean": _point_control("B with the mean gaze", "mean"),
    "measured": ArmSpec("C with measured gaze", "control", True, True, matched="world+probe"),
    "future": _world_control("C with the future's gaze (oracle)", "future", "oracle"),
    "point-future": _point_control("B with the future's gaze (oracle)", "future", "oracle"),
    "encoder": ArmSpec("encoder only", "baseline", matched="none"),
    "copy-last": ArmSpec("copy of the last latent", "baseline", matched="none"),
    "vjepa2": ArmSpec("V-JEPA 2's own predictor", "baseline", matched="none"),
}
"""By name, in the order of the report; majority and previous step need no run of their own."""


def names(config: CompareConfig) -> tuple[str, ...]:
    """The arms, controls and baselines of a configuration that need runs, in the order of `ARMS`."""
    wanted = {*config.arms, *config.controls, *config.baselines}
    return tuple(name for name in ARMS if name in wanted)


def stage1_of(config: CompareConfig, name: str, seed: int) -> PretrainConfig:
    """Stage 1 of an arm; equal for arms that share their world model.

    Raises:
        pydantic.ValidationError: the template does not fit the arm.
    """
    spec, template = ARMS[name], config.pretrain
    source = "measured" if name == "measured" else template.gaze
    changes = {
        "gaze": source if spec.in_world else "none", "gaze_control": spec.world_control,
        "validation_gaze": template.gaze,
    }  # fmt: skip
    return _with(template, config, seed, changes)


def stage2_of(config: CompareConfig, name: str, seed: int, checkpoint: Path | None) -> AnticipateConfig:
    """Stage 2 of an arm, on the world model of `checkpoint`.

    Raises:
        pydantic.ValidationError: the template does not fit the arm.
    """
    spec, template = ARMS[name], config.anticipate
    if name == "vjepa2":
        assert config.vjepa2 is not None
        live = {"source": "live", "folder": None}  # its clips are encoded as a whole
        return _with(config.vjepa2, config, seed, {"protocol": _horizons(config), "tokens": live})
    source = "measured" if name == "measured" else config.pretrain.gaze
    probe = {"gaze_point": source if spec.in_probe else "none", "gaze_point_control": spec.point_control}
    if name == "encoder":
        probe["inputs"] = "context"
    changes: dict[str, Any] = {
        "checkpoint": checkpoint,
        "backbone": {"rollout": "copy-last" if name == "copy-last" else "imagined"},
        "protocol": _horizons(config),
        "probe": probe,
        "gazelle": config.pretrain.gazelle.model_dump() if _needs_gazelle(spec, source) else None,
    }
    if source == "measured" and (spec.in_world or spec.in_probe):  # the gaze that stage 1 reads, unless said otherwise
        said = template.gaze_files.model_dump(exclude_defaults=True)
        changes["gaze_files"] = config.pretrain.gaze_files.model_dump() | said
    return _with(template, config, seed, changes)


def name_of(stage1: PretrainConfig | None, stage2: AnticipateConfig) -> str:
    """The arm that a finished run is.

    Args:
        stage1: of the world model; None for V-JEPA 2's own pair.
        stage2: of the run.
    """
    if stage1 is None:
        return "vjepa2"
    in_world, in_probe = stage1.gaze != "none", stage2.probe.gaze_point != "none"
    if stage1.gaze_control != "none":
        return stage1.gaze_control
    if stage2.probe.gaze_point_control != "none":
        return f"point-{stage2.probe.gaze_point_control}"
    if stage1.gaze == "measured" and stage1.validation_gaze == "estimated":  # the others of its comparison estimate it
        return "measured"
    if isinstance(stage2.backbone, HwmBackboneConfig) and stage2.backbone.rollout == "copy-last":
        return "copy-last"
    if stage2.probe.inputs == "context" and not (in_world or in_probe):
        return "encoder"
    arms = {(False, False): "none", (False, True): "probe", (True, False): "world", (True, True): "world+probe"}
    return arms[in_world, in_probe]


def _needs_gazelle(spec: ArmSpec, source: str) -> bool:
    """Whether the probe needs a Gazelle beside a world model that has none."""
    return spec.in_probe and not spec.in_world and source == "estimated"


def _horizons(config: CompareConfig) -> dict[str, Any]:
    headline = config.anticipate.protocol.horizon_sec
    others = tuple(horizon for horizon in config.horizons_sec if horizon != headline)
    return {"horizon_sec": headline, "curve_sec": others}


def _with(template: _Run, config: CompareConfig, seed: int, changes: dict[str, Any]) -> _Run:
    """A template with an arm's settings and what all runs share, validated as a whole."""
    shared = {
        "name": UNNAMED,
        "folder": config.folder / "units",
        "seed": seed,
        "runtime": config.runtime.model_dump(),
        "mirrors": config.mirrors,
        "tokens": {"source": "cached", "folder": config.folder / "tokens"},
    }
    settings = template.model_dump()
    for key, value in (shared | changes).items():
        inner = settings[key]
        settings[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return type(template).model_validate(settings)
