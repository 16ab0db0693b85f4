"""`torch.compile` for the blocks of transformers, which falls back to the blocks as they are where it does not compile.

What can be compiled depends on the machine (a C++ compiler, Triton, the GPU's age) and is known only at the first call.
Compiled are the two parts of a block that go token by token, before and after attention: blocks of one kind and width
share one compiled form of each, whatever attends and however many steps came before, and parameter names stay what they
are. On CUDA the predictor's attention is compiled too (`models.block_causal`). Numbers agree to rounding.

PyTorch keeps what it compiles with a function's code: eight forms at most (shapes, with gradients and without), and
from the second shape on forms for any shape. Blocks of other kinds or widths would count among them, and a ninth form
would run as it is, with no error: so each kind and width gets its own copy of the code.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from hwm.models.block_causal import attend_by_block, attend_by_step
from hwm.models.causal_stack import CausalStack
from hwm.models.layers import Block


def compile_blocks(
    model: nn.Module, warn: Callable[[str], None], backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the blocks of a model at their first call, in place.

    Args:
        model: on its device, in its precision; whatever blocks it has.
        warn: called once, with the reason, if a block does not compile; all blocks then run uncompiled.
        backend: of `torch.compile`.
    """
    calls = _CompiledCalls(warn, backend)
    for part in model.modules():
        if isinstance(part, Block):
            kind = f"{type(part).__name__}_{part.attn.qkv.in_features}"
            part.enter = calls.of(calls.own(part.enter, kind))
            part.leave = calls.of(calls.own(part.leave, kind))
        elif isinstance(part, CausalStack) and part.predictor_embed.weight.is_cuda:
            part.attend_by_block = calls.of(attend_by_block, instead=attend_by_step)


class _CompiledCalls:
    """Compiled functions, until one of them does not compile."""

    def __init__(self, warn: Callable[[str], None], backend: str | Callable[..., Any]) -> None:
        self._warn, self._backend = warn, backend
        self._failed = False
        self._copies: dict[str, FunctionType] = {}

    def own(self, method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """The same method of the same object, with a copy of the code for `kind`."""
        assert isinstance(method, MethodType)
        function = method.__func__
        assert isinstance(function, FunctionType)
        name = f"{function.__name__}_{kind}"
        if name not in self._copies:
            code = function.__code__.replace(co_name=name, co_qualname=name)
            self._copies[name] = FunctionType(
                code, function.__globals__, name, function.__defaults__, function.__closure__
            )
        return MethodType(self._copies[name], method.__self__)

    def of(self, plain: Callable[..., Any], instead: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """What stands for `plain`; `instead` (or else `plain`) is called where nothing compiles."""
        compiled: Callable[..., Any] | None = None

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal compiled
            if not self._failed:
                try:
                    compiled = compiled or torch.compile(plain, backend=self._backend)
                    return compiled(*arguments, **named)
                except _compiler_errors() as error:
                    self._give_up(error)
            return (instead or plain)(*arguments, **named)

        return call

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = " ".join(lines[:2]) or "no reason given"  # the first names the backend, the second its error
        text = f"runtime.compile: blocks do not compile here and run as they are ({type(error).__name__}: {cause})"
        self._warn(text)


def _compiler_errors() -> tuple[type[Exception], ...]:
    """What the compiler itself raises; an error of the computation, such as memory, is none."""
    from torch._dynamo.exc import TorchDynamoException  # a second, which only those pay who compile

    return (TorchDynamoException,)
