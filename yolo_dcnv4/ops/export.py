"""The form in which the operator leaves on export: stock operators, unless the native one is asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_dcnv4.ops.sampling_points import opmath_dtype
from yolo_dcnv4.ops.window import Window

FORMS = ("grid_sample", "grid_sample_finite", "deform_conv", "native")
VARIABLE = "YOLO_DCNV4_EXPORT"
DEFORM_CONV_OPSET = 19
# in pixels: outside every image, and far from the limits of int32
NOWHERE = 1e6

_chosen: str | None = None


@contextmanager
def export_form(form: str) -> Iterator[None]:
    """Choose the form in which the operator leaves in every export inside the `with` block.

    Args:
        form: `"grid_sample"`, the default: stock operators that every runtime has; `"grid_sample_finite"`: the same
            without comparisons, for NCNN, where an offset that is NaN makes its output NaN; `"deform_conv"`:
            `torchvision.ops.deform_conv2d`, which is the operator DeformConv in ONNX from opset 19 on; `"native"`: the
            operator itself, for programs that load its library. The environment variable YOLO_DCNV4_EXPORT chooses
            for a whole process.

    Raises:
        ValueError: `form` is none of these.
    """
    global _chosen
    before, _chosen = _chosen, _known(form, "form")
    if form == "deform_conv":
        # while tracing it would be traced
        import torchvision.ops  # noqa: F401
    try:
        yield
    finally:
        _chosen = before


def current_form() -> str:
    """Return the form that an export takes now.

    Raises:
        ValueError: The environment variable YOLO_DCNV4_EXPORT names no form.
    """
    return _chosen or _known(os.environ.get(VARIABLE) or FORMS[0], VARIABLE)


def _known(form: str, name: str) -> str:
    if form not in FORMS:
        raise ValueError(f"{name} must be one of {', '.join(FORMS)}, got {form!r}")
    return form


def is_exporting() -> bool:
    """Return whether this call is traced into a graph that leaves the process; torch.compile is no export."""
    # an export to ONNX is one of these two; asking it, too, takes as long as the rest of the operator's wrapper
    return torch.jit.is_tracing() or _is_torch_export()


def is_traced() -> bool:
    """Return whether this call is traced by torch.jit, torch.export or torch.compile."""
    # an export of torch.export counts as compiling
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


# while torch.compile traces it, torch.compiler.is_exporting() is taken to be True
@torch.compiler.assume_constant_result
def _is_torch_export() -> bool:
    return torch.compiler.is_exporting()


def leaves_decomposed() -> bool:
    """Return whether this call is to be traced as stock operators."""
    return is_exporting() and current_form() != "native"


def decompose(
    value: Tensor,
    offset_mask: Tensor,
    groups: int,
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
    softmax: bool,
) -> Tensor:
    """Compute the operator with stock operators of rank 4 at most; arguments as in the operator schema, unchecked.

    Sizes may be traced: the graph then serves other batch and image sizes.
    """
    win = Window.from_list(window)
    points = win.points(remove_center)
    n, out_h, out_w, _ = offset_mask.shape
    # for half models too: positions need it, and ONNX Runtime's CUDA GridSample takes float32 alone
    dtype = opmath_dtype(value.dtype)
    records = offset_mask[..., : 3 * groups * points].to(dtype).reshape(n, -1, groups, 3 * points)
    offsets, weights = records.split((2 * points, points), -1)
    weights = weights.softmax(-1) if softmax else weights
    pixels = value.permute(0, 3, 1, 2).to(dtype)
    if current_form() == "deform_conv":
        out = _deform_conv(pixels, offsets, weights, (out_h, out_w), groups, win, offset_scale, remove_center)
    else:
        out = _grid_sample(pixels, offsets, weights, (out_h, out_w), groups, win, offset_scale, remove_center)
    return out.to(value.dtype)


def _grid_sample(
    pixels: Tensor,
    offsets: Tensor,
    weights: Tensor,
    out_size: tuple[int, int],
    groups: int,
    win: Window,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    n, _, height, width = pixels.shape
    points = win.grid(remove_center)
    pairs = offsets.reshape(n, -1, groups * len(points), 2)
    # rows and columns apart: what a runtime folds into constants is a line of the map, not the map. pnnx crashes at
    # negative dimensions of select
    x, y = (pairs.select(3, axis).reshape(n, *out_size, -1) for axis in (0, 1))
    columns = _centers(x, out_size[1], win.stride_w, win.half_w - win.pad_w).unsqueeze(-1)
    rows = _centers(y, out_size[0], win.stride_h, win.half_h - win.pad_h).unsqueeze(-1).unsqueeze(-1)
    reach_x = [(i * win.dilation_w - win.half_w) * offset_scale for i, _ in points] * groups
    reach_y = [(j * win.dilation_h - win.half_h) * offset_scale for _, j in points] * groups
    x = _normalized(x, offset_scale, columns + _constant(reach_x, x), width)
    y = _normalized(y, offset_scale, rows + _constant(reach_y, y), height)
    grid = torch.stack((x.reshape(n, -1, groups * len(points)), y.reshape(n, -1, groups * len(points))), -1)
    # inside is at most 2 (one pixel beside an image of one); infinity and NaN must not reach the interpolation
    grid = grid.clamp(-3, 3) if current_form() == "grid_sample_finite" else torch.where(grid.abs() <= 3, grid, 3.0)

    # a call per group: NCNN serves neither a larger batch nor a larger rank
    parts = [
        F.grid_sample(image, places, mode="bilinear", padding_mode="zeros", align_corners=False) * shares
        for image, places, shares in zip(
            _split(pixels, groups, 1), _split(grid, groups, 2), _split(weights.transpose(1, 2), groups, 1), strict=True
        )
    ]
    out = torch.cat([part.sum(-1) for part in parts], 1)
    return out.transpose(1, 2).reshape(n, *out_size, -1)


def _split(tensor: Tensor, count: int, dim: int) -> Sequence[Tensor]:
    # coremltools cannot read a chunk into one
    return tensor.chunk(count, dim) if count > 1 else (tensor,)


def _centers(like: Tensor, count: int, stride: int, first: int) -> Tensor:
    """Return the window's centre, in pixels along one axis, of each output."""
    # int64, for TensorRT knows no float Range of a traced length; type_as, for the device of a factory stays fixed in a
    # graph, and what was traced on a CPU could not move to a GPU
    return torch.arange(count).to(like.dtype).type_as(like) * stride + first


