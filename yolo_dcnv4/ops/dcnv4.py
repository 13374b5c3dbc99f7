"""The DCNv4 operator: wrapper, fake kernels, autograd and autocast around `torch.ops.yolo_dcnv4`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolo_dcnv4.ops.autocast import to_autocast_dtype
from yolo_dcnv4.ops.checks import check_arguments
from yolo_dcnv4.ops.dispatch import dispatch, register_autograd
from yolo_dcnv4.ops.export import decompose, leaves_decomposed
from yolo_dcnv4.ops.library import cuda_obstacle
from yolo_dcnv4.ops.reference import reference_forward
from yolo_dcnv4.ops.window import window_of

_DCNV4 = torch.ops.yolo_dcnv4.dcnv4.default
_DCNV4_BACKWARD = torch.ops.yolo_dcnv4.dcnv4_backward.default

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def dcnv4(
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
    """Deformable convolution v4 (arXiv 2401.06197, section 3): a weighted sum of bilinear samples per group.

    Group g of the last dimension of `offset_mask` is the slice [3 * K * g, 3 * K * (g + 1)): K pairs (dx, dy), then K
    weights, the points ordered with the horizontal index outer. Offsets are in input pixels.

    Args:
        value: Features (N, H, W, C), C divisible by `groups`; float64, float32, float16 or bfloat16.
        offset_mask: Offsets and weights (N, H_out, W_out, R), R >= 3 * groups * K, same dtype and device;
            entries past these are padding.
        groups: Number of groups; the C / groups channels of a group share offsets and weights.
        kernel_size: Window size, int or (h, w).
        stride: Window stride, int or (h, w).
        padding: Zero padding, int or (h, w).
        dilation: Window dilation, int or (h, w).
        offset_scale: Factor on grid and offsets about the window's centre.
        remove_center: Leave the window's centre point out; needs an odd kernel.
        softmax: Normalise the K weights with a softmax first (the aggregation of DCNv3).

    Returns:
        Tensor (N, H_out, W_out, C) of the dtype of `value`; under autocast, of the autocast dtype.

    Raises:
        TypeError: Wrong type or mixed dtypes.
        ValueError: Wrong shape, device, group count or window.
    """
    window = window_of(kernel_size, stride, padding, dilation)
    if isinstance(value, Tensor) and isinstance(offset_mask, Tensor):
        value, offset_mask = to_autocast_dtype(value), to_autocast_dtype(offset_mask)
    check_arguments(value, offset_mask, groups, window, offset_scale, remove_center)
    if value.dtype not in DTYPES:
        raise TypeError(f"value and offset_mask must be float64, float32, float16 or bfloat16, got {value.dtype}")
    arguments = (groups, window.to_list(), float(offset_scale), bool(remove_center), bool(softmax))
    if leaves_decomposed():
        return decompose(value, offset_mask, *arguments)
    if not has_kernel(value):
        return reference_forward(value, offset_mask, *arguments)
    return dispatch(_DCNV4, dense_rows(value), dense_rows(offset_mask), *arguments)


def has_kernel(tensor: Tensor) -> bool:
    """Whether the dispatcher's entry for the tensor's device runs here; an old GPU may find no code for itself."""
    return not tensor.is_cuda or torch.compiler.is_compiling() or not cuda_obstacle(tensor.get_device())


def dense_rows(tensor: Tensor) -> Tensor:
    """Return the tensor in a layout that the kernels take: any strides but the last."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    # contiguous() would leave the strides of an empty batch as they are
    return tensor.clone(memory_format=torch.contiguous_format)


@torch.library.register_fake("yolo_dcnv4::dcnv4")
def _(value, offset_mask, groups, window, offset_scale, remove_center, softmax):
    return value.new_empty((value.shape[0], offset_mask.shape[1], offset_mask.shape[2], value.shape[3]))


@torch.library.register_fake("yolo_dcnv4::dcnv4_backward")
def _(
    grad_output,
    value,
    offset_mask,
    groups,
    window,
    offset_scale,
    remove_center,
    softmax,
    needs_value,
    needs_offset_mask,
    deterministic,
):
    return (
        value.new_empty(value.shape if needs_value else (0,)),
        value.new_empty(offset_mask.shape if needs_offset_mask else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    value, offset_mask, *ctx.arguments = inputs
    ctx.save_for_backward(value, offset_mask)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, offset_mask = ctx.saved_tensors
    needs_value, needs_offset_mask = ctx.needs_input_grad[:2]
    grad_value, grad_offset_mask = dispatch(
        _DCNV4_BACKWARD,
        dense_rows(grad_output),
        value,
        offset_mask,
        *ctx.arguments,
        needs_value,
        needs_offset_mask,
        # the stable ABI cannot ask for it
        torch.are_deterministic_algorithms_enabled(),
    )
    constants = (None,) * len(ctx.arguments)
    return grad_value if needs_value else None, grad_offset_mask if needs_offset_mask else None, *constants


def refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    """Raise; the autograd rule of both backward operators."""
    raise RuntimeError(
        "dcnv4 has no second derivative; for one, use yolo_dcnv4.ops.dcnv4_reference, which is differentiable twice"
    )


register_autograd(_DCNV4, _setup_context, _backward)
torch.library.register_autograd("yolo_dcnv4::dcnv4_backward", refuse_double_backward)
