"""The operator in plain PyTorch: any device, any floating dtype, differentiable, and the fallback of every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolo_dcnv4.ops.autocast import to_autocast_dtype
from yolo_dcnv4.ops.sampling_points import opmath_dtype, split_records, unchecked_sampling_points
from yolo_dcnv4.ops.window import Window


def dcnv4_reference(
    value: Tensor,
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
) -> Tensor:
    """Compute DCNv4 (arXiv 2401.06197, section 3) with PyTorch operators only.

    Arguments, result and errors are those of `yolo_dcnv4.ops.dcnv4`.
    """
    from yolo_dcnv4.ops.checks import check_arguments

    window = Window.make(kernel_size, stride, padding, dilation)
    if isinstance(value, Tensor) and isinstance(offset_mask, Tensor):
        value, offset_mask = to_autocast_dtype(value), to_autocast_dtype(offset_mask)
    check_arguments(value, offset_mask, groups, window, offset_scale, remove_center)
    return reference_forward(
        value, offset_mask, groups, window.to_list(), float(offset_scale), bool(remove_center), bool(softmax)
    )


class _Samples(NamedTuple):
    """Where the points sample and with which weight; each tensor is (N, H_out, W_out, groups, K)."""

    rows: Tensor  # int64, row of the top-left corner
    columns: Tensor  # int64, column of the top-left corner
    ly: Tensor  # fractional parts
    lx: Tensor
    weights: Tensor
    inside: Tensor  # bool, false where a point contributes nothing


class _Corner(NamedTuple):
    """One bilinear corner of one sampling point; each tensor is (N, H_out * W_out, groups, 1)."""

    pixel: Tensor  # pixel row * W + column, 0 where invalid
    valid: Tensor
    bilinear: Tensor
    slope_x: Tensor  # derivative of the bilinear factor with respect to x and y
    slope_y: Tensor


def _samples(
    offset_mask: Tensor,
    size: tuple[int, int],
    groups: int,
    win: Window,
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> _Samples:
    height, width = size
    x, y, _, _, weights = unchecked_sampling_points(offset_mask, groups, win, offset_scale, remove_center, softmax)

    # comparisons with NaN are false, so a NaN coordinate lies outside too
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    x = torch.where(inside, x, 0)
    y = torch.where(inside, y, 0)
    columns, rows = x.detach().floor(), y.detach().floor()
    return _Samples(rows.long(), columns.long(), y - rows, x - columns, torch.where(inside, weights, 0), inside)


def _corners(samples: _Samples, k: int, size: tuple[int, int]) -> Iterator[_Corner]:
    height, width = size
    n, out_h, out_w, groups = samples.rows.shape[:4]
    pixels = out_h * out_w
    row0, column0, ly, lx, _, inside = (t[..., k] for t in samples)
    for row, wy, slope_y in ((row0, 1 - ly, -1.0), (row0 + 1, ly, 1.0)):
        for column, wx, slope_x in ((column0, 1 - lx, -1.0), (column0 + 1, lx, 1.0)):
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            parts = (torch.where(valid, row * width + column, 0), valid, wy * wx, slope_x * wy, slope_y * wx)
            yield _Corner(*(part.reshape(n, pixels, groups, 1) for part in parts))


def reference_forward(
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> Tensor:
    """Run the reference on arguments in the form of the operator schema, unchecked."""
    n, height, width, channels = value.shape
    out_h, out_w = offset_mask.shape[1:3]
    size, win = (height, width), Window.from_list(window)
    samples = _samples(offset_mask, size, groups, win, offset_scale, remove_center, softmax)
    pixels = value.to(opmath_dtype(value.dtype)).reshape(n, height * width, groups, channels // groups)
    out = pixels.new_zeros(n, out_h * out_w, groups, channels // groups)
    for k in range(win.points(remove_center)):
        weight = samples.weights[..., k].reshape(n, out_h * out_w, groups, 1)
        for corner in _corners(samples, k, size):
            # zeroed before and after the product: neither a NaN pixel nor a NaN gradient times zero is zero
            gathered = torch.where(corner.valid, pixels.gather(1, corner.pixel.expand_as(out)), 0)
            out = out + torch.where(corner.valid, gathered * (weight * corner.bilinear), 0)
    return out.reshape(n, out_h, out_w, channels).to(value.dtype)


def reference_backward(
    grad_output: Tensor,
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
    needs_value: bool,
    needs_offset_mask: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of the reference; one that is not needed comes back as an empty tensor.

    The samples are computed anew, so that nothing but the inputs has to be kept for the backward pass.
    """
    del deterministic  # scatter_add follows torch.use_deterministic_algorithms by itself
    n, height, width, channels = value.shape
    out_h, out_w = offset_mask.shape[1:3]
    size, win = (height, width), Window.from_list(window)
    points = win.points(remove_center)
    samples = _samples(offset_mask, size, groups, win, offset_scale, remove_center, softmax)
    dtype = opmath_dtype(value.dtype)
    pixels = value.to(dtype).reshape(n, height * width, groups, channels // groups)
    grad = grad_output.to(dtype).reshape(n, out_h * out_w, groups, channels // groups)

    grad_pixels = torch.zeros_like(pixels)
    grad_offsets = grad.new_zeros(n, out_h * out_w, groups, points, 2)
    grad_weights = grad.new_zeros(n, out_h * out_w, groups, points)
    for k in range(points):
        weight = samples.weights[..., k].reshape(n, out_h * out_w, groups, 1)
        for corner in _corners(samples, k, size):
            if needs_value:
                share = torch.where(corner.valid, grad * (weight * corner.bilinear), 0)
                grad_pixels.scatter_add_(1, corner.pixel.expand_as(grad), share)
            if needs_offset_mask:
                gathered = pixels.gather(1, corner.pixel.expand_as(grad))
                dot = torch.where(corner.valid, (gathered * grad).sum(-1, keepdim=True), 0)
                grad_weights[..., k] += (dot * corner.bilinear)[..., 0]
                grad_offsets[..., k, 0] += (dot * weight * corner.slope_x)[..., 0]
                grad_offsets[..., k, 1] += (dot * weight * corner.slope_y)[..., 0]

    grad_value, grad_offset_mask = value.new_empty(0), value.new_empty(0)
    if needs_value:
        grad_value = grad_pixels.reshape(value.shape).to(value.dtype)
    if needs_offset_mask:
        if softmax:
            # those of points outside too: the softmax runs over all of them
            weights = split_records(offset_mask, groups, points, softmax)[1].flatten(1, 2)
            grad_weights = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True))
        records = torch.cat((grad_offsets.flatten(-2) * offset_scale, grad_weights), -1)
        records = records.reshape(n, out_h, out_w, 3 * groups * points)
        grad_offset_mask = offset_mask.new_zeros(offset_mask.shape)
        grad_offset_mask[..., : records.shape[-1]] = records
    return grad_value, grad_offset_mask


def reference_packed_forward(
    packed: Tensor,
    groups: int,
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
    channels: int,
) -> Tensor:
    """Run the reference on value and offset_mask side by side in one tensor (N, H, W, C + R)."""
    value, offset_mask = packed[..., :channels], packed[..., channels:]
    return reference_forward(value, offset_mask, groups, window, offset_scale, remove_center, softmax)


def reference_packed_backward(
    grad_output: Tensor,
    packed: Tensor,
    groups: int,
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
    channels: int,
    deterministic: bool,
) -> Tensor:
    """Compute the gradient of `reference_packed_forward`."""
    value, offset_mask = packed[..., :channels], packed[..., channels:]
    arguments = (groups, window, offset_scale, remove_center, softmax)
    return torch.cat(reference_backward(grad_output, value, offset_mask, *arguments, True, True, deterministic), dim=-1)
