"""`torch.compile` for the frozen encoder, which falls back to the encoder as it is where it does not compile.

What can be compiled depends on the machine (a C++ compiler, Triton, the GPU's age) and is known only at the first call.
Blocks are compiled, not the whole: they share one compiled form, both ways of encoding run through them, and parameter
names stay what they are. Numbers agree to rounding.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hwm.models.layers import Block
from hwm.models.vjepa2 import VJEPA2Encoder


def compile_encoder(
    encoder: VJEPA2Encoder, warn: Callable[[str], None], backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the blocks of a frozen encoder at their first call, in place.

    Args:
        encoder: on its device, in its precision.
        warn: called once, with the reason, if a block does not compile; all blocks then run uncompiled. The same text
            is a Python warning.
        backend: of `torch.compile`.
    """
    calls = _CompiledCalls(warn, backend)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        block.forward = calls.of(block.forward)


class _CompiledCalls:
    """The compiled calls of all blocks, until one of them does not compile."""

    def __init__(self, warn: Callable[[str], None], backend: str | Callable[..., Any]) -> None:
        self._warn, self._backend = warn, backend
        self._failed = False

    def of(self, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What stands for the `forward` of one block."""
        compiled: Callable[..., Tensor] | None = None

        def call(*arguments: Any, **named: Any) -> Tensor:
            nonlocal compiled
            if not self._failed:
                try:
                    compiled = compiled or torch.compile(plain, backend=self._backend)
                    return compiled(*arguments, **named)
                except _compiler_errors() as error:
                    self._give_up(error)
            return plain(*arguments, **named)

        return call

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:2]) or "no reason given"  # the first names the backend, the second its error
        text = (
            "runtime.compile_encoder: the encoder does not compile here and runs as it is "
            f"({type(error).__name__}: {cause})"
        )
        self._warn(text)
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _compiler_errors() -> tuple[type[Exception], ...]:
    """What the compiler itself raises; an error of the computation, such as memory, is none."""
    from torch._dynamo.exc import TorchDynamoException  # a second, which only those pay who compile

    return (TorchDynamoException,)
