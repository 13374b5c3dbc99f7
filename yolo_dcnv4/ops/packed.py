"""The operator on value and offset_mask side by side in one tensor, as one projection writes them.

One gradient comes back for both: the gradients of two views would be copied together first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from yolo_dcnv4.ops.autocast import to_autocast_dtype
from yolo_dcnv4.ops.dcnv4 import dcnv4, dense_rows, has_kernel, refuse_double_backward
from yolo_dcnv4.ops.dispatch import dispatch, register_autograd
from yolo_dcnv4.ops.export import leaves_decomposed
from yolo_dcnv4.ops.window import Window

# numbers of a pixel: its groups then lie in banks of their own in a GPU's L1, and products are the faster ones
ROW_MULTIPLE = 64

_PACKED = torch.ops.yolo_dcnv4.dcnv4_packed.default
_PACKED_BACKWARD = torch.ops.yolo_dcnv4.dcnv4_packed_backward.default


def padded_row(numbers: int) -> int:
    """Return how many numbers a pixel best has on a GPU in half precision: a multiple of 64 if an eighth more will do.

    Args:
        numbers: Those that are needed, C + R.
    """
    padded = math.ceil(numbers / ROW_MULTIPLE) * ROW_MULTIPLE
    return padded if 8 * (padded - numbers) <= numbers else numbers


def dcnv4_packed(
    packed: Tensor,
    *,
    channels: int,
    groups: int,
    window: Window,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> Tensor:
    """Compute `dcnv4(packed[..., :channels], packed[..., channels:])`, the output map being as large as the input.

    Args:
        packed: Features and sampling records (N, H, W, C + R).
        channels: C.
        groups: Number of groups.
        window: Geometry of the sampling window, one that keeps the map's size.
        offset_scale: Factor on grid and offsets about the window's centre.
        remove_center: Leave the window's centre point out.
        softmax: Normalise the weights of a record with a softmax first.

    Returns:
        Tensor (N, H, W, C).
    """
    packed = to_autocast_dtype(packed)
    if leaves_decomposed() or not has_kernel(packed):
        return dcnv4(
            packed[..., :channels],
            packed[..., channels:],
            groups=groups,
            kernel_size=(window.kernel_h, window.kernel_w),
            stride=(window.stride_h, window.stride_w),
            padding=(window.pad_h, window.pad_w),
            dilation=(window.dilation_h, window.dilation_w),
            offset_scale=offset_scale,
            remove_center=remove_center,
            softmax=softmax,
        )
    return dispatch(
        _PACKED, dense_rows(packed), groups, window.to_list(), offset_scale, remove_center, softmax, channels
    )


def infer_packed(
    packed: Tensor, channels: int, groups: int, window: Window, offset_scale: float, remove_center: bool
) -> Tensor:
    """Compute `dcnv4_packed` of a tensor that is dense in its last dimension, while nothing is recorded or traced."""
    if not has_kernel(packed):
        return dcnv4_packed(
            packed,
            channels=channels,
            groups=groups,
            window=window,
            offset_scale=offset_scale,
            remove_center=remove_center,
        )
    return dispatch(_PACKED, packed, groups, window.to_list(), offset_scale, remove_center, False, channels)


@torch.library.register_fake("yolo_dcnv4::dcnv4_packed")
def _(packed, groups, window, offset_scale, remove_center, softmax, channels):
    return packed.new_empty((*packed.shape[:3], channels))


@torch.library.register_fake("yolo_dcnv4::dcnv4_packed_backward")
def _(grad_output, packed, groups, window, offset_scale, remove_center, softmax, channels, deterministic):
    return packed.new_empty(packed.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    packed, *ctx.arguments = inputs
    ctx.save_for_backward(packed)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    (packed,) = ctx.saved_tensors
    grad_packed = dispatch(
        _PACKED_BACKWARD,
        dense_rows(grad_output),
        packed,
        *ctx.arguments,
        # the stable ABI cannot ask for it
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_packed, *(None,) * len(ctx.arguments)


register_autograd(_PACKED, _setup_context, _backward)
torch.library.register_autograd("yolo_dcnv4::dcnv4_packed_backward", refuse_double_backward)
