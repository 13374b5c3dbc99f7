"""Run the stride probe of ultralytics' models on CUDA where a module cannot run on the CPU.

Constructors of detection and semantic segmentation models send zeros through the model on the CPU to learn its
strides. The modules of this package can do that; modules of others that have a CUDA kernel only cannot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HELP = (
    "ultralytics probes a new model's strides on the CPU. If one of its modules runs on CUDA only, build the model "
    "on a machine with a CUDA GPU, where the probe is repeated on CUDA, or give the module a CPU implementation."
)


def with_cuda_probe(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a model's constructor so that a forward pass that fails on the CPU in it is repeated on CUDA.

    Args:
        init: `__init__` of a subclass of ultralytics' BaseModel.
    """

    @functools.wraps(init)
    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if "forward" in vars(self):  # the constructor of a subclass came first
            init(self, *args, **kwargs)
            return
        # on the instance and for the constructor's time only: forward passes of a finished model cost nothing more
        vars(self)["forward"] = functools.partial(_probe, self)
        try:
            init(self, *args, **kwargs)
        finally:
            vars(self).pop("forward", None)

    return __init__


def _probe(model: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
    forward = type(model).forward
    if not isinstance(x, Tensor) or x.device.type != "cpu":
        return forward(model, x, *args, **kwargs)
    # up to 8.3.100 the probe runs in train mode, and the failed pass must not leave traces in batch statistics
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        return forward(model, x, *args, **kwargs)
    except Exception as error:
        cpu_error = error
    if not torch.cuda.is_available():
        raise _with_help(cpu_error)
    for buffer, before in buffers:
        buffer.copy_(before)
    home = next((tensor.device for tensor in model.parameters()), x.device)
    try:
        model.to("cuda")
        return forward(model, x.to("cuda"), *args, **kwargs)
    except Exception as cuda_error:
        raise cpu_error from cuda_error
    finally:
        model.to(home)


def _with_help(error: Exception) -> Exception:
    if error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{HELP}", *error.args[1:])
    return error
