"""The layer's projections of pixels, called in the way that takes the least time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.ops.export import is_exporting


def project(projection: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to each pixel.

    With the environment variable CUBLAS_WORKSPACE_CONFIG set, as `ultralytics.YOLO` sets it, torch reads and parses it
    in every product by cuBLAS, which takes longer than to launch one: 0.1 ms with bias on a fast CPU. Small maps
    would wait for that, so that half-precision inference on a GPU takes a 1 x 1 convolution instead, by cuDNN.

    Args:
        projection: The layer; hooks on it run.
        x: (N, H, W, C).

    Returns:
        (N, H, W, C_out).
    """
    if not _as_convolution(projection, x):
        return projection(x)
    return F.conv2d(x.permute(0, 3, 1, 2), projection.weight[:, :, None, None], projection.bias).permute(0, 2, 3, 1)


def _as_convolution(projection: nn.Linear, x: Tensor) -> bool:
    # float32 stays a product: convolutions may round it to TF32, products may not
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and type(projection) is nn.Linear
        and not (projection._forward_hooks or projection._forward_pre_hooks)
        and not torch.compiler.is_compiling()
        and not is_exporting()
    )
