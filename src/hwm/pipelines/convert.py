"""`hwm weights convert`: one model of a released file, read strictly, written in our own format."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from hwm.errors import ConfigError, WeightsError
from hwm.models.gazelle import GazeLLE
from hwm.models.masked_predictor import MaskedPredictor
from hwm.models.probe import AttentiveProbe
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.weights.files import SAFETENSORS_SUFFIX
from hwm.weights.layouts import Reader, inspect, readers_of
from hwm.weights.load import LoadedWeights, read_gazelle, save_model

DTYPES = {"float32": torch.float32, "float16": torch.float16}
_DECODER = "decoder"


class Converted(NamedTuple):
    """What became of a file.

    Attributes:
        path: the tensor file that was written.
        model: which model it is.
        num_loaded: tensors that were read.
        dropped: keys of the model that are not used → why.
        left_out: other names of the file, which were not converted.
        bytes_before: size of the source.
        bytes_after: size of what was written.
        sha256: of what was written.
    """

    path: Path
    model: str
    num_loaded: int
    dropped: dict[str, str]
    left_out: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    sha256: str


def convert(
    source: Path,
    out: Path,
    *,
    model: str | None = None,
    num_heads: int | None = None,
    dtype: str = "float32",
    backbone: Path | None = None,
) -> Converted:
    """Write one model of a released file in our own format, and read it back.

    Args:
        source: a released file, or one of ours (to change its type).
        out: folder, or file that ends in `.safetensors`; must not exist.
        model: which model of a file of several; None takes the only one, or the checkpoint's averaged encoder.
        num_heads: attention heads, where the width is not a published one (of Gaze-LLE: the backbone's).
        dtype: `float32`, or `float16` for half the bytes.
        backbone: the DINOv2 file that goes with a Gaze-LLE decoder.

    Raises:
        ConfigError: `out` is there, or the model is not in the file.
        WeightsError: the file does not fit its layout, or the model has no format of its own.
    """
    if dtype not in DTYPES:
        raise ConfigError("--dtype is neither of its two values", expected=" or ".join(DTYPES), found=dtype)
    _refuse_existing(out)
    readers, content = readers_of(source)
    reader = _choose(source, readers, model)
    loaded = _read(source, reader, num_heads, backbone)
    if not isinstance(loaded.module, VJEPA2Encoder | MaskedPredictor | GazeLLE | AttentiveProbe):
        raise WeightsError(
            f"the {reader.model} of {source} has no format of its own", expected="an encoder, a predictor, "
            "a Gaze-LLE decoder with its --backbone, or a probe", found=type(loaded.module).__name__,
            fix="use the released file as it is",
        )  # fmt: skip
    notes = {"converted_from": source.name, "model": reader.model, "source_sha256": loaded.sha256}
    written = save_model(loaded.module, out, DTYPES[dtype], notes)
    problems = [found.problem for found in inspect(out).models if found.problem]
    if problems:
        raise WeightsError(f"{written.path} was written, and does not read back", found=problems[0])
    others = tuple(name for name in (*content.parts, *content.beside) if name != reader.part)
    return Converted(
        written.path, reader.model, len(loaded.account.used), loaded.account.dropped, others,
        loaded.path.stat().st_size, written.path.stat().st_size, written.sha256,
    )  # fmt: skip


def _refuse_existing(out: Path) -> None:
    config = out.with_suffix(".json") if out.suffix == SAFETENSORS_SUFFIX else out
    for path in (out, config):
        if path.exists():
            raise ConfigError(
                f"{path} is there already", expected="a path where nothing is", fix="choose another, or move it away"
            )


def _choose(source: Path, readers: tuple[Reader, ...], model: str | None) -> Reader:
    names = [reader.model for reader in readers]
    if model is None:
        return readers[0]
    if model not in names:
        raise ConfigError(f"{source} holds no {model!r}", expected=f"--model {' or '.join(names)}", found=model)
    return readers[names.index(model)]


def _read(source: Path, reader: Reader, num_heads: int | None, backbone: Path | None) -> LoadedWeights[Any]:
    if reader.model == _DECODER:
        return read_gazelle(source, backbone, num_heads)
    if backbone is not None:
        raise ConfigError("--backbone goes with a Gaze-LLE decoder", found=f"a {reader.model} in {source}")
    return reader.read(source, num_heads)
