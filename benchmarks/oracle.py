"""DCNv4 through torchvision's deform_conv2d: what the benchmarks check results against, and one of their rivals."""

from __future__ import annotations

import torchvision
from torch import Tensor


def torchvision_arguments(offset_mask: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return offset and mask of `deform_conv2d` for a 3 x 3 window.

    Args:
        offset_mask: (N, H, W, R), R >= 27 * groups.
        groups: Number of groups.

    Returns:
        Offsets (N, groups * 18, H, W) in the order (dy, dx), weights (N, groups * 9, H, W), both row by row.
    """
    n, height, width, _ = offset_mask.shape
    records = offset_mask[..., : 27 * groups].reshape(n, height, width, groups, 27)
    # ours runs down the columns of the window, torchvision along its rows
    offsets = records[..., :18].reshape(n, height, width, groups, 3, 3, 2).transpose(4, 5).flip(-1)
    weights = records[..., 18:].reshape(n, height, width, groups, 3, 3).transpose(4, 5)
    return (
        offsets.reshape(n, height, width, groups * 18).permute(0, 3, 1, 2).contiguous(),
        weights.reshape(n, height, width, groups * 9).permute(0, 3, 1, 2).contiguous(),
    )


def oracle(value: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    """Return what DCNv4 (3 x 3, stride 1, padding 1) must give, (N, H, W, C), in the dtype of the input."""
    offset, mask = torchvision_arguments(offset_mask, groups)
    weight = value.new_ones(value.shape[-1], 1, 3, 3)
    out = torchvision.ops.deform_conv2d(value.permute(0, 3, 1, 2).contiguous(), offset, weight, None, 1, 1, 1, mask)
    return out.permute(0, 2, 3, 1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return |a - b| / |b| (Frobenius)."""
    return float((actual.double() - expected).norm() / expected.norm())
