"""Writing our modules in Hugging Face's layout, so that `transformers` loads them with no key missing or left over.

Modules of ours → tensors and config (plain data) → a folder with `model.safetensors` and `config.json`. The reading
direction is `huggingface_read`, the tables are in `huggingface`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hwm.errors import WeightsError, naming
from hwm.models.dinov2 import DINOv2
from hwm.models.masked_predictor import MaskedPredictor
from hwm.models.probe import AttentiveProbe
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.weights import huggingface as names
from hwm.weights import huggingface_config as configs
from hwm.weights.files import write_safetensors
from hwm.weights.ours import CONFIG_NAME, TENSORS_NAME


class HuggingFaceModel(NamedTuple):
    """A state dict with the names of `transformers`' files, and the config that goes with it."""

    tensors: dict[str, Tensor]
    config: dict[str, object]


def to_huggingface(
    encoder: VJEPA2Encoder, predictor: MaskedPredictor, crop_size: int = 256, frames_per_clip: int = 64
) -> HuggingFaceModel:
    """A `VJEPA2Model` of our encoder and masked predictor.

    Args:
        encoder: the encoder.
        predictor: the predictor that goes with it; `VJEPA2Model` has always one.
        crop_size: side of the square view in pixels. `transformers` reads all positions on this grid, whatever the
            size of the video.
        frames_per_clip: frames of a clip; it does not change what `transformers` computes.

    Raises:
        WeightsError: the two do not fit together, or the patch does not divide the view.
    """
    if predictor.spec.in_width != encoder.spec.width:
        raise WeightsError(
            "this predictor is not for this encoder", expected=f"in_width {encoder.spec.width}",
            found=str(predictor.spec.in_width),
        )  # fmt: skip
    if crop_size < 1 or crop_size % encoder.spec.patch_size:
        raise WeightsError(
            "the patch does not divide crop_size", expected=f"a multiple of {encoder.spec.patch_size}",
            found=str(crop_size),
        )  # fmt: skip
    tensors = names.to_theirs(names.encoder_part(), _state(encoder))
    tensors |= names.to_theirs(names.masked_predictor_part(), _state(predictor))
    return HuggingFaceModel(tensors, configs.vjepa2_config(encoder.spec, predictor.spec, crop_size, frames_per_clip))


def to_huggingface_classification(
    encoder: VJEPA2Encoder,
    predictor: MaskedPredictor,
    probe: AttentiveProbe,
    labels: Sequence[str] | None = None,
    crop_size: int = 256,
    frames_per_clip: int = 64,
) -> HuggingFaceModel:
    """A `VJEPA2ForVideoClassification` of our encoder, masked predictor and probe.

    Args:
        encoder: see `to_huggingface`.
        predictor: see `to_huggingface`.
        probe: one task, one query, as many heads as the encoder. `transformers` runs its layer norms with an epsilon
            of 1e-6 instead of 1e-5.
        labels: a name for each class; None numbers them.
        crop_size: see `to_huggingface`.
        frames_per_clip: see `to_huggingface`.

    Raises:
        WeightsError: the parts do not fit together, or the probe is not one that `transformers` has.
    """
    spec, width, num_heads = probe.spec, encoder.spec.width, encoder.spec.num_heads
    if (spec.width, spec.num_heads, spec.num_queries, len(spec.num_classes)) != (width, num_heads, 1, 1):
        raise WeightsError(
            "transformers has no such probe", found=str(spec),
            expected=f"width {width} and {num_heads} heads as the encoder, one query, one task",
        )  # fmt: skip
    ((task, num_classes),) = spec.num_classes.items()
    labels = [f"LABEL_{index}" for index in range(num_classes)] if labels is None else list(labels)
    if len(labels) != num_classes or len(set(labels)) != num_classes:
        raise WeightsError(
            "labels do not fit the classes", expected=f"{num_classes} different names", found=f"{len(labels)} names"
        )
    model = to_huggingface(encoder, predictor, crop_size, frames_per_clip)
    tensors = {f"vjepa2.{key}": tensor for key, tensor in model.tensors.items()}
    tensors |= names.to_theirs(names.probe_part(task), _state(probe))
    return HuggingFaceModel(tensors, model.config | configs.classification_fields(spec, labels))


def dinov2_to_huggingface(backbone: DINOv2) -> HuggingFaceModel:
    """A `Dinov2Model` of our backbone, without the mask token of pre-training, which our module does not keep.

    Raises:
        WeightsError: its MLP's ratio is no whole number.
    """
    tensors = names.to_theirs(names.backbone_part(), _state(backbone))
    return HuggingFaceModel(tensors, configs.dinov2_config(backbone.spec))


def save_huggingface(model: HuggingFaceModel, folder: str | Path) -> Path:
    """Write `model.safetensors` and `config.json`, as `from_pretrained` of `transformers` reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(model.tensors, folder / TENSORS_NAME, metadata={"format": "pt"})
    text = json.dumps(model.config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with naming(folder / CONFIG_NAME):
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return folder


def _state(module: VJEPA2Encoder | MaskedPredictor | AttentiveProbe | DINOv2) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
