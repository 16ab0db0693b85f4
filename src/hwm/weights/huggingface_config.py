"""`config.json` of a Hugging Face folder: checked against the tensors beside it, and written.

Plain data → the numbers of heads (which no tensor tells) or one `WeightsError`; a spec of ours → plain data that
`transformers` builds the same model from. Only fields that decide the numbers of a frozen model are read; a value that
our modules do not implement is an error.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from hwm.errors import WeightsError
from hwm.models.dinov2 import DINOv2Spec
from hwm.models.layers import hidden_width
from hwm.models.masked_predictor import MaskedPredictorSpec
from hwm.models.probe import ProbeSpec
from hwm.models.vjepa2 import EncoderSpec

Config = Mapping[str, object]

VJEPA2, DINOV2 = "vjepa2", "dinov2"
# What our modules are, whatever a file says.
_FIXED: dict[str, dict[str, object]] = {
    VJEPA2: {"in_chans": 3, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True},
    DINOV2: {
        "num_channels": 3,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_swiglu_ffn": False,
    },
}
_SQUARE = ("patch_size", "image_size")  # a number, or the same number twice


class Claim(NamedTuple):
    """One field of a config, and what the tensors say: the value, and which key tells it."""

    field: str
    found: int
    key: str


class RatioClaim(NamedTuple):
    """A ratio in a config, and what the tensors say: hidden width, width, and which key tells it."""

    field: str
    hidden: int
    width: int
    key: str


def check_model_type(path: Path, config: Config, expected: str) -> None:
    """Refuse the config of another model, and one with a setting that our module does not have.

    Raises:
        WeightsError: as told.
    """
    found = config.get("model_type")
    if found != expected:
        raise WeightsError(
            f"{path} is of another model", expected=f"model_type {expected!r}", found=repr(found),
            fix="only the layouts of facebook/vjepa2-* and facebook/dinov2-* (without registers) can be read",
        )  # fmt: skip
    for field, value in _FIXED[expected].items():
        if field in config and config[field] != value:
            raise WeightsError(
                f"{path}: our module does not implement this {field}", expected=repr(value), found=repr(config[field])
            )


def whole(path: Path, config: Config, field: str) -> int | None:
    """A whole number of the config, or None where it does not have the field.

    Raises:
        WeightsError: it is something else.
    """
    value = config.get(field)
    if field in _SQUARE and isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if value is not None and type(value) is not int:
        square = " (or the same one twice: only squares are implemented)" if field in _SQUARE else ""
        raise WeightsError(f"{path}: wrong {field}", expected=f"a whole number{square}", found=repr(value))
    return value


def num_heads(path: Path | None, config: Config, field: str, given: int | None) -> int | None:
    """Attention heads: the config's number, else the caller's.

    Raises:
        WeightsError: they contradict each other.
    """
    told = None if path is None else whole(path, config, field)
    if told is not None and given is not None and told != given:
        raise WeightsError(
            f"{path} contradicts num_heads", expected=f"{field} {told}", found=f"num_heads {given}",
            fix="set num_heads to null: the file tells it",
        )  # fmt: skip
    return given if told is None else told


def check_claims(path: Path, config: Config, claims: Iterable[Claim | RatioClaim]) -> None:
    """Compare a config with the tensors.

    Raises:
        WeightsError: they contradict each other.
    """
    for claim in claims:
        if claim.field not in config:
            continue
        if isinstance(claim, RatioClaim):
            told, found = _cut(claim.width, config[claim.field]), claim.hidden
        elif claim.field == "id2label":
            labels = config[claim.field]
            told, found = (len(labels) if isinstance(labels, dict) else None), claim.found
        elif claim.field == "image_size":
            pixels, patch = whole(path, config, "image_size"), whole(path, config, "patch_size")
            told, found = (pixels // patch if pixels and patch else None), claim.found
        else:
            told, found = whole(path, config, claim.field), claim.found
        if told != found:
            raise WeightsError(
                f"{path} contradicts the tensors beside it", expected=f"{claim.field} that fits {found} in {claim.key}",
                found=f"{claim.field} {str(config[claim.field])[:80]}", fix="get both files again",
            )  # fmt: skip


def encoder_claims(spec: EncoderSpec, home: str) -> list[Claim | RatioClaim]:
    """What a config may say about an encoder."""
    kernel, hidden = f"{home}embeddings.patch_embeddings.proj.weight", hidden_width(spec.width, spec.mlp_ratio)
    return [
        Claim("hidden_size", spec.width, f"{home}layernorm.weight"),
        Claim("num_hidden_layers", spec.depth, f"{home}layer"),
        Claim("patch_size", spec.patch_size, kernel),
        Claim("tubelet_size", spec.tubelet_size, kernel),
        RatioClaim("mlp_ratio", hidden, spec.width, f"{home}layer.0.mlp.fc1.weight"),
    ]


def masked_predictor_claims(spec: MaskedPredictorSpec, home: str) -> list[Claim | RatioClaim]:
    """What a config may say about a masked predictor."""
    hidden = hidden_width(spec.width, spec.mlp_ratio)
    return [
        Claim("hidden_size", spec.in_width, f"{home}proj.weight"),
        Claim("pred_hidden_size", spec.width, f"{home}layernorm.weight"),
        Claim("pred_num_hidden_layers", spec.depth, f"{home}layer"),
        Claim("pred_num_mask_tokens", spec.num_mask_tokens, f"{home}embeddings.mask_tokens"),
        RatioClaim("pred_mlp_ratio", hidden, spec.width, f"{home}layer.0.mlp.fc1.weight"),
    ]


def probe_claims(spec: ProbeSpec) -> list[Claim | RatioClaim]:
    """What a config may say about a probe."""
    (num_classes,) = spec.num_classes.values()
    return [
        Claim("hidden_size", spec.width, "pooler.query_tokens"),
        Claim("num_pooler_layers", spec.depth - 1, "pooler.self_attention_layers"),
        Claim("id2label", num_classes, "classifier.weight"),
    ]


def backbone_claims(spec: DINOv2Spec) -> list[Claim | RatioClaim]:
    """What a config may say about DINOv2."""
    hidden = hidden_width(spec.width, spec.mlp_ratio)
    return [
        Claim("hidden_size", spec.width, "layernorm.weight"),
        Claim("num_hidden_layers", spec.depth, "encoder.layer"),
        Claim("patch_size", spec.patch_size, "embeddings.patch_embeddings.projection.weight"),
        Claim("image_size", spec.position_side, "embeddings.position_embeddings"),
        RatioClaim("mlp_ratio", hidden, spec.width, "encoder.layer.0.mlp.fc1.weight"),
    ]


def vjepa2_config(
    encoder: EncoderSpec, predictor: MaskedPredictorSpec, crop_size: int, frames_per_clip: int
) -> dict[str, object]:
    """A `VJEPA2Config` as plain data; see `huggingface_write.to_huggingface`."""
    return {
        **_FIXED[VJEPA2],
        "architectures": ["VJEPA2Model"],
        "model_type": VJEPA2,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "mlp_ratio": _ratio(encoder.width, encoder.mlp_ratio),
        "patch_size": encoder.patch_size,
        "tubelet_size": encoder.tubelet_size,
        "crop_size": crop_size,
        "frames_per_clip": frames_per_clip,
        "pred_hidden_size": predictor.width,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.num_heads,
        "pred_num_mask_tokens": predictor.num_mask_tokens,
        "pred_mlp_ratio": _ratio(predictor.width, predictor.mlp_ratio),
    }


def classification_fields(spec: ProbeSpec, labels: list[str]) -> dict[str, object]:
    """What a config says more about a model with a classifier."""
    return {
        "architectures": ["VJEPA2ForVideoClassification"],
        "num_pooler_layers": spec.depth - 1,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def dinov2_config(spec: DINOv2Spec) -> dict[str, object]:
    """A `Dinov2Config` as plain data; without the mask token of pre-training, which our module does not keep.

    Raises:
        WeightsError: the MLP's ratio is no whole number, which `Dinov2Config` cannot say.
    """
    if spec.mlp_ratio != int(spec.mlp_ratio):
        raise WeightsError(
            "Dinov2Config cannot say this mlp_ratio", expected="a whole number", found=str(spec.mlp_ratio)
        )
    return {
        **_FIXED[DINOV2],
        "architectures": ["Dinov2Model"],
        "model_type": DINOV2,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "mlp_ratio": int(spec.mlp_ratio),
        "patch_size": spec.patch_size,
        "image_size": spec.position_side * spec.patch_size,
        "use_mask_token": False,
    }


def _cut(width: int, ratio: object) -> int | None:
    """The hidden width that transformers makes of a ratio; None where it is no number."""
    return int(width * ratio) if isinstance(ratio, int | float) and math.isfinite(ratio) else None


def _ratio(width: int, mlp_ratio: float) -> float:
    """The ratio that transformers, which cuts where we round, makes the same hidden width of."""
    hidden = hidden_width(width, mlp_ratio)
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