def _constant(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).type_as(like)


def _normalized(offset: Tensor, offset_scale: float, base: Tensor, size: int) -> Tensor:
    """Return base + offset_scale * offset, pixels along an axis, in grid_sample's units: edge to edge is -1 to 1."""
    # a tensor over the size: coremltools divides no number by a traced size
    return offset * (_constant([2 * offset_scale], offset) / size) + ((2 * base + 1) / size - 1)


def _deform_conv(
    pixels: Tensor,
    offsets: Tensor,
    weights: Tensor,
    out_size: tuple[int, int],
    groups: int,
    win: Window,
    offset_scale: float,
    remove_center: bool,
) -> Tensor:
    from torchvision.ops import deform_conv2d

    if torch.onnx.is_in_onnx_export():
        _teach_onnx()
    grid = win.grid(remove_center)
    # torchvision runs row by row and takes (dy, dx); a centre that is left out gets the zeros padded to the end
    row_by_row = [(i, j) for j in range(win.kernel_h) for i in range(win.kernel_w)]
    order = [grid.index(point) if point in grid else len(grid) for point in row_by_row]
    pairs = F.pad(offsets, (0, 2)).index_select(-1, _indices([2 * k + a for k in order for a in (1, 0)], offsets))
    shares = F.pad(weights, (0, 1)).index_select(-1, _indices(order, weights))
    pairs = torch.where(pairs.abs() <= NOWHERE, pairs, NOWHERE) * offset_scale
    # its window is not scaled
    reach = [(j * win.dilation_h - win.half_h, i * win.dilation_w - win.half_w) for i, j in row_by_row]
    pairs = pairs + _constant([(offset_scale - 1) * r for pair in reach for r in pair], pairs)

    n = pixels.shape[0]
    out = deform_conv2d(
        pixels,
        pairs.reshape(n, *out_size, -1).permute(0, 3, 1, 2),
        torch.ones_like(pixels[0, :, :1, :1]).unsqueeze(1).expand(-1, -1, win.kernel_h, win.kernel_w),
        stride=(win.stride_h, win.stride_w),
        padding=(win.pad_h, win.pad_w),
        dilation=(win.dilation_h, win.dilation_w),
        mask=shares.reshape(n, *out_size, -1).permute(0, 3, 1, 2),
    )
    return out.permute(0, 2, 3, 1)


@functools.cache
def _teach_onnx() -> None:
    """Give torchvision's operator its form in ONNX, which neither torch nor torchvision does."""
    from torch.onnx import symbolic_helper

    def deform_conv(g: Any, value: Any, weight: Any, offset: Any, mask: Any, bias: Any, *numbers: Any) -> Any:
        # the last one says whether there is a mask
        constants = [symbolic_helper._get_const(number, "i", "number") for number in numbers[:-1]]
        stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups = constants
        return g.op(
            "DeformConv",
            *(value, weight, offset, bias, mask),
            strides_i=[stride_h, stride_w],
            pads_i=[pad_h, pad_w, pad_h, pad_w],
            dilations_i=[dilation_h, dilation_w],
            group_i=groups,
            offset_group_i=offset_groups,
        )

    torch.onnx.register_custom_op_symbolic("torchvision::deform_conv2d", deform_conv, DEFORM_CONV_OPSET)


def _indices(values: list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)


def at_window_centers(features: Tensor, win: Window) -> Tensor:
    """Return the pixels (N, H_out, W_out, C) of `features` (N, H, W, C) at the windows' centres, borders continued.

    Pooling with one pixel, for NCNN has no index_select and the indices' device would be fixed in the graph.
    """
    before_h, before_w = win.pad_h - win.half_h, win.pad_w - win.half_w
    after_h = win.pad_h - win.dilation_h * (win.kernel_h - 1) + win.half_h
    after_w = win.pad_w - win.dilation_w * (win.kernel_w - 1) + win.half_w
    pixels = features.permute(0, 3, 1, 2)
    sides = (before_w, after_w, before_h, after_h)
    if max(sides) > 0:
        pixels = F.pad(pixels, [max(side, 0) for side in sides], mode="replicate")
    if min(sides) < 0:
        pixels = F.pad(pixels, [min(side, 0) for side in sides])
    return F.max_pool2d(pixels, 1, (win.stride_h, win.stride_w)).permute(0, 2, 3, 1)
