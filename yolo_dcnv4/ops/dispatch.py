"""How an operator of `torch.ops.yolo_dcnv4` is called and recorded, in the way that takes the least time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.deterministic

_FUNCTIONS: dict[torch._ops.OpOverload, type[torch.autograd.Function]] = {}


def register_autograd(
    operator: torch._ops.OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Give an operator its autograd rule, in the dispatcher and for `dispatch`.

    Args:
        operator: The operator.
        setup_context: Called with `(ctx, inputs, output)` after it.
        backward: Called with `(ctx, grad_output)`; returns a gradient or None for each input.
    """
    torch.library.register_autograd(operator, backward, setup_context=setup_context)

    # the dispatcher's own form of the rule takes four times as long as the operator
    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = operator(*arguments)
        setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _FUNCTIONS[operator] = type(operator._opname, (torch.autograd.Function,), methods)


def dispatch(operator: torch._ops.OpOverload, *arguments: Any) -> Any:
    """Call an operator in the way that takes the least time."""
    if torch.compiler.is_compiling():
        return operator(*arguments)
    memory: Any = torch.utils.deterministic
    if not torch.are_deterministic_algorithms_enabled() or not memory.fill_uninitialized_memory:
        return _dispatch(operator, arguments)
    # deterministic algorithms fill all new memory with NaN first; the kernels write every element of theirs anyway
    memory.fill_uninitialized_memory = False
    try:
        return _dispatch(operator, arguments)
    finally:
        memory.fill_uninitialized_memory = True


def _dispatch(operator: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> Any:
    if torch.is_inference_mode_enabled():
        # which leaves the autograd rule out by itself; past a call of Python that does nothing else
        return operator._op(*arguments)
    if not torch.is_grad_enabled():
        # past the autograd rule where no gradient is recorded: that rule is a Python function
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)
    # a trace names the operator, and transforms of torch.func know the dispatcher's form alone
    if operator not in _FUNCTIONS or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return operator(*arguments)
    return _FUNCTIONS[operator].apply(*arguments)
