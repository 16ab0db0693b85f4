"""One token file: safetensors, written step by step, read back by steps, with hashes in its header.

    with TokenWriter(path, num_steps, facts) as file:      written aside, flushed, renamed when whole
        file.append({"z": z_SND, ...})                     any number of times; nothing but the chunk is in memory

The header holds the facts, the SHA-256 of each tensor, and a check over all of that and the shapes. `read_steps` looks
at the check (and safetensors at the length of the file); `rehash` reads everything.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwm.engine.disk import Disk
from hwm.errors import CacheError

PARTIAL = ".partial"
"""Suffix of files that are being written."""

PRUNE = "hwm extract CONFIG --prune removes damaged files; then run again"

_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
}  # fmt: skip
_MAX_HEADER = 1_000_000
_BLOCK = 1 << 22


class _Slot(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    """Offset after the header."""
    step_bytes: int


class TokenWriter(AbstractContextManager["TokenWriter"]):
    """Writes one token file; it appears under its name when all steps are there, or not at all.

    Args:
        path: the file; its folder is made.
        num_steps: S.
        facts: metadata of the file.
        disk: file operations; tests put failures here.
    """

    def __init__(self, path: Path, num_steps: int, facts: Mapping[str, str], disk: Disk | None = None) -> None:
        self.path, self._num_steps, self._facts = path, num_steps, dict(facts)
        self._disk = disk or Disk()
        self._slots: dict[str, _Slot] = {}
        self._hashes: dict[str, hashlib._Hash] = {}
        self._done, self._start = 0, 0
        with _as_cache_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{PARTIAL}")
            self._handle = os.open(self._aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            fcntl.flock(self._handle, fcntl.LOCK_EX)  # says that somebody is at it; ends with the process

    def append(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the next steps: tensors [s, ...], the same names and shapes (but for s) each time.

        Raises:
            CacheError: the disk is full or refuses.
        """
        if not self._slots:
            self._lay_out(tensors)
        count = len(next(iter(tensors.values())))
        with _as_cache_error(self.path):
            for name, tensor in tensors.items():
                slot = self._slots[name]
                data = tensor.detach().cpu().contiguous()
                assert len(data) == count, "tensors of one chunk have the same steps"
                assert (_DTYPE_NAMES[data.dtype], data.shape[1:]) == (slot.dtype, slot.shape[1:])
                raw = memoryview(data.flatten().view(torch.uint8).numpy().data)
                self._hashes[name].update(raw)
                _write_at(self._handle, raw, self._start + slot.first + self._done * slot.step_bytes)
        self._done += count

    def finish(self) -> None:
        """Complete the header, flush, and put the file in its place.

        Raises:
            CacheError: the disk refuses, or steps are missing.
        """
        if self._done != self._num_steps:
            raise CacheError(
                f"token file {self.path} would lack steps", expected=f"{self._num_steps}", found=f"{self._done}"
            )
        with _as_cache_error(self.path):
            header = _header(self._slots, self._facts, {name: h.hexdigest() for name, h in self._hashes.items()})
            assert len(header) == self._start
            _write_at(self._handle, header, 0)
            os.fsync(self._handle)
            self._disk.rename(self._aside, self.path)
            self._disk.sync_folder(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            os.close(self._handle)
            self._aside.unlink(missing_ok=True)

    def _lay_out(self, tensors: Mapping[str, Tensor]) -> None:
        """Places for all steps, widest numbers first so that each tensor is aligned; and room for the header."""
        first = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
            step_bytes = tensor[0].numel() * tensor.element_size()
            shape = (self._num_steps, *tensor.shape[1:])
            self._slots[name] = _Slot(_DTYPE_NAMES[tensor.dtype], shape, first, step_bytes)
            self._hashes[name] = hashlib.sha256()
            first += step_bytes * self._num_steps
        # Hashes are as long before they are known as after.
        self._start = len(_header(self._slots, self._facts, dict.fromkeys(tensors, "0" * 64)))


def read_steps(path: Path, facts: Mapping[str, str], steps: slice) -> dict[str, Tensor]:
    """Some steps of all tensors of a file, as stored; the rest of the file is not read.

    Args:
        path: the file.
        facts: what its metadata must say.
        steps: first and end.

    Raises:
        CacheError: missing, damaged, of other facts, or the steps lie outside.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}
            described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            if metadata.get("check") != _check(described, metadata):
                raise CacheError(f"the header of token file {path} is damaged", fix=PRUNE)
            wrong = [name for name, value in facts.items() if metadata.get(name) != value]
            if wrong:
                raise CacheError(f"token file {path} belongs to another {', '.join(wrong)}", fix=f"rm {path}")
            total = min(shape[0] for _, shape in described.values())
            if not 0 <= steps.start <= steps.stop <= total:
                raise CacheError(
                    f"steps {steps.start}..{steps.stop - 1} of {path} were asked for",
                    expected=f"steps within 0..{total - 1}",
                )
            return {name: part[steps] for name, part in slices.items()}
    except FileNotFoundError as error:
        raise CacheError(f"there is no token file {path}", fix="hwm extract CONFIG makes it") from error
    except (SafetensorError, OSError) as error:
        raise CacheError(f"cannot read token file {path}: {error}", fix=PRUNE) from error


def rehash(path: Path) -> str | None:
    """Why a file is damaged, or None: every byte is read and compared with the hashes in the header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                return "its header is damaged"
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__")
            described = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
            if metadata["check"] != _check(described, metadata):
                return "its header is damaged"
            end = 0
            for name, entry in header.items():
                first, end = entry["data_offsets"]
                if _hash_range(path, 8 + length + first, end - first) != metadata[f"sha256.{name}"]:
                    return f"{name} is not what was written"
            return None if path.stat().st_size == 8 + length + end else "it has another length than its header says"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({type(error).__name__})"


def _hash_range(path: Path, first: int, length: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(first)
        while length > 0 and (block := file.read(min(_BLOCK, length))):
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()


def _header(slots: Mapping[str, _Slot], facts: Mapping[str, str], hashes: Mapping[str, str]) -> bytes:
    """The head of a safetensors file: its length (8 bytes), then JSON filled up with spaces to a multiple of 8."""
    metadata = dict(facts) | {f"sha256.{name}": digest for name, digest in hashes.items()}
    metadata["check"] = _check({name: (slot.dtype, slot.shape) for name, slot in slots.items()}, metadata)
    entries = {
        name: {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [slot.first, slot.first + slot.step_bytes * slot.shape[0]],
        }
        for name, slot in slots.items()
    }
    text = json.dumps({"__metadata__": metadata} | entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(described: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> str:
    said = {name: value for name, value in metadata.items() if name != "check"}
    shapes = {name: [dtype, *shape] for name, (dtype, shape) in described.items()}
    return hashlib.sha256(json.dumps([shapes, said], sort_keys=True).encode()).hexdigest()


def _write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


class _as_cache_error(AbstractContextManager[None]):  # noqa: N801 (reads as a statement)
    """Tells an error of the disk as one of the cache."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise CacheError(
                f"token file {self._path} could not be written: {error.strerror or error}",
                fix="free some space, or choose another tokens.folder; videos that are done are kept",
            ) from error
