"""What a weight file is: its layout, the models inside, their sizes; proven by reading each of them strictly.

A path → an `Inspection`. One row of a table a model and layout: which keys give it away, and which `read_…` function of
`hwm.weights.load` reads it. The row only chooses the reader; whether the file fits is for the strict reader to say.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwm.errors import HwmError, WeightsError
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE
from hwm.weights import load
from hwm.weights.files import (
    PICKLE_SUFFIXES,
    SAFETENSORS_SUFFIX,
    hash_file,
    read_metadata,
    read_pickle,
    read_safetensors,
)
from hwm.weights.ours import FORMAT, TENSORS_NAME, spec_to_plain
from hwm.weights.pretrained import HumanWorldModel
from hwm.weights.strict import Account

Loaded = load.LoadedWeights[Any]
Read = Callable[[Path, int | None], Loaded]
"""A path and the number of attention heads (None: the published one) → the model."""

OURS = "hwm weights"
_VJEPA2 = "V-JEPA 2 checkpoint"
_PROBE = "V-JEPA 2 attentive probe"
_HUGGINGFACE = "Hugging Face"
_CLASSIFIERS = "classifiers"
_NAMES_SHOWN = 8


class Reader(NamedTuple):
    """How one model of one layout is known and read.

    Attributes:
        layout: the layout's name.
        model: the model's name; in a checkpoint of several, its name there.
        mark: end of a key that this model has and no other.
        read: the strict reader.
        part: the name under which a file of several models holds it; empty where it is the whole file.
    """

    layout: str
    model: str
    mark: str
    read: Read
    part: str = ""


def _encoder(part: str) -> Reader:
    return Reader(_VJEPA2, part, "patch_embed.proj.weight", lambda p, heads: load.read_encoder(p, part, heads), part)


def _read_decoder(path: Path, num_heads: int | None) -> Loaded:
    """The decoder alone: on a backbone that has the right width and no memory."""
    whole = _open(path).parts.get("", {})
    shape = tuple(whole["linear.weight"].shape) if "linear.weight" in whole else ()
    if len(shape) != 4:
        raise WeightsError(f"{path}: linear.weight is no 1 × 1 convolution", expected="4 axes", found=str(list(shape)))
    with torch.device("meta"):
        backbone = DINOv2(DINOv2Spec(shape[1], depth=1, num_heads=1))
    return load.read_gazelle_decoder(path, load.LoadedWeights(backbone, (), Account((), {})))


def _probe(index: int | None) -> Read:
    return lambda path, heads: load.read_probe(path, heads, index)


READERS = (
    _encoder("target_encoder"),
    _encoder("ema_encoder"),
    _encoder("encoder"),
    Reader(_VJEPA2, "predictor", "mask_tokens.0", load.read_masked_predictor, "predictor"),
    Reader(_VJEPA2, "predictor", "action_encoder.weight", load.read_causal_stack, "predictor"),
    Reader("Gaze-LLE decoder", "decoder", "head_token.weight", _read_decoder),
    Reader("DINOv2", "backbone", "blocks.0.ls1.gamma", load.read_backbone),
    Reader(_PROBE, "probe", "pooler.cross_attention_block.norm1.weight", _probe(None)),
    Reader("block-causal stack", "causal_stack", "scene_proj.weight", load.read_causal_stack),
    Reader(_HUGGINGFACE, "encoder", "patch_embeddings.proj.weight", lambda p, heads: load.read_encoder(p, None, heads)),
    Reader(_HUGGINGFACE, "predictor", "predictor_embeddings.weight", load.read_masked_predictor),
    Reader(_HUGGINGFACE, "probe", "pooler.cross_attention_layer.layer_norm1.weight", _probe(None)),
    Reader(_HUGGINGFACE, "backbone", "patch_embeddings.projection.weight", load.read_backbone),
)
"""Released layouts. The first encoder in this order is the one that `convert` takes by itself."""


def _read_world(path: Path, num_heads: int | None) -> Loaded:
    world = HumanWorldModel.from_pretrained(path)
    file = hash_file(path if path.is_file() else path / TENSORS_NAME)
    return load.LoadedWeights(world, (file,), Account(tuple(world.state_dict()), {}))


_OURS: Mapping[str, Read] = {
    "encoder": lambda path, heads: load.read_encoder(path, None, heads),
    "masked_predictor": load.read_masked_predictor,
    "gazelle": lambda path, heads: load.read_gazelle(path, None, heads),
    "probe": lambda path, _: load.read_probe(path),
    "world_model": _read_world,
}


@dataclass(frozen=True)
class FoundModel:
    """One model in a file.

    Attributes:
        name: e.g. `target_encoder`.
        sizes: what its spec says, the number of attention heads left out.
        heads: the number of attention heads, and how it is known.
        num_parameters: numbers in its parameters.
        dtype: type on disk.
        dropped: keys that are not used → why.
        problem: why it would not load; None where it would.
    """

    name: str
    sizes: dict[str, Any]
    heads: str
    num_parameters: int
    dtype: str
    dropped: dict[str, str]
    problem: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
        path: the file with the tensors.
        size: its bytes.
        sha256: of its bytes.
        layout: whose layout it has.
        models: what is inside.
        beside: other names in the file, which are not needed (optimiser state, epoch, …).
    """

    path: Path
    size: int
    sha256: str
    layout: str
    models: tuple[FoundModel, ...]
    beside: tuple[str, ...]


