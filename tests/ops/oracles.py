"""Two oracles of the operator in float64; neither shares code with the product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

# elements of value up to which the CPU computes gradients: a sanitizer that watches the GPU does not slow it down
MOST_CPU_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class Geometry:
    """Everything the operator takes beside its tensors; pairs are (h, w)."""

    groups: int = 1
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    scale: float = 1.0
    remove_center: bool = False
    softmax: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `yolo_dcnv4.ops.dcnv4`."""
        return {
            "groups": self.groups,
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "offset_scale": self.scale,
            "remove_center": self.remove_center,
            "softmax": self.softmax,
        }

    @property
    def operator_arguments(self) -> tuple[Any, ...]:
        """What follows the tensors in the schema of `torch.ops.yolo_dcnv4.dcnv4`."""
        window = [*self.kernel, *self.stride, *self.padding, *self.dilation]
        return self.groups, window, self.scale, self.remove_center, self.softmax

    @property
    def points(self) -> list[tuple[int, int]]:
        """(column, row) of each sampling point in the window, column by column."""
        kernel_h, kernel_w = self.kernel
        center = (kernel_w // 2, kernel_h // 2)
        everything = [(column, row) for column in range(kernel_w) for row in range(kernel_h)]
        return [p for p in everything if not (self.remove_center and p == center)]

    @property
    def rows(self) -> int:
        """Entries of `offset_mask` that carry meaning, 3*G*K."""
        return 3 * self.groups * len(self.points)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size of the output map for an input of `size`."""
        height, width = (
            1 + (size[a] + 2 * self.padding[a] - (self.dilation[a] * (self.kernel[a] - 1) + 1)) // self.stride[a]
            for a in (0, 1)
        )
        return height, width

    def centers(self, axis: int, count: int) -> np.ndarray:
        """Window centre of each of `count` outputs along an axis (0 vertical, 1 horizontal), in pixels."""
        half = self.dilation[axis] * (self.kernel[axis] - 1) // 2
        return np.arange(count) * self.stride[axis] + half - self.padding[axis]

    def reach(self, axis: int) -> np.ndarray:
        """Distance of each sampling point from the window's centre along an axis, before `scale`."""
        half = self.dilation[axis] * (self.kernel[axis] - 1) // 2
        return np.array([point[1 - axis] * self.dilation[axis] - half for point in self.points])


def torchvision_oracle(value: Tensor, offset_mask: Tensor, geometry: Geometry) -> Tensor:
    """Compute the operator with `torchvision.ops.deform_conv2d`, differentiably, in float64."""
    value, offset_mask = value.double(), offset_mask.double()
    n, _, _, channels = value.shape
    _, out_h, out_w, _ = offset_mask.shape
    kernel_h, kernel_w = geometry.kernel
    groups, points = geometry.groups, len(geometry.points)
    records = offset_mask[..., : geometry.rows].reshape(n, out_h, out_w, groups, 3 * points)
    weights = records[..., 2 * points :]
    if geometry.softmax:
        weights = weights.softmax(-1)

    # torchvision wants every point, row by row, as (dy, dx) from its own unscaled grid
    offset = offset_mask.new_zeros(n, groups, kernel_h, kernel_w, 2, out_h, out_w)
    mask = offset_mask.new_zeros(n, groups, kernel_h, kernel_w, out_h, out_w)
    for k, (column, row) in enumerate(geometry.points):
        for place, axis in ((0, 0), (1, 1)):
            delta = records[..., 2 * k + 1 - axis].movedim(-1, 1)
            offset[:, :, row, column, place] = geometry.scale * delta + (geometry.scale - 1) * geometry.reach(axis)[k]
        mask[:, :, row, column] = weights[..., k].movedim(-1, 1)
    out = torchvision.ops.deform_conv2d(
        value.permute(0, 3, 1, 2).contiguous(),
        offset.reshape(n, -1, out_h, out_w),
        value.new_ones(channels, 1, kernel_h, kernel_w),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        mask=mask.reshape(n, -1, out_h, out_w),
    )
    return out.permute(0, 2, 3, 1)


def torchvision_gradients(
    value: Tensor, offset_mask: Tensor, grad: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, gradient of value, gradient of offset_mask) of the torchvision oracle, in float64."""
    there = "cpu" if value.numel() <= MOST_CPU_ELEMENTS else value.device
    leaves = [t.detach().to(there, torch.float64).contiguous().requires_grad_() for t in (value, offset_mask)]
    out = torchvision_oracle(*leaves, geometry)
    grad_value, grad_offset_mask = torch.autograd.grad(out, leaves, grad.to(there, torch.float64))
    return out.detach().to(value.device), grad_value.to(value.device), grad_offset_mask.to(value.device)


def numpy_oracle(value: Tensor, offset_mask: Tensor, grad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output, gradient of value, gradient of offset_mask) from plain loops in float64."""
    pixels, rows, upstream = (t.detach().double().cpu().numpy() for t in (value, offset_mask, grad))
    n, height, width, channels = pixels.shape
    _, out_h, out_w, _ = rows.shape
    points, s = len(geometry.points), geometry.scale
    depth = channels // geometry.groups
    centers_y, centers_x = geometry.centers(0, out_h), geometry.centers(1, out_w)
    reach_y, reach_x = geometry.reach(0), geometry.reach(1)
    out, grad_pixels, grad_rows = np.zeros(upstream.shape), np.zeros(pixels.shape), np.zeros(rows.shape)

    for b, yo, xo, g in np.ndindex(n, out_h, out_w, geometry.groups):
        band = slice(g * depth, (g + 1) * depth)
        begin = 3 * points * g
        logits = rows[b, yo, xo, begin + 2 * points : begin + 3 * points]
        weights = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() if geometry.softmax else logits
        up = upstream[b, yo, xo, band]
        grad_weights = np.zeros(points)
        for k in range(points):
            dx, dy = rows[b, yo, xo, begin + 2 * k : begin + 2 * k + 2]
            x = centers_x[xo] + (reach_x[k] + dx) * s
            y = centers_y[yo] + (reach_y[k] + dy) * s
            if not (-1 < x < width and -1 < y < height):
                continue
            left, top = int(np.floor(x)), int(np.floor(y))
            lx, ly = x - left, y - top
            for cy, cx, share, slope_x, slope_y in (
                (top, left, (1 - ly) * (1 - lx), -(1 - ly), -(1 - lx)),
                (top, left + 1, (1 - ly) * lx, 1 - ly, -lx),
                (top + 1, left, ly * (1 - lx), -ly, 1 - lx),
                (top + 1, left + 1, ly * lx, ly, lx),
            ):
                if not (0 <= cy < height and 0 <= cx < width):
                    continue
                corner = pixels[b, cy, cx, band]
                dot = (up * corner).sum()
                out[b, yo, xo, band] += weights[k] * share * corner
                grad_pixels[b, cy, cx, band] += weights[k] * share * up
                grad_weights[k] += share * dot
                grad_rows[b, yo, xo, begin + 2 * k] += s * weights[k] * slope_x * dot
                grad_rows[b, yo, xo, begin + 2 * k + 1] += s * weights[k] * slope_y * dot
        if geometry.softmax:
            grad_weights = weights * (grad_weights - (weights * grad_weights).sum())
        grad_rows[b, yo, xo, begin + 2 * points : begin + 3 * points] = grad_weights
    return torch.from_numpy(out), torch.from_numpy(grad_pixels), torch.from_numpy(grad_rows)
