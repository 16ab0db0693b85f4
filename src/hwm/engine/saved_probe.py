"""A trained stage-2 probe on disk: its tensors, its sizes, and the classes that its outputs mean.

`probe.safetensors` and `probe.json` in the format of `hwm.weights.ours`. Output i of a head is class i of a class
table; the same tensors under another table would name other steps without complaint, so the tables' hashes go with them
and are compared when the probe is read.
"""

from collections.abc import Sequence
from pathlib import Path

from hwm.config import ProbeConfig
from hwm.data.segments import Task
from hwm.errors import ConfigError, DataError
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.weights.ours import read_model, spec_from_plain, spec_to_plain, write_model

KIND = "step_probe"


def save_probe(path: Path, probe: StepProbe, tasks: Sequence[Task]) -> None:
    """Write a probe and the hashes of its class tables.

    Raises:
        WeightsError: a value is not finite.
    """
    classes = {task.name: task.classes.sha256 for task in tasks}
    write_model(path, KIND, spec_to_plain(probe.spec), probe.state_dict(), notes={"classes_sha256": classes})


def load_probe(path: Path, tasks: Sequence[Task], config: ProbeConfig) -> StepProbe:
    """Read a probe that `save_probe` wrote, for these tasks and settings.

    Raises:
        WeightsError: a file is missing, damaged, or of another kind.
        DataError: the probe was trained on other class tables.
        ConfigError: it was trained with or without a gaze point, or positions, unlike the settings.
    """
    stored = read_model(path, KIND)
    classes = {task.name: task.classes.sha256 for task in tasks}
    if stored.notes.get("classes_sha256") != classes:
        raise DataError(
            f"{path} was trained on other classes than those of these annotations",
            expected=f"class tables (sha256) {classes}",
            found=str(stored.notes.get("classes_sha256")),
            fix="use the training annotations and videos that the probe was trained on, or train a new one",
        )
    spec = spec_from_plain(StepProbeSpec, stored.spec)
    if (spec.gaze_point, spec.positions) != (config.gaze_point, config.positions):
        raise ConfigError(
            f"{path} does not fit probe.gaze_point or probe.positions",
            expected=f"gaze_point {spec.gaze_point}, positions {spec.positions}",
            found=f"gaze_point {config.gaze_point}, positions {config.positions}",
            fix="use the settings of the run that made the probe (its config.yaml)",
        )
    probe = StepProbe(spec)
    probe.load_state_dict(stored.tensors, strict=True)
    return probe.requires_grad_(False).eval()
