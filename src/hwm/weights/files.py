"""Reading tensors from files that may come from anywhere: never runs code, never trusts a size it has not checked.

`.pt` / `.pth` (with `weights_only=True`, no fallback) → plain Python data; `.safetensors` → tensors and metadata.
Every damage ends in one `WeightsError` that names the file.
"""

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwm.errors import WeightsError
from hwm.weights.catalog import find, find_file

# A header lists names, types and shapes: 2 MB is 20,000 tensors, more than any model here has.
MAX_HEADER_BYTES = 16 << 20
HEADER_LENGTH_BYTES = 8
MINI = "mini"
"""The name of the models inside the package, each in a folder of its own."""
PICKLE_SUFFIXES = (".pt", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"


class WeightFile(NamedTuple):
    """A file that weights came from, and the SHA-256 of its bytes in hex."""

    path: Path
    sha256: str


class SafetensorsContent(NamedTuple):
    """Tensors and the string metadata of one `.safetensors` file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def hash_file(path: Path) -> WeightFile:
    """SHA-256 of a file's bytes.

    Raises:
        WeightsError: the file is not there or cannot be read.
    """
    check_is_file(path)
    try:
        with path.open("rb") as stream:
            return WeightFile(path, hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise _unreadable(path, error) from error


def digest_of(files: Sequence[WeightFile], *choices: str | int | None) -> str:
    """What tells a model from any other, in hex: all of its files, and what was chosen of them.

    Args:
        files: one or more.
        choices: settings that decide which model of the files it is; None where the files alone decide.

    Returns:
        The SHA-256 of the one file of which nothing was chosen, else one over the files' and the choices.
    """
    if len(files) == 1 and all(choice is None for choice in choices):
        return files[0].sha256
    return hashlib.sha256(json.dumps([[file.sha256 for file in files], choices]).encode()).hexdigest()


def check_is_file(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        WeightsError: there is no such file.
    """
    if not path.is_file():
        release = find(path.name) or find_file(path.name)
        name = "NAME (all names: hwm weights list)" if release is None else release.name
        fix = f"check the path; released weights are downloaded by hwm weights fetch {name}"
        if str(path) == MINI:
            here = Path(__file__).parent / MINI
            fix = f"name one of the two mini models of the package: {here / 'encoder'} or {here / 'gazelle'}"
        raise WeightsError(
            f"there is no weight file {path}",
            expected="an existing file",
            found="a folder" if path.is_dir() else "nothing",
            fix=fix,
        )


def read_pickle(path: Path) -> dict[str, object]:
    """The dictionary in a `.pt` or `.pth` file, tensors on the CPU. Only tensors and plain data are ever built.

    Raises:
        WeightsError: the file is missing or damaged, would run code, is packed, or holds no dictionary.
    """
    check_is_file(path)
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_packed_records(path)
        with warnings.catch_warnings():
            # It warns of pickle protocols that torch.save does not write; what it cannot read it then refuses.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused: it is damaged, or holds something other than tensors and plain data",
            expected="tensors, numbers, strings, lists and dictionaries",
            found=_first_line(error),
            fix="get the file again from its publisher; such a file is never opened in another way",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise WeightsError(
            f"{path} is no checkpoint", expected="a dictionary with names as keys", found=type(content).__name__
        )
    return content


def read_safetensors(path: Path) -> SafetensorsContent:
    """All tensors of a `.safetensors` file, on the CPU.

    Raises:
        WeightsError: the file is missing or damaged, or its header is larger than any real one.
    """
    check_is_file(path)
    try:
        _check_header_length(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            return SafetensorsContent(tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` file that may be read by whom the folder's other files may be read by.

    `save_file` alone makes it private to its owner, which in a folder that people share looks like a missing model.

    Raises:
        WeightsError: the disk is full or refuses.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:  # its own, and no OSError
        raise WeightsError(f"{path} could not be written: {error}", fix="free some space, then run it again") from error
    path.chmod(mode)


def read_metadata(path: Path) -> dict[str, str]:
    """The string metadata of a `.safetensors` file alone.

    Raises:
        WeightsError: as `read_safetensors`.
    """
    check_is_file(path)
    try:
        _check_header_length(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error


def read_keys(path: Path) -> tuple[str, ...]:
    """The names of the tensors of a `.safetensors` file alone.

    Raises:
        WeightsError: as `read_safetensors`.
    """
    check_is_file(path)
    try:
        _check_header_length(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path, max_bytes: int) -> object:
    """The content of a small JSON file.

    Raises:
        WeightsError: it is missing, larger than `max_bytes`, or no JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise WeightsError(f"{path} is too large", expected=f"at most {max_bytes} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"there is no {path}", expected="tensors with their config.json", found="nothing",
            fix="check the path; both files belong together",
        ) from error  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read", found=_first_line(error)) from error


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, independent of order and of the file around them."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_header_length(path: Path) -> None:
    """A file of ten bytes can claim a header of 2^60: believe none that does not fit into the file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, size - HEADER_LENGTH_BYTES):
        raise WeightsError(
            f"{path} is damaged: its header does not fit",
            expected=f"at most {MAX_HEADER_BYTES} bytes, inside of a file of {size}",
            found=f"{length} bytes",
            fix="get the file again",
        )


def _refuse_packed_records(path: Path) -> None:
    """PyTorch never compresses what it saves; a compressed record can unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(
            f"{path} is refused: it holds compressed records", expected="records as torch.save writes them",
            found=packed[0],
        )  # fmt: skip


def _unreadable(path: Path, error: BaseException) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read: it is damaged or incomplete", found=_first_line(error), fix="get the file again"
    )


def _first_line(error: BaseException) -> str:
    """PyTorch's messages run over many lines of advice (some of it dangerous); the first says what happened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