class Content(NamedTuple):
    """The tensors of a file: model → state dict (the empty name for a file that is one), and the other names."""

    parts: dict[str, dict[str, Tensor]]
    beside: tuple[str, ...]


def inspect(path: Path) -> Inspection:
    """Say what a weight file is, and prove for each model inside that it loads (or say why not).

    Args:
        path: a released file, or a folder or file of ours.

    Raises:
        WeightsError: it cannot be read, or no known layout fits it.
    """
    file = _tensor_file(path)
    readers, content = readers_of(path)
    models = tuple(_look(path, reader, content) for reader in readers)
    known = {reader.part for reader in readers}
    beside = (*content.beside, *(f"{name} (no reader)" for name in content.parts if name not in known))
    return Inspection(file, file.stat().st_size, hash_file(file).sha256, readers[0].layout, models, beside)


def readers_of(path: Path) -> tuple[tuple[Reader, ...], Content]:
    """The rows of the table that a file's keys ask for, and its content.

    Raises:
        WeightsError: it cannot be read, or no known layout fits it.
    """
    file = _tensor_file(path)
    content = _open(file)
    if file.suffix == SAFETENSORS_SUFFIX and (metadata := read_metadata(file)).get("format") == FORMAT:
        kind = metadata.get("kind", "")
        if kind in _OURS:
            return (Reader(OURS, kind, "", _OURS[kind]),), content
        raise WeightsError(f"{file} holds a model of ours that has no reader", expected=str(list(_OURS)), found=kind)
    probes = (Reader(_PROBE, part, "", _probe(place), part) for place, part in enumerate(_probes(content)))
    found = (
        *probes,
        *(
            reader
            for reader in READERS
            if reader.part in content.parts and any(key.endswith(reader.mark) for key in content.parts[reader.part])
        ),
    )
    if not found:
        layouts = ", ".join(dict.fromkeys(reader.layout for reader in READERS))
        raise WeightsError(
            f"{path} has no known layout", expected=f"{layouts}, or our own format", found=_told(content),
            fix="hwm weights list shows the files that hwm can read",
        )  # fmt: skip
    return found, content


def _look(path: Path, reader: Reader, content: Content) -> FoundModel:
    state = content.parts.get(reader.part, {})
    dtype = ", ".join(str(kind).removeprefix("torch.") for kind, _ in _dtypes(state))
    try:
        loaded, heads = _read(path, reader)
    except HwmError as error:
        problem = f"{error.problem} (expected {error.expected}; found {error.found})"
        return FoundModel(reader.model, {}, "", sum(t.numel() for t in state.values()), dtype, {}, problem)
    sizes, own_heads = _sizes(loaded.module, reader)
    count = sum(
        parameter.numel()
        for name, parameter in loaded.module.named_parameters()
        if not (reader.model == "decoder" and name.startswith("backbone."))
    )
    heads = heads or f"{own_heads}, as stored"
    return FoundModel(reader.model, sizes, heads, count, dtype, loaded.account.dropped)


