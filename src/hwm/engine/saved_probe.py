"""A trained stage-2 probe on disk: its tensors, its sizes, and what it reads and says.

`probe.safetensors` and `probe.json` in the format of `hwm.weights.ours`. Output i of a head is class i of a class
table, and token i is a step as one backbone sees it; the same tensors under another table or on another backbone would
name other steps without complaint. So what the probe was trained on goes with it and is compared when it is read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hwm.config import AnticipateConfig
from hwm.data.segments import Task
from hwm.errors import ConfigError, DataError
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.weights.ours import read_model, spec_from_plain, spec_to_plain, write_model

KIND = "step_probe"


class TrainedOn(NamedTuple):
    """What a probe must meet again to mean what it says."""

    classes_sha256: dict[str, str]
    """Task → hash of its class table."""
    frozen_sha256: dict[str, str]
    """The frozen models of the backbone, by name."""
    inputs: str
    num_steps: int
    """Observed steps."""
    gaze_point: str
    positions: bool
    gaze_point_control: str = "none"
    rollout: str = "imagined"
    pooler: str = "attentive"


def trained_on(tasks: Sequence[Task], frozen_sha256: dict[str, str], config: AnticipateConfig) -> TrainedOn:
    """What a probe of this run is trained on."""
    classes = {task.name: task.classes.sha256 for task in tasks}
    probe = config.probe
    return TrainedOn(
        classes,
        frozen_sha256,
        probe.inputs,
        config.protocol.num_steps,
        probe.gaze_point,
        probe.positions,
        probe.gaze_point_control,
        config.backbone.rollout if config.backbone.kind == "hwm" else "imagined",
        probe.pooler,
    )


def save_probe(path: Path, probe: StepProbe, given: TrainedOn) -> None:
    """Write a probe and what it was trained on.

    Raises:
        WeightsError: a value is not finite.
    """
    write_model(path, KIND, spec_to_plain(probe.spec), probe.state_dict(), notes=given._asdict())


def load_probe(path: Path, given: TrainedOn) -> StepProbe:
    """Read a probe that `save_probe` wrote, for a run like the one that made it.

    Raises:
        WeightsError: a file is missing, damaged, or of another kind.
        DataError: the probe was trained on other classes.
        ConfigError: it was trained on another backbone, or reads other inputs.
    """
    stored = read_model(path, KIND)
    for name, wanted in given._asdict().items():
        found = stored.notes.get(name, TrainedOn._field_defaults.get(name))  # older files lack the younger fields
        if found != wanted and name == "classes_sha256":
            raise DataError(
                f"{path} was trained on other classes than those of these annotations",
                expected=f"class tables (sha256) {wanted}",
                found=str(found),
                fix="use the training annotations and videos that the probe was trained on, or train a new one",
            )
        if found != wanted:
            raise ConfigError(
                f"{path} was trained on another {name}",
                expected=str(found),
                found=str(wanted),
                fix="use the checkpoint and settings of the run that made the probe (its config.yaml)",
            )
    probe = StepProbe(spec_from_plain(StepProbeSpec, stored.spec))
    probe.load_state_dict(stored.tensors, strict=True)
    return probe.requires_grad_(False).eval()
