"""Where the operator samples, and with which weights: for pictures and statistics, no kernel uses it."""

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
    dtype = torch.float64 if offset_mask.dtype == torch.float64 else torch.float32
    records = offset_mask[..., : 3 * groups * points].to(dtype).unflatten(-1, (groups, 3 * points))
    dx, dy = (records[..., : 2 * points] * offset_scale).unflatten(-1, (points, 2)).unbind(-1)
    weights = records[..., 2 * points :]

    grid = torch.tensor(window.grid(remove_center), dtype=dtype, device=offset_mask.device)
    grid_x = (grid[:, 0] * window.dilation_w - window.half_w) * offset_scale
    grid_y = (grid[:, 1] * window.dilation_h - window.half_h) * offset_scale
    rows, columns = (torch.arange(length, dtype=dtype, device=offset_mask.device) for length in offset_mask.shape[1:3])
    centers_x = columns * window.stride_w + (window.half_w - window.pad_w)
    centers_y = rows * window.stride_h + (window.half_h - window.pad_h)
    return SamplingPoints(
        x=centers_x.view(-1, 1, 1) + grid_x + dx,
        y=centers_y.view(-1, 1, 1, 1) + grid_y + dy,
        dx=dx,
        dy=dy,
        weights=weights.softmax(-1) if softmax else weights,
    )
