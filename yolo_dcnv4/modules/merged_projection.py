"""The layer's projections of one input in one product, which writes value and offset_mask side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_dcnv4.ops.packed import padded_row


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
