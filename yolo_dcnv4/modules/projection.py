"""The layer's projections of pixels, called in the way that takes the least time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.modules.merged_projection import MergedProjection
from yolo_dcnv4.ops.export import is_exporting

# above, a GPU computes for longer than the CPU parses, and products are the faster ones
MOST_ELEMENTS = 1 << 22


def project(projection: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to each pixel.

    With the environment variable CUBLAS_WORKSPACE_CONFIG set, as `ultralytics.YOLO` sets it, torch reads and parses it
    in every product by cuBLAS, 0.1 ms with a bias on a fast CPU, ten times what a launch takes. A
    GPU would wait for that at small maps, so that half-precision inference takes a 1 x 1 convolution by cuDNN there.

    Args:
        projection: The layer; hooks on it run.
        x: (N, H, W, C).

    Returns:
        (N, H, W, C_out), with added numbers behind it where the layer has them.
    """
    if not _as_convolution(projection, x):
        return projection(x)
    weight: Tensor = projection.weight
    bias: Tensor | None = projection.bias
    if isinstance(projection, MergedProjection):
        weight, bias = projection.all_weight, projection.all_bias
    return F.conv2d(x.permute(0, 3, 1, 2), weight.view(*weight.shape, 1, 1), bias).permute(0, 2, 3, 1)


def _as_convolution(projection: nn.Linear, x: Tensor) -> bool:
    # float32 stays a product: convolutions may round it to TF32, products may not
    return (
        x.is_cuda
        and x.numel() <= MOST_ELEMENTS
        and x.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and type(projection) in (nn.Linear, MergedProjection)
        and not (projection._forward_hooks or projection._forward_pre_hooks)
        and not torch.compiler.is_compiling()
        and not is_exporting()
    )