def _read(path: Path, reader: Reader) -> tuple[Loaded, str]:
    """The model, and its attention heads in words (empty: the file tells)."""
    if reader.layout == OURS:
        return reader.read(path, None), ""
    try:
        loaded = reader.read(path, None)
    except HwmError:
        # No tensor depends on the heads: if the file loads with one head, they were all that was not known.
        loaded = reader.read(path, 1)
        return loaded, "not known: the file does not tell, and the width is not a published one (set num_heads)"
    published = getattr(loaded.module.spec, "num_heads", None)
    return loaded, f"{published}, as published (the file does not tell)"


def _sizes(module: Any, reader: Reader) -> tuple[dict[str, Any], str]:
    """What the specs of a model say, and its attention heads apart."""
    if isinstance(module, HumanWorldModel):
        gazelle = module.observer.gazelle
        specs = {"encoder": module.observer.encoder.spec, "predictor": module.predictor.spec}
        if gazelle is not None:
            specs |= {"gazelle": gazelle.spec, "backbone": gazelle.backbone.spec}
    elif isinstance(module, GazeLLE) and reader.layout == OURS:
        specs = {"decoder": module.spec, "backbone": module.backbone.spec}
    else:
        specs = {"": module.spec}
    plain = {f"{name}.{key}".lstrip("."): value for name, spec in specs.items() for key, value in _plain(spec)}
    heads = {name: value for name, value in plain.items() if name.endswith("num_heads")}
    sizes = {name: value for name, value in plain.items() if name not in heads}
    return sizes, ", ".join(
        f"{name.removesuffix('num_heads').rstrip('.')} {value}".strip() for name, value in heads.items()
    )


def _plain(spec: Any) -> list[tuple[str, Any]]:
    return list(spec_to_plain(spec).items())


def _tensor_file(path: Path) -> Path:
    """The file with the tensors: the path itself, or the one in a folder of ours."""
    return path / TENSORS_NAME if path.is_dir() else path


def _open(path: Path) -> Content:
    if path.suffix == SAFETENSORS_SUFFIX:
        return Content({"": read_safetensors(path).tensors}, ())
    if path.is_file() and path.suffix not in PICKLE_SUFFIXES:
        suffixes = ", ".join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES))
        raise WeightsError(f"{path} is no weight file", expected=f"a file in {suffixes}", found=path.suffix or "none")
    whole = read_pickle(path)
    if any(isinstance(value, Tensor) for value in whole.values()):
        return Content({"": _tensors(whole)}, tuple(key for key in whole if not isinstance(whole[key], Tensor)))
    classifiers = whole.pop(_CLASSIFIERS, [])
    if isinstance(classifiers, list):
        whole |= {f"{_CLASSIFIERS}[{place}]": state for place, state in enumerate(classifiers)}
    parts = {name: _tensors(value) for name, value in whole.items() if isinstance(value, dict) and _tensors(value)}
    return Content(parts, tuple(name for name in whole if name not in parts))


def _probes(content: Content) -> list[str]:
    return [part for part in content.parts if part.startswith(f"{_CLASSIFIERS}[")]


def _tensors(state: Mapping[Any, object]) -> dict[str, Tensor]:
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _dtypes(state: Mapping[str, Tensor]) -> list[tuple[torch.dtype, int]]:
    return Counter(tensor.dtype for tensor in state.values()).most_common()


def _told(content: Content) -> str:
    """The first names of a file, for an error."""
    names = [f"{part}.{key}".lstrip(".") for part, state in content.parts.items() for key in state]
    names = [*content.beside, *names]
    more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(name[:80] for name in names[:_NAMES_SHOWN]) + more if names else "no tensors"
