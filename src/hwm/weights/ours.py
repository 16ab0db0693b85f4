"""Our own format: `model.safetensors` (tensors) and `config.json` (what they are). Nothing in it is code.

A state dict, a kind and a spec of plain data → a folder (or `name.safetensors` beside `name.json`), and back.
`config.json` holds the format version and the SHA-256 of the tensors, so that the two files cannot be mixed up.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hwm.errors import HwmError, WeightsError, naming
from hwm.weights.files import (
    SAFETENSORS_SUFFIX,
    WeightFile,
    hash_file,
    hash_tensors,
    read_json,
    read_safetensors,
    write_safetensors,
)

FORMAT = "hwm-weights"
VERSION = 1
TENSORS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 1 << 20
_READERS = {
    "encoder": "hwm.load_encoder(PATH)",
    "gazelle": "hwm.load_gazelle(PATH)",
    "probe": "hwm.load_probe(PATH)",
    "world_model": "hwm.load_stage1(PATH).world, whose parts are .observer.encoder and .predictor",
    "step_probe": "hwm.pipelines.predict.run(RUN, VIDEO, SECONDS), or `hwm predict`: it reads what its run made alone",
}
"""What reads a model of each kind, for those who gave it to another reader."""

CONFIG_KEYS = {"format", "version", "kind", "spec", "tensors_sha256", "notes"}
DISK_DTYPES = (torch.float32, torch.float16)

SpecT = TypeVar("SpecT")


class StoredModel(NamedTuple):
    """What a folder of ours holds.

    Attributes:
        spec: the sizes, plain data; `spec_from_plain` makes a dataclass of it.
        tensors: state dict as on disk (float16 or float32).
        notes: free remarks of whoever made the weights.
        file: the tensor file and its SHA-256.
    """

    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: dict[str, Any]
    file: WeightFile


def write_model(
    path: Path,
    kind: str,
    spec: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, Any] | None = None,
) -> WeightFile:
    """Write a model; each file is written aside and renamed.

    Args:
        path: a folder, or a file that ends in `.safetensors` (its config goes beside it, ending in `.json`).
        kind: what the model is, e.g. `encoder`; reading asks for the same.
        spec: sizes, as plain data.
        tensors: the state dict; floating tensors are stored as `dtype`, others as they are.
        dtype: `torch.float32`, or `torch.float16` for half the bytes.
        notes: remarks to keep, plain data.

    Returns:
        The tensor file and its SHA-256.

    Raises:
        WeightsError: a value is not finite, or does not fit into `dtype`.
    """
    if dtype not in DISK_DTYPES:
        raise WeightsError("weights are stored as float32 or float16", found=str(dtype))
    stored = {key: _to_disk(key, tensor, dtype) for key, tensor in tensors.items()}
    tensors_path, config_path = _places(path)
    tensors_path.parent.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "spec": dict(spec),
        "tensors_sha256": hash_tensors(stored),
        "notes": dict(notes or {}),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    tensors_aside, config_aside = (p.with_name(f".{p.name}.{os.getpid()}") for p in (tensors_path, config_path))
    try:
        write_safetensors(stored, tensors_aside, metadata={"format": FORMAT, "version": str(VERSION), "kind": kind})
        with naming(config_path):
            config_aside.write_text(text, encoding="utf-8")
        tensors_aside.replace(tensors_path)
        config_aside.replace(config_path)
    finally:
        for aside in (tensors_aside, config_aside):
            aside.unlink(missing_ok=True)
    return hash_file(tensors_path)


def read_model(path: Path, kind: str) -> StoredModel:
    """Read a folder or `.safetensors` file that `write_model` made.

    Raises:
        WeightsError: a file is missing or damaged, of another kind or version, or the two do not belong together.
    """
    tensors_path, config_path = _places(path)
    if not config_path.exists() and (inside := path / kind / CONFIG_NAME).exists():
        raise WeightsError(
            f"{path} is the folder of a run", expected="the folder of a model", fix=f"use {inside.parent}"
        )
    if not config_path.exists() and (path / "config.yaml").is_file():
        raise WeightsError(
            f"{path} is the folder of a run", expected=f"the folder of a model ({kind})",
            fix=f"a run of stage 1: {_READERS['world_model']}; a run of stage 2: {_READERS['step_probe']}",
        )  # fmt: skip
    config = _read_config(config_path)
    _check(config_path, "format", FORMAT, config["format"])
    _check(config_path, "version", VERSION, config["version"])
    reader = _READERS.get(str(config["kind"]))
    _check(config_path, "kind", kind, config["kind"], reader and f"a {config['kind']} is read by {reader}")
    tensors, _ = read_safetensors(tensors_path)
    digest = hash_tensors(tensors)
    if config["tensors_sha256"] != digest:
        raise WeightsError(
            f"{tensors_path} does not belong to {config_path.name}: its tensors were changed or mixed up",
            expected=f"sha256 {config['tensors_sha256']}",
            found=f"sha256 {digest}",
            fix="get both files again",
        )
    return StoredModel(config["spec"], tensors, config.get("notes", {}), hash_file(tensors_path))


def spec_to_plain(spec: Any) -> dict[str, Any]:
    """A spec dataclass as plain data that survives JSON (tuples become lists)."""
    return json.loads(json.dumps(asdict(spec), allow_nan=False))


def spec_from_plain(spec_type: type[SpecT], plain: Mapping[str, Any]) -> SpecT:
    """A spec dataclass from plain data: every field of its own type, nothing else.

    A field with a default may be missing: the file is then older than the field, and the default is what it meant.

    Raises:
        WeightsError: a field is missing, unknown, or of another type; the sizes cannot be built.
    """
    assert is_dataclass(spec_type)
    names = {field.name for field in fields(spec_type)}
    needed = {field.name for field in fields(spec_type) if field.default is MISSING}
    if not needed <= set(plain) <= names:
        wrong = sorted((needed - set(plain)) | (set(plain) - names))
        raise WeightsError(
            f"{spec_type.__name__} does not have these fields", expected=f"{sorted(names)}", found=f"{wrong}"
        )
    try:
        # Strict JSON rules: a list may become a tuple and 4 a float, but "4" is no number and 1 no truth value.
        return TypeAdapter(spec_type).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"{spec_type.__name__}.{where} is wrong", expected=first["msg"], found=repr(first["input"])
        ) from error
    except HwmError as error:
        raise WeightsError(
            f"{spec_type.__name__}: {error.problem}", expected=error.expected, found=error.found
        ) from error


def _places(path: Path) -> tuple[Path, Path]:
    """Tensor file and config file of a folder, or of a `.safetensors` file."""
    if path.suffix == SAFETENSORS_SUFFIX and path.name != TENSORS_NAME:
        return path, path.with_suffix(".json")
    folder = path.parent if path.name == TENSORS_NAME else path
    return folder / TENSORS_NAME, folder / CONFIG_NAME


def _to_disk(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy: safetensors refuses tensors that share memory.
    stored = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not stored.is_floating_point():
        return stored
    stored = stored.to(dtype)
    if not stored.isfinite().all():
        raise WeightsError(f"{key} cannot be stored", expected=f"finite values in {dtype}", found="inf or nan")
    return stored


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, MAX_CONFIG_BYTES)
    missing = CONFIG_KEYS - {"notes"}
    if (
        not isinstance(config, dict)
        or not missing <= set(config) <= CONFIG_KEYS
        or not isinstance(config["spec"], dict)
    ):
        found = sorted(config) if isinstance(config, dict) else type(config).__name__
        raise WeightsError(f"{path} is not ours", expected=f"the keys {sorted(CONFIG_KEYS)}", found=str(found))
    return config


def _check(path: Path, name: str, expected: object, found: object, fix: str | None = None) -> None:
    if found != expected or type(found) is not type(expected):
        raise WeightsError(f"{path}: wrong {name}", expected=repr(expected), found=repr(found), fix=fix)
