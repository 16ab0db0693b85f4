"""Where a run computes, what its randomness is a function of, and how it is asked to stop.

    RuntimeConfig -> Fabric      device, precision and processes (Lightning Fabric; DDP where there are several)
    (seed, *ids)  -> generators  independent streams named by what they are for; no global state is touched

Sample order and augmentation draw from `rng_for(seed, "augment", epoch, index)` and the like, never from a stream whose
position depends on what ran before: that is what makes a resumed run equal to the straight one.
"""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import ParamSpec

import numpy as np
import torch
from lightning_fabric import Fabric

from hwm.config import Precision, RuntimeConfig
from hwm.errors import ConfigError

EXIT_STOPPED = 143
"""Exit code of a run that was asked to stop by SIGTERM and did so in order: 128 + 15, as the shell reports it."""

_Given = ParamSpec("_Given")


def start(config: RuntimeConfig, divides: bool = False) -> Fabric:
    """Starts the processes of a run on the devices asked for.

    Args:
        config: device and number of processes.
        divides: whether the run divides its work over processes; without, several would all do the same.

    Raises:
        ConfigError: the device is not there, there are not enough of them, or the run cannot use more than one.
    """
    if config.devices > 1 and not divides:
        raise ConfigError(
            f"runtime.devices={config.devices} was asked of a run that does not divide its work over devices",
            expected="1; only hwm pretrain divides it",
            fix="runtime.devices=1, and CUDA_VISIBLE_DEVICES to pick the device",
        )
    available = {"cpu": os.cpu_count() or 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}
    kind = config.device
    if kind == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if available[kind] < config.devices:
        raise ConfigError(
            f"runtime.device={config.device} with runtime.devices={config.devices} cannot run here",
            expected=f"{config.devices} {kind} device(s)",
            found=", ".join(f"{count} {name}" for name, count in available.items()),
            fix="runtime.device=auto runtime.devices=1",
        )
    strategy = "ddp" if config.devices > 1 else "auto"
    fabric = Fabric(accelerator=kind, devices=config.devices, strategy=strategy, precision=config.precision)
    fabric.launch()
    return fabric


def check_precision(device: torch.device, settings: Mapping[str, Precision]) -> None:
    """Refuse bfloat16 where the device has none; there it would be emulated, slower than float32.

    Args:
        device: where frozen models compute.
        settings: the precision that each setting asks for, by its dotted name.

    Raises:
        ConfigError: a setting asks for bfloat16, and the device has none.
    """
    asking = [name for name, precision in settings.items() if precision != "32-true"]
    if asking and not has_bfloat16(device):
        raise ConfigError(
            f"{' and '.join(asking)} cannot be bf16-mixed here",
            expected="a device with bfloat16 products",
            found=f"{device.type}, which has none",
            fix=f"{' '.join(f'{name}=32-true' for name in asking)} in the recipe that names the weights",
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself (a CPU: as its oneDNN says)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def rng_for(seed: int, *ids: int | str) -> np.random.Generator:
    """A numpy stream that is a function of the seed and of what it is for.

    `rng_for(0, "drop", 3, 17)` and `rng_for(0, "drop", 31, 7)` are independent, as are `(1, 0)` and `(1,)`: the ids are
    hashed as written, since numpy's own `SeedSequence` pads short lists with zeros.
    """
    return np.random.default_rng(_entropy(seed, ids))


def torch_rng_for(seed: int, *ids: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` that is a function of the seed and of what it is for."""
    return torch.Generator(device).manual_seed(_entropy(seed, ids) % 2**63)


@contextmanager
def seeded_weights(seed: int, *ids: int | str) -> Iterator[None]:
    """Inside, modules are initialised from a stream that is a function of the seed and ids.

    `nn.Module` constructors draw from torch's global generator and cannot be handed another; its state comes back
    on leaving.
    """
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(_entropy(seed, ids) % 2**63)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)


@contextmanager
def seeded_draws(device: torch.device, seed: int, *ids: int | str) -> Iterator[None]:
    """Inside, what torch draws on the CPU and on `device` (dropout) is a function of the seed and ids."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_entropy(seed, ids) % 2**63)
        yield


def _entropy(seed: int, ids: tuple[int | str, ...]) -> int:
    named = json.dumps([int(seed), *ids]).encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:16], "little")


class StopFlag(AbstractContextManager["StopFlag"]):
    """Turns SIGTERM into a question that the training loop asks at each step boundary.

        with StopFlag() as stop:
            for step in ...:
                ...
                if stop.agreed(fabric):
                    store.save(...)
                    raise SystemExit(EXIT_STOPPED)

    Work of one process that saves nothing on its way is stopped where it tells how far it is: `stop.checked(bar.set)`.

    A forked data worker inherits the handler but not the duty: there the signal does what it always did.
    Outside the main thread Python can set no handler; the flag then stays down.
    """

    def __init__(self) -> None:
        self._requested = False
        self._pid = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested

    def agreed(self, fabric: Fabric) -> bool:
        """Whether any process was asked to stop; all processes get the same answer at the same step."""
        if fabric.world_size == 1:
            return self._requested
        asked = torch.tensor(float(self._requested), device=fabric.device)
        total = fabric.all_reduce(asked, reduce_op="sum")
        return float(torch.as_tensor(total)) > 0

    def checked(self, call: Callable[_Given, None]) -> Callable[_Given, None]:
        """The same call, which ends the run with `EXIT_STOPPED` instead where this process was asked to stop."""

        def unless_stopped(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
            if self._requested:
                raise SystemExit(EXIT_STOPPED)
            call(*args, **kwargs)

        return unless_stopped

    def __enter__(self) -> "StopFlag":
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self._requested = True
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
