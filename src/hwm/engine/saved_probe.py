"""A trained stage-2 probe on disk: its tensors, its sizes, and the classes that its outputs mean.

`probe.safetensors` and `probe.json` in the format of `hwm.weights.ours`. Output i of a head is class i of a class
table; the same tensors under another table would name other steps without complaint, so the tables' hashes go with them
and are compared when the probe is read.
"""

from collections.abc import Sequence
from pathlib import Path

from hwm.config import AnticipateConfig
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


def load_probe(path: Path, tasks: Sequence[Task]) -> StepProbe:
    """Read a probe that `save_probe` wrote, for these tasks.

    Raises:
        WeightsError: a file is missing, damaged, or of another kind.
        DataError: the probe was trained on other class tables.
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
    probe = StepProbe(spec_from_plain(StepProbeSpec, stored.spec))
    probe.load_state_dict(stored.tensors, strict=True)
    return probe.requires_grad_(False).eval()


def future_slots(probe: StepProbe, wanted: int, config: AnticipateConfig) -> int:
    """The imagined steps that a saved probe reads.

    Raises:
        ConfigError: the probe was trained with other inputs, another window, or for a shorter horizon.
    """
    context = 0 if config.probe.inputs == "future" else config.protocol.num_steps
    slots = probe.spec.num_steps - context
    fits = slots == 0 if config.probe.inputs == "context" else slots >= wanted
    if not fits or probe.spec.gaze_point != config.probe.gaze_point:
        raise ConfigError(
            f"{config.saved_probe} does not fit probe.inputs, probe.gaze_point, protocol.num_steps or the horizon",
            expected=f"{probe.spec.num_steps} steps, gaze point {probe.spec.gaze_point}",
            found=f"{context} observed and {wanted} imagined steps, gaze point {config.probe.gaze_point}",
            fix="use the settings of the run that made the probe (its config.yaml)",
        )
    return max(slots, wanted)
