"""The mean scene token of each patch (the control `mean` of gaze) in a stage-1 run folder, with its hash."""

from pathlib import Path

import torch
from torch import Tensor

from hwm.errors import RunError
from hwm.weights.files import hash_tensors
from hwm.weights.ours import read_model, write_model

MEAN_SCENE = "mean_scene.safetensors"
KIND = "mean_scene"


def save_mean_scene(run: Path, mean_NG: Tensor) -> None:
    """Write it to a run folder.

    Raises:
        WeightsError: a value is not finite.
    """
    write_model(run / MEAN_SCENE, KIND, {"shape": list(mean_NG.shape)}, {"mean": mean_NG.cpu()})


def load_mean_scene(run: Path, into_NG: Tensor, recorded: str | None) -> None:
    """Put what `save_mean_scene` wrote into a world model's buffer.

    Args:
        run: the run folder.
        into_NG: `WorldModel.mean_scene_NG`.
        recorded: the hash in the run's `run.json`.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
        RunError: it is not the one that the run recorded, or of another shape.
    """
    mean_NG = read_model(run / MEAN_SCENE, KIND).tensors["mean"]
    if mean_scene_hash(mean_NG) != recorded or mean_NG.shape != into_NG.shape:
        raise RunError(
            f"{run / MEAN_SCENE} is not the mean scene token that this run trained on",
            expected=f"sha256 {recorded}, shape {list(into_NG.shape)}",
            found=f"sha256 {mean_scene_hash(mean_NG)}, shape {list(mean_NG.shape)}",
            fix="put the file of the run back, or train again",
        )
    with torch.no_grad():
        into_NG.copy_(mean_NG)


def mean_scene_hash(mean_NG: Tensor) -> str:
    """sha256 over its shape and values."""
    return hash_tensors({"mean": mean_NG.cpu()})
