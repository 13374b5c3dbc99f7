"""Argument checks: every wrong input is named here, before any kernel runs."""

from __future__ import annotations

from torch import Tensor

from yolo_dcnv4.ops.window import Window


def _check_tensor(name: str, layout: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions {layout}, got shape {tuple(tensor.shape)}")


def check_arguments(
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    window: Window,
    offset_scale: float,
    remove_center: bool,
) -> None:
    """Check the arguments of the operator.

    Raises:
        TypeError: A tensor argument is no tensor, not floating point, or dtypes differ; `groups` is no int;
            `offset_scale` is no number.
        ValueError: Wrong rank, shape, device or group count, a window without points or an empty output map.
    """
    _check_tensor("value", "(N, H, W, C)", value)
    _check_tensor("offset_mask", "(N, H_out, W_out, R)", offset_mask)
    if value.dtype != offset_mask.dtype:
        raise TypeError(f"value and offset_mask must have one dtype, got {value.dtype} and {offset_mask.dtype}")
    if value.device != offset_mask.device:
        raise ValueError(
            f"value and offset_mask must be on one device, got value on {value.device} "
            f"and offset_mask on {offset_mask.device}"
        )
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"groups must be an int, got {groups!r}")
    if isinstance(offset_scale, bool) or not isinstance(offset_scale, (int, float)):
        raise TypeError(f"offset_scale must be a number, got {offset_scale!r}")

    n, height, width, channels = value.shape
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"value must have H, W and C of at least 1, got shape {tuple(value.shape)}")
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must be at least 1 and divide the {channels} channels of value, got {groups}")
    if remove_center and not (window.kernel_h % 2 and window.kernel_w % 2):
        raise ValueError(
            f"remove_center needs an odd kernel_size, got {(window.kernel_h, window.kernel_w)}, which has no centre"
        )
    points = window.points(remove_center)
    if points < 1:
        raise ValueError("remove_center leaves no sampling point in a kernel_size of (1, 1); use a larger kernel_size")

    out_h, out_w = window.output_size(height, width)
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"value of {height} x {width} pixels is too small for kernel_size {(window.kernel_h, window.kernel_w)}, "
            f"dilation {(window.dilation_h, window.dilation_w)} and padding {(window.pad_h, window.pad_w)}: "
            f"the output map would be {out_h} x {out_w}"
        )
    records, rows, columns, entries = offset_mask.shape
    if records != n:
        raise ValueError(f"offset_mask must have the batch size {n} of value, got shape {tuple(offset_mask.shape)}")
    if rows != out_h or columns != out_w:
        raise ValueError(
            f"offset_mask must have the output map's size {out_h} x {out_w}, got shape {tuple(offset_mask.shape)}"
        )
    if entries < 3 * groups * points:
        raise ValueError(
            f"offset_mask must have at least 3 * groups * K = 3 * {groups} * {points} = {3 * groups * points} "
            f"entries in its last dimension, got shape {tuple(offset_mask.shape)}"
        )
