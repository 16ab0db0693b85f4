"""The top level of foreign files: which state dicts they hold, and which of them is asked for.

A path → one state dict as the file has it, and what the file calls it. Names at the top level that no publisher writes
are an error: they belong to another kind of file.
"""

from collections.abc import Sequence
from pathlib import Path

from hwm.errors import WeightsError
from hwm.weights import remap as tables
from hwm.weights.files import SAFETENSORS_SUFFIX, check_is_file, read_pickle, read_safetensors


def vjepa2_state(source: Path, models: Sequence[str]) -> tuple[str | None, dict[str, object]]:
    """The first of `models` that a V-JEPA 2 checkpoint (`.pt`) holds, or the whole of a `.safetensors` file.

    Raises:
        WeightsError: the file is missing, damaged or of another layout.
    """
    if source.suffix == SAFETENSORS_SUFFIX:
        return None, dict(read_safetensors(source).tensors)
    checkpoint = read_pickle(source)
    known = (*tables.VJEPA2_MODELS, *tables.VJEPA2_BESIDE)
    unknown = sorted(set(checkpoint) - set(known))
    model = next((name for name in models if name in checkpoint), models[0])
    state = checkpoint.get(model)
    if unknown or not isinstance(state, dict):
        raise WeightsError(
            f"{source} is not laid out as a V-JEPA 2 checkpoint",
            expected=f"a state dict under {' or '.join(map(repr, models))}, and no names but {', '.join(known)}",
            found=f"unknown names {unknown}" if unknown else f"{model!r} is {type(state).__name__}",
            fix="name the model to read (encoder.key)",
        )
    return model, state


def probe_state(source: Path, index: int | None) -> tuple[str | None, dict[str, object]]:
    """One probe of the harness's checkpoint (`.pt`), or the whole of a `.safetensors` file.

    Raises:
        WeightsError: the file is missing, damaged or of another layout, or which of several probes is not said.
    """
    if source.suffix == SAFETENSORS_SUFFIX:
        return None, dict(read_safetensors(source).tensors)
    checkpoint = read_pickle(source)
    unknown = sorted(set(checkpoint) - {"classifiers", *tables.PROBE_BESIDE})
    probes = checkpoint.get("classifiers")
    if unknown or not isinstance(probes, list) or not all(isinstance(probe, dict) for probe in probes):
        raise WeightsError(
            f"{source} is not laid out as a probe checkpoint of V-JEPA 2",
            expected=f"a list of state dicts under 'classifiers', and no names but {', '.join(tables.PROBE_BESIDE)}",
            found=f"unknown names {unknown}" if unknown else f"'classifiers' is {type(probes).__name__}",
        )
    chosen = 0 if index is None and len(probes) == 1 else index
    if chosen is None or not 0 <= chosen < len(probes):
        raise WeightsError(
            f"{source} holds {len(probes)} probes", expected=f"index 0..{len(probes) - 1}", found=f"index {index}",
            fix="say which: load_probe(path, index=0)",
        )  # fmt: skip
    return f"classifiers[{chosen}]", probes[chosen]


def flat_state(source: Path) -> dict[str, object]:
    """A state dict that is the whole file.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    if source.suffix == SAFETENSORS_SUFFIX:
        return dict(read_safetensors(source).tensors)
    check_is_file(source)
    return read_pickle(source)
