"""The layer's projections of pixels, called in the way that takes the least time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.ops.export import is_exporting

# above, a GPU computes for longer than the CPU parses, and products are the faster ones
MOST_ELEMENTS = 1 << 22
# numbers of a pixel: groups then lie in banks of their own in a GPU's L1, and products are the faster ones
ROW_MULTIPLE = 64


class MergedProjection(nn.Linear):
    """Linear layers that read the same pixels, side by side in one product, for inference.

    Args:
        projections: The layers, which share `in_features` and have biases.
        pad: Add rows as `padded_rows` says; what they write is not to be read.

    Attributes:
        rows: Outputs of the layers, without added ones.
    """

    def __init__(self, projections: Sequence[nn.Linear], pad: bool):
        weight, bias = merged(projections, pad)
        # without memory of its own: both parameters are replaced
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.rows = sum(p.out_features for p in projections)


def merged(projections: Sequence[nn.Linear], pad: bool) -> tuple[Tensor, Tensor]:
    """Join the weights (C_out, C) and biases (C_out) of linear layers that read the same pixels.

    Args:
        projections: The layers.
        pad: Add rows as `padded_rows` says. They are copies that pass no gradient on.
    """
    weights, biases = [p.weight for p in projections], [p.bias for p in projections]
    rows = sum(p.out_features for p in projections)
    missing = padded_rows(rows) - rows
    if pad and missing:
        # of the right device and dtype, and as finite as the rest
        widest = max(projections, key=lambda p: p.out_features)
        weights.append(widest.weight.detach()[:missing])
        biases.append(widest.bias.detach()[:missing])
    return torch.cat(weights), torch.cat(biases)


def padded_rows(rows: int) -> int:
    """Return how many numbers a GPU best has for each pixel: a multiple of 64 where that adds at most an eighth.

    Args:
        rows: Numbers that are needed.
    """
    padded = math.ceil(rows / ROW_MULTIPLE) * ROW_MULTIPLE
    return padded if 8 * (padded - rows) <= rows else rows


def project(projection: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to each pixel.

    With the environment variable CUBLAS_WORKSPACE_CONFIG set, as `ultralytics.YOLO` sets it, torch reads and parses it
    in every product by cuBLAS, 0.1 ms with a bias on a fast CPU, ten times what a launch takes. A
    GPU would wait for that at small maps, so that half-precision inference takes a 1 x 1 convolution by cuDNN there.

    Args:
        projection: The layer; hooks on it run.
        x: (N, H, W, C).

    Returns:
        (N, H, W, C_out).
    """
    if not _as_convolution(projection, x):
        return projection(x)
    return F.conv2d(
        x.permute(0, 3, 1, 2), projection.weight.view(*projection.weight.shape, 1, 1), projection.bias
    ).permute(0, 2, 3, 1)


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
