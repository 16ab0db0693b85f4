"""Checkpoints that are whole or absent: written aside, flushed, hashed, renamed; verified before they are used.

    <folder>/
        latest -> step-001000           replaced in one rename
        step-001000/
            <module>.safetensors        one a module: parameters and buffers
            optimizer.safetensors       the optimiser's tensors
            rng.safetensors             torch, CUDA and numpy generator states
            state.json                  step, optimiser settings, Python generator, what the caller adds
            manifest.json               bytes and sha256 of every other file; written last

A folder with another name (`step-001000.tmp`, `.old`) is the remains of a save or a removal that was cut short; it is
never read and is cleared by the next save. There is no pickle anywhere. Safetensors keep bits and JSON keeps Python's
floats exactly, so a resumed run can equal the straight one bit for bit.
"""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from hwm.engine.disk import Disk
from hwm.errors import RunError
from hwm.terminal import readable_bytes

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints inside its run folder."""

_FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})")
_RESERVED = ("optimizer", "rng")


class Rejected(NamedTuple):
    """A checkpoint that was not used, and why."""

    folder: str
    reason: str


class Saved(NamedTuple):
    """What a save did."""

    folder: Path
    not_removed: tuple[Rejected, ...]
    """Old checkpoints that could not be deleted (the new one is safe all the same)."""


class Restored(NamedTuple):
    """What a load gave back; modules, optimiser and generators were set in place."""

    step: int
    extra: dict[str, Any]
    folder: Path
    rejected: tuple[Rejected, ...]
    """Newer checkpoints that were damaged and passed over; the caller records them."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: `<run>/checkpoints`; made on the first save.
        keep_last: checkpoints kept; older ones go after a save has succeeded.
        is_writer: False in all but one process of a run; `save` then does nothing (wait for the writer afterwards).
        disk: file operations; tests put failures here.
    """

    def __init__(self, folder: Path, keep_last: int, *, is_writer: bool = True, disk: Disk | None = None) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, found {keep_last}")
        self.folder, self._keep_last, self._is_writer = folder, keep_last, is_writer
        self._disk = disk or Disk()

    def steps(self) -> list[int]:
        """Steps of all complete-looking checkpoints, oldest first (complete: renamed; not yet verified)."""
        return sorted(int(match[1]) for path in self._entries() if (match := _NAME.fullmatch(path.name)))

    def save(
        self, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]
    ) -> Saved:
        """Writes a checkpoint, points `latest` at it, then removes what is no longer kept.

        A checkpoint of this step that is already there is replaced; those of later steps are removed too, since they
        belong to a future that this run has left by resuming from an earlier step.

        Raises:
            RunError: the disk is full or refuses; the previous checkpoints are as they were.
        """
        target = self.folder / f"step-{step:06d}"
        if not self._is_writer:
            return Saved(target, ())
        files = _encode(step, modules, optimizer, extra)
        needed = sum(len(content) for content in files.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._bring_back()
            self._clear()
            self._write(target, files)
            self._disk.link(self.folder / "latest", target.name)
        except OSError as error:
            # Only what this save made is taken back; if that fails too, the next save clears it.
            shutil.rmtree(target.with_suffix(".tmp"), ignore_errors=True)
            raise RunError(
                f"checkpoint {target} could not be written: {error.strerror or error}",
                expected=f"{readable_bytes(needed)} free below {self.folder}",
                found=readable_bytes(_free(self.folder)),
                fix="free some space, then go on with --resume; earlier checkpoints are intact",
            ) from error
        return Saved(target, self._purge(step))

    def load(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int | None = None
    ) -> Restored:
        """Sets modules, optimiser and random generators to a saved state.

        Args:
            modules: the same names as at the save; every tensor must fit.
            optimizer: made over the same parameters in the same order.
            step: which checkpoint; None takes the newest that is whole, passing over damaged ones.

        Raises:
            RunError: there is none, the one asked for is damaged, or it does not fit the modules or the optimiser.
        """
        if self._is_writer:
            self._bring_back()
        wanted = self.steps()[::-1] if step is None else [step]
        rejected: list[Rejected] = []
        for candidate in wanted:
            folder = self.folder / f"step-{candidate:06d}"
            files = verify(folder)
            if isinstance(files, Rejected):
                rejected.append(files)
                continue
            extra = _restore(folder, files, modules, optimizer)
            return Restored(candidate, extra, folder, tuple(rejected))
        whole = [step for step in self.steps() if f"step-{step:06d}" not in {name for name, _ in rejected}]
        raise RunError(
            f"{self.folder} has no usable checkpoint" + ("" if step is None else f" of step {step}"),
            found="; ".join(f"{name}: {reason}" for name, reason in rejected) or "none",
            fix=f"steps that are there: {whole}" if whole else "put a whole one back, or start with --fresh",
        )

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []

    def _write(self, target: Path, files: Mapping[str, bytes]) -> None:
        aside = target.with_suffix(".tmp")
        aside.mkdir()
        for name, content in files.items():
            self._disk.write(aside / name, content)
        self._disk.sync_folder(aside)
        if target.exists():  # of this step, from before a resume: set aside, so that the rename finds no folder
            self._disk.rename(target, target.with_suffix(".old"))
        self._disk.rename(aside, target)
        self._disk.sync_folder(self.folder)

    def _bring_back(self) -> None:
        """Undoes the first half of a replacement that was cut short, where the step would otherwise be lost."""
        for path in self._entries():
            if path.suffix == ".old" and _NAME.fullmatch(path.stem) and not path.with_suffix("").exists():
                self._disk.rename(path, path.with_suffix(""))

    def _clear(self) -> None:
        """Removes what a save or a removal left behind when it was cut short."""
        for path in self._entries():
            if path.suffix in (".tmp", ".old") and _NAME.fullmatch(path.stem):
                self._disk.remove(path)

    def _purge(self, step: int) -> tuple[Rejected, ...]:
        """Removes old and abandoned checkpoints; a failure is told, and loses nothing."""
        steps = self.steps()
        kept = [past for past in steps if past <= step][-self._keep_last :]
        doomed = [self.folder / f"step-{other:06d}" for other in steps if other not in kept]
        doomed += [path for path in self._entries() if path.suffix == ".old"]
        failed = []
        for folder in doomed:
            try:
                # Renamed first: half a removed folder must not look like a checkpoint.
                if folder.suffix != ".old":
                    self._disk.rename(folder, folder.with_suffix(".tmp"))
                    folder = folder.with_suffix(".tmp")
                self._disk.remove(folder)
            except OSError as error:
                failed.append(Rejected(folder.name, f"could not be removed: {error.strerror or error}"))
        return tuple(failed)


def verify(folder: Path) -> dict[str, bytes] | Rejected:
    """Reads a checkpoint and compares every file with the manifest; nothing unverified is ever parsed as tensors."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        entries = dict(manifest["files"])
        if manifest["format"] != _FORMAT or f"step-{manifest['step']:06d}" != folder.name:
            return Rejected(folder.name, f"manifest is of format {manifest['format']}, step {manifest['step']}")
        files = {name: (folder / name).read_bytes() for name in entries if Path(name).name == name}
    except FileNotFoundError as error:
        return Rejected(folder.name, f"{Path(error.filename).name} is missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Rejected(folder.name, f"manifest is damaged ({type(error).__name__})")
    for name, entry in entries.items():
        if name not in files or entry != {"bytes": len(files[name]), "sha256": _sha256(files[name])}:
            return Rejected(folder.name, f"{name} is not what was written (sha256 or size differs)")
    return files


def _encode(
    step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]
) -> dict[str, bytes]:
    """All files of a checkpoint, the manifest last."""
    clash = [name for name in modules if name in _RESERVED]
    if clash:
        raise ValueError(f"a module cannot be called {clash[0]!r}")
    tensors, settings = _split_optimizer(optimizer)
    state = {
        "step": step, "modules": sorted(modules), "optimizer": settings, "python_rng": random.getstate(),
        "extra": dict(extra),
    }  # fmt: skip
    files = {f"{name}.safetensors": _pack(module.state_dict()) for name, module in modules.items()}
    files["optimizer.safetensors"] = _pack(tensors)
    files["rng.safetensors"] = _pack(_rng_states())
    files["state.json"] = json.dumps(state, allow_nan=False).encode()
    entries = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()}
    files["manifest.json"] = json.dumps({"format": _FORMAT, "step": step, "files": entries}, indent=1).encode()
    return files


