"""Where the operator samples, and with which weights: for the reference, pictures and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_dcnv4.ops.window import Window


class SamplingPoints(NamedTuple):
    """Sampling points of every output pixel; each tensor is (N, H_out, W_out, groups, K), in pixels of the input.

    Attributes:
        x: Horizontal position; 0 is the centre of the leftmost pixel.
        y: Vertical position; 0 is the centre of the topmost pixel.
        dx: How far the learned offset has moved the point to the right, the offset scale included.
        dy: How far it has moved the point down.
        weights: Aggregation weights.
    """

    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor
    weights: Tensor


def sampling_points(
    offset_mask: Tensor,
    *,
    groups: int,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> SamplingPoints:
    """Return the points at which `yolo_dcnv4.ops.dcnv4` samples, in float32 (float64 for float64).

    Points outside the input, which contribute nothing, are returned like the others.

    Args:
        offset_mask: Offsets and weights (N, H_out, W_out, R), as the operator takes them.
        groups: Number of groups.
        kernel_size: Window size, int or (h, w).
        stride: Window stride, int or (h, w).
        padding: Zero padding, int or (h, w).
        dilation: Window dilation, int or (h, w).
        offset_scale: Factor on grid and offsets about the window's centre.
        remove_center: Leave the window's centre point out.
        softmax: Normalise the K weights with a softmax.

    Raises:
        ValueError: `offset_mask` has a wrong rank or too few entries in its last dimension.
    """
    window = Window.make(kernel_size, stride, padding, dilation)
    points = window.points(remove_center)
    if offset_mask.dim() != 4 or offset_mask.shape[3] < 3 * groups * points:
        raise ValueError(
            f"offset_mask must be (N, H_out, W_out, R) with R of at least 3 * groups * K = {3 * groups * points}, "
            f"got shape {tuple(offset_mask.shape)}"
        )
    return unchecked_sampling_points(offset_mask, groups, window, offset_scale, remove_center, softmax)


def unchecked_sampling_points(
    offset_mask: Tensor, groups: int, win: Window, offset_scale: float, remove_center: bool, softmax: bool
) -> SamplingPoints:
    """Return what `sampling_points` returns, of arguments that have been checked."""
    grid_points = win.grid(remove_center)
    offsets, weights = split_records(offset_mask, groups, len(grid_points), softmax)
    dx, dy = (offsets * offset_scale).unbind(-1)

    grid = torch.tensor(grid_points, dtype=offsets.dtype, device=offsets.device)
    grid_x = (grid[:, 0] * win.dilation_w - win.half_w) * offset_scale
    grid_y = (grid[:, 1] * win.dilation_h - win.half_h) * offset_scale
    rows, columns = (torch.arange(n, dtype=offsets.dtype, device=offsets.device) for n in offset_mask.shape[1:3])
    centers_x = columns * win.stride_w + (win.half_w - win.pad_w)
    centers_y = rows * win.stride_h + (win.half_h - win.pad_h)
    # in this order little is lost to rounding, and nothing but the last step with scale 1
    return SamplingPoints(
        x=(centers_x.view(-1, 1, 1) + grid_x) + dx,
        y=(centers_y.view(-1, 1, 1, 1) + grid_y) + dy,
        dx=dx,
        dy=dy,
        weights=weights,
    )


def split_records(offset_mask: Tensor, groups: int, points: int, softmax: bool) -> tuple[Tensor, Tensor]:
    """Return offsets (N, H_out, W_out, groups, K, 2) and weights (N, H_out, W_out, groups, K) in the opmath dtype."""
    entries = offset_mask[..., : 3 * groups * points].to(opmath_dtype(offset_mask.dtype))
    records = entries.unflatten(-1, (groups, 3 * points))
    weights = records[..., 2 * points :]
    return records[..., : 2 * points].unflatten(-1, (points, 2)), weights.softmax(-1) if softmax else weights


def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which the operator computes."""
    return torch.float64 if dtype == torch.float64 else torch.float32
