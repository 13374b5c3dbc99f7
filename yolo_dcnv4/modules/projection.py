"""The layer's projections of pixels, called in the way that takes the least time."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.modules.merged_projection import MergedProjection
from yolo_dcnv4.ops.export import is_traced

# above, a GPU computes for longer than the CPU parses, and products are the faster ones
MOST_ELEMENTS = 1 << 22
# torch 2.13, which brought this function, parses once in a process
PARSES_EACH_TIME = not hasattr(torch.backends.cuda, "cublas_workspace_size")


def project(projection: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to each pixel.

    Args:
        projection: The layer; hooks on it run.
        x: (N, H, W, C).

    Returns:
        (N, H, W, C_out), with added numbers behind it where the layer has them.
    """
    if (
        not torch.is_grad_enabled()
        and not is_traced()
        and type(projection) in (nn.Linear, MergedProjection)
        and not has_hooks(projection)
        and parses(x)
    ):
        return convolve(projection, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return projection(x)


def parses(x: Tensor) -> bool:
    """Return whether a product with these pixels takes longer than a convolution, for what the CPU does before it.

    With the environment variable CUBLAS_WORKSPACE_CONFIG set, as `ultralytics.YOLO` sets it, torch before 2.13 parses
    it in every product by cuBLAS, 0.1 ms with a bias on a fast CPU, ten times what a launch takes. A GPU would wait for
    that at small maps, so that half-precision inference takes convolutions by cuDNN there.

    Args:
        x: A map, its dimensions in any order.
    """
    # float32 stays a product: convolutions may round it to TF32, products may not
    return (
        PARSES_EACH_TIME
        and x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and 0 < x.numel() <= MOST_ELEMENTS
        and "CUBLAS_WORKSPACE_CONFIG" in os.environ
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether hooks on the module wait for its next call."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def convolve(projection: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to each pixel of (N, C, H, W) in channels-last memory format, past its hooks."""
    weight, bias = numbers(projection)
    return F.conv2d(x, weight.view(*weight.shape, 1, 1), bias)


def numbers(projection: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return the weight (C_out, C) and bias (C_out) that a linear layer multiplies with and adds."""
    # past nn.Module.__getattr__, which takes as long as a view
    own: Any
    if type(projection) is MergedProjection:
        own = projection._buffers
        return own["all_weight"], own["all_bias"]
    # replicas of nn.DataParallel hold theirs as plain attributes
    own = projection._parameters if "weight" in projection._parameters else vars(projection)
    return own["weight"], own.get("bias")