def _restore(
    folder: Path, files: Mapping[str, bytes], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Puts verified files into modules, optimiser and generators; returns the caller's own part."""
    try:
        state = json.loads(files["state.json"])
        if state["modules"] != sorted(modules):
            raise ValueError(f"it holds the modules {state['modules']}, wanted are {sorted(modules)}")
        unpacked = {name: safetensors.load(files[f"{name}.safetensors"]) for name in (*modules, *_RESERVED)}
        for name, module in modules.items():
            module.load_state_dict(unpacked[name], strict=True)
        optimizer.load_state_dict(_join_optimizer(unpacked["optimizer"], state["optimizer"], optimizer))
        _set_rng_states(unpacked["rng"], state["python_rng"])
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {folder} is whole, but does not fit this run",
            found=str(error),
            fix="resume with the configuration the run was started with (its config.yaml), or start with --fresh",
        ) from error
    return dict(state["extra"])


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and plain settings."""
    state = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, slots in state["state"].items():
        for slot, value in slots.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{index}.{slot}"] = value
    return tensors, {"groups": state["param_groups"], "state": plain}


def _join_optimizer(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The inverse of `_split_optimizer`, checked against the parameters of `optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *settings["state"].items()):
        index, slot = key.split(".", 1)
        state.setdefault(int(index), {})[slot] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in settings["groups"]
    ]  # fmt: skip
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, slots in state.items():
        shape = tuple(slots["exp_avg"].shape) if "exp_avg" in slots else None
        if index >= len(parameters) or (shape is not None and shape != tuple(parameters[index].shape)):
            raise ValueError(f"optimiser state {index} of shape {shape} belongs to another parameter")
    return {"state": state, "param_groups": groups}


def _rng_states() -> dict[str, Tensor]:
    """States of the global generators; numpy's is packed as its 624 words, position, flag and the bits of its spare."""
    _, words, position, has_spare, spare = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "numpy_words": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_spare, int(np.float64(spare).view(np.int64))]),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_rng_states(states: Mapping[str, Tensor], python: list[Any]) -> None:
    torch.set_rng_state(states["torch"])
    position, has_spare, spare = states["numpy_rest"].tolist()
    words = states["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_spare, float(np.int64(spare).view(np.float64))))
    random.setstate((python[0], tuple(python[1]), python[2]))
    if torch.cuda.is_available():
        for index in range(min(torch.cuda.device_count(), sum(name.startswith("cuda.") for name in states))):
            torch.cuda.set_rng_state(states[f"cuda.{index}"], index)


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    return safetensors.save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
