"""The layer's projections of pixels, called in the way that takes the least time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.ops.export import is_exporting
from yolo_dcnv4.ops.packed import padded_row

# above, a GPU computes for longer than the CPU parses, and products are the faster ones
MOST_ELEMENTS = 1 << 22


class MergedProjection(nn.Linear):
    """Linear layers that read the same pixels, side by side in one product, for inference.

    Args:
        projections: The layers, which share `in_features` and have biases.
        pad: Add rows as `padded_row` says; what they write is not to be read, and they are no parameters.
    """

    def __init__(self, projections: Sequence[nn.Linear], pad: bool):
        # without memory of its own: both parameters are views of what is multiplied with
        super().__init__(projections[0].in_features, sum(p.out_features for p in projections), device="meta")
        weight, bias = merged(projections, pad)
        self.all_weight: Tensor
        self.all_bias: Tensor
        self.register_buffer("all_weight", weight.detach(), persistent=False)
        self.register_buffer("all_bias", bias.detach(), persistent=False)
        self._view()

    def _view(self) -> None:
        self.weight = nn.Parameter(self.all_weight[: self.out_features], requires_grad=False)
        self.bias = nn.Parameter(self.all_bias[: self.out_features], requires_grad=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> MergedProjection:
        super()._apply(fn, recurse)
        self._view()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a pickle, in which views have become tensors of their own."""
        super().__setstate__(state)
        self._view()

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layers do, one after the other, for each pixel, and added numbers behind it.

        Args:
            input: (N, H, W, C).

        Returns:
            (N, H, W, `out_features` and added ones).
        """
        return F.linear(input, self.all_weight, self.all_bias)


def merged(projections: Sequence[nn.Linear], pad: bool) -> tuple[Tensor, Tensor]:
    """Join the weights (C_out, C) and biases (C_out) of linear layers that read the same pixels.

    Args:
        projections: The layers.
        pad: Add rows as `padded_row` says. They are copies that pass no gradient on.
    """
    weights: list[Tensor] = [p.weight for p in projections]
    biases: list[Tensor] = [p.bias for p in projections]
    rows = sum(p.out_features for p in projections)
    missing = padded_row(rows) - rows
    if pad and missing:
        # of the right device and dtype, and as finite as the rest
        widest = max(projections, key=lambda p: p.out_features)
        weights.append(widest.weight.detach()[:missing])
        biases.append(widest.bias.detach()[:missing])
    return torch.cat(weights), torch.cat(biases)


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
