"""The strict load: tensors of a file into a module, every key accounted for.

A remapped state dict and a module on the `meta` device (shapes without memory) → the module, filled, or one
`WeightsError` that names the keys as the file has them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hwm.errors import ConfigError, WeightsError
from hwm.weights.remap import Layout, Remapped, remap

FILE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KEYS_SHOWN = 5

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ResultT = TypeVar("ResultT")


class Account(NamedTuple):
    """What became of the keys of a file; nothing is ever left at its initial value.

    Attributes:
        used: names of the parameters and buffers that were filled.
        dropped: keys that were not used → why.
        model: which model of the file was read, where it holds several.
    """

    used: tuple[str, ...]
    dropped: dict[str, str]
    model: str | None = None


def only_tensors(source: Path, state: Mapping[str, object]) -> dict[str, Tensor]:
    """The state dict, after a check that it is one: ordinary tensors of one floating type.

    Raises:
        WeightsError: something is no ordinary tensor, or the tensors differ in type.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
            raise WeightsError(f"{source}: {key} is no tensor", expected="a dense tensor", found=type(value).__name__)
        tensors[key] = value
    if not tensors:
        raise WeightsError(f"{source} holds no tensors")
    usual = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]
    expected = usual if usual in FILE_DTYPES else torch.float32
    other = [f"{key} is {tensor.dtype}" for key, tensor in tensors.items() if tensor.dtype != expected]
    if other:
        raise WeightsError(
            f"{source}: tensors of the wrong type", expected=f"{expected} like the others", found=_shown(other)
        )
    return tensors


def checked_remap(source: Path, state: Mapping[str, object], layout: Layout) -> Remapped:
    """Our names for a file's state dict.

    Raises:
        WeightsError: it is no state dict, or lacks a key that every released file has.
    """
    mapped = remap(only_tensors(source, state), layout)
    missing = [mapped.in_file(name) for name in layout.required if name not in mapped.dropped]
    if missing:
        raise WeightsError(
            f"{source} lacks keys of its published layout", expected=_shown(missing), found="no such keys"
        )
    return mapped


def infer(source: Path, mapped: Remapped, read_sizes: Callable[[dict[str, tuple[int, ...]]], ResultT]) -> ResultT:
    """Sizes read off the shapes, with the file's name in every error.

    Raises:
        WeightsError: the shapes do not tell the sizes, or no model has such sizes.
    """
    try:
        return read_sizes({name: tuple(tensor.shape) for name, tensor in mapped.tensors.items()})
    except (WeightsError, ConfigError) as error:
        text = f"{source}: {error.problem}"
        found = (
            f"{error.found or ''} (keys without the file's prefix {mapped.prefix!r})" if mapped.prefix else error.found
        )
        raise WeightsError(text, expected=error.expected, found=found, fix=error.fix) from error


def build_empty(build: Callable[[], ModuleT]) -> ModuleT:
    """The module with shapes and without memory, so that sizes from a file cost nothing until they are checked."""
    with torch.device("meta"):
        return build()


def check_state(
    source: Path,
    mapped: Remapped,
    expected: Mapping[str, tuple[int, ...]],
    dropped: Mapping[str, tuple[int | None, ...]] | None = None,
) -> dict[str, Tensor]:
    """The tensors as float32 copies, after a check of every key, shape and value.

    Args:
        source: the file, for messages.
        mapped: its state dict under our names.
        expected: name → shape of every parameter and buffer to fill.
        dropped: shapes of keys dropped by name, where known; None stands for any size.

    Raises:
        WeightsError: keys are missing, unknown, or of another shape; a value is not finite.
    """
    check_names_and_shapes(source, mapped, expected, dropped)
    infinite = [mapped.in_file(name) for name, tensor in mapped.tensors.items() if not tensor.isfinite().all()]
    if infinite:
        raise WeightsError(
            f"{source} holds values that are not finite", found=_shown(infinite), fix="get the file again"
        )
    # Copies: tensors of a file may share memory, or lie in the mapped file itself.
    return {
        name: tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        for name, tensor in mapped.tensors.items()
    }


def check_names_and_shapes(
    source: Path,
    mapped: Remapped,
    expected: Mapping[str, tuple[int, ...]],
    dropped: Mapping[str, tuple[int | None, ...]] | None = None,
) -> None:
    """The part of `check_state` that reads no values.

    Raises:
        WeightsError: keys are missing, unknown, or of another shape.
    """
    theirs = {name: mapped.in_file(name) for name in expected}
    missing = [theirs[name] for name in expected if name not in mapped.tensors]
    unknown = [mapped.in_file(name) for name in mapped.tensors if name not in expected]
    shapes = [
        f"{theirs[name]} expected {list(shape)} found {list(mapped.tensors[name].shape)}"
        for name, shape in expected.items()
        if name in mapped.tensors and tuple(mapped.tensors[name].shape) != tuple(shape)
    ]
    for name, shape in (dropped or {}).items():
        found = tuple(mapped.dropped_tensors[name].shape)
        if len(found) != len(shape) or any(want not in (None, size) for want, size in zip(shape, found, strict=True)):
            shapes.append(f"{mapped.in_file(name)} expected {list(shape)} found {list(found)}")
    problems = {"missing keys": missing, "unknown keys": unknown, "wrong shapes": shapes}
    if any(problems.values()):
        raise WeightsError(
            f"{source} does not fit the model",
            expected=f"exactly its {len(expected)} tensors",
            found="; ".join(f"{what}: {_shown(keys)}" for what, keys in problems.items() if keys),
            fix="check that the file is of this model, and complete; loading is always strict",
        )


def fill(module: ModuleT, tensors: Mapping[str, Tensor]) -> ModuleT:
    """Put checked tensors into a module made by `build_empty`; returns it frozen and in `eval()`."""
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    return module.eval().requires_grad_(False)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter and buffer."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _shown(keys: list[str]) -> str:
    more = f", and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(keys[:KEYS_SHOWN]) + more
