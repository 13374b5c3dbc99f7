"""The DCNv4 layer: projections around the core operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from yolo_dcnv4.modules.merged_projection import MergedProjection, merged
from yolo_dcnv4.modules.projection import convolve, has_hooks, numbers, parses, project
from yolo_dcnv4.ops.autocast import autocast_dtype
from yolo_dcnv4.ops.dcnv4 import dcnv4, dense_rows
from yolo_dcnv4.ops.export import at_window_centers, is_exporting, is_traced
from yolo_dcnv4.ops.packed import dcnv4_packed, infer_packed
from yolo_dcnv4.ops.sampling_points import SamplingPoints, sampling_points
from yolo_dcnv4.ops.window import Window, window_of

GROUP_WIDTH = 16


def default_groups(channels: int) -> int:
    """Return the group count that gives groups of 16 channels, or of the largest divisor of `channels` below 16.

    Args:
        channels: Number of channels; every width works.
    """
    width = max(d for d in range(1, min(GROUP_WIDTH, channels) + 1) if channels % d == 0)
    return channels // width


def _entries(groups: int, points: int) -> int:
    return math.ceil(3 * groups * points / 8) * 8


class DCNv4Core(nn.Module):
    """The core operator as a childless module, so that FLOP counters find it.

    Args:
        kernel_size: Window size in pixels, int or (h, w).
        stride: Window stride in pixels, int or (h, w).
        pad: Zero padding in pixels, int or (h, w).
        dilation: Window dilation in pixels, int or (h, w).
        group: Number of groups.
        offset_scale: Factor on grid and offsets about the window's centre.
        remove_center: Leave the window's centre point out.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        remove_center: bool = False,
    ):
        super().__init__()
        # plain ints, not a Window: checkpoints then name no class but this one
        self.kernel_size, self.stride, self.pad, self.dilation = kernel_size, stride, pad, dilation
        self.group, self.offset_scale, self.remove_center = group, offset_scale, bool(remove_center)

    @property
    def window(self) -> Window:
        """The window's geometry."""
        return window_of(self.kernel_size, self.stride, self.pad, self.dilation)

    @property
    def points(self) -> int:
        """Number of sampling points K."""
        return self.window.points(self.remove_center)

    @property
    def entries(self) -> int:
        """Entries R of a pixel's sampling record: three for each group and point, padded to a multiple of 8."""
        return _entries(self.group, self.points)

    def forward(self, value: Tensor, offset_mask: Tensor | None = None, channels: int | None = None) -> Tensor:
        """Aggregate `value` (N, H, W, C) at the points of `offset_mask` (N, H_out, W_out, R).

        Where the window keeps the map's size, `value` may hold both side by side, (N, H, W, C + R), and `offset_mask`
        be left out; `channels` then says what C is, unless R is `entries`.
        """
        if offset_mask is None:
            return dcnv4_packed(
                value,
                channels=self._packed_channels(value, channels),
                groups=self.group,
                window=self.window,
                offset_scale=self.offset_scale,
                remove_center=self.remove_center,
            )
        return dcnv4(value, offset_mask, **self._arguments())

    def sampling_points(
        self, value: Tensor, offset_mask: Tensor | None = None, channels: int | None = None
    ) -> SamplingPoints:
        """Return where `forward` samples for the same inputs, in pixels of `value`, and with which weights."""
        if offset_mask is None:
            offset_mask = value[..., self._packed_channels(value, channels) :]
        return sampling_points(offset_mask, **self._arguments())

    def _packed_channels(self, packed: Tensor, channels: int | None) -> int:
        # a plain number: as a traced size it would leave as arithmetic at every slice
        return int(packed.shape[-1]) - self.entries if channels is None else channels

    def _arguments(self) -> dict[str, Any]:
        return {
            "groups": self.group,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.pad,
            "dilation": self.dilation,
            "offset_scale": self.offset_scale,
            "remove_center": self.remove_center,
        }

    def extra_repr(self) -> str:
        """Show the window."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, pad={self.pad}, dilation={self.dilation}, "
            f"group={self.group}, offset_scale={self.offset_scale}, remove_center={self.remove_center}"
        )


class DCNv4(nn.Module):
    """Deformable convolution v4 layer (arXiv 2401.06197), with the published constructor and parameter names.

    Offsets and weights of an output pixel are predicted from the input pixel at its window's centre.

    Args:
        channels: Input channels.
        kernel_size: Window size in pixels, int or (h, w).
        stride: Window stride in pixels, int or (h, w).
        pad: Zero padding in pixels, int or (h, w).
        dilation: Window dilation in pixels, int or (h, w).
        group: Number of groups; `None` chooses groups of 16 channels where the width allows.
        offset_scale: Factor on grid and offsets about the window's centre.
        dw_kernel_size: Size of a depthwise convolution before the offset layer; `None` for none.
        center_feature_scale: Blend the result with the projected centre feature.
        remove_center: Leave the window's centre point out.
        output_bias: Give the output projection a bias.
        without_pointwise: Leave both projections out.
        out_channels: Output channels of the output projection; `None` keeps `channels`.
        init: `"published"` starts with all weights zero (the output is the bias); `"average"` starts with every
            weight at 1/K, so that the operator begins as a mean filter.

    Raises:
        ValueError: `group` does not divide `channels`, or arguments contradict each other.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        group: int | None = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        *,
        out_channels: int | None = None,
        init: str = "published",
    ):
        super().__init__()
        group = default_groups(channels) if group is None else group
        if group < 1 or channels % group:
            raise ValueError(f"group must be at least 1 and divide channels = {channels}, got {group}")
        if init not in ("published", "average"):
            raise ValueError(f"init must be 'published' or 'average', got {init!r}")
        out_channels = channels if out_channels is None else out_channels
        if without_pointwise and out_channels != channels:
            raise ValueError(
                f"without_pointwise leaves no projection from {channels} to out_channels = {out_channels}; "
                "drop one of the two arguments"
            )
        self.core = DCNv4Core(kernel_size, stride, pad, dilation, group, offset_scale, remove_center)
        window, points = self.core.window, self.core.points
        if remove_center and not (window.kernel_h % 2 and window.kernel_w % 2 and points):
            raise ValueError(f"remove_center needs an odd kernel_size above 1, got {kernel_size}")
        if dw_kernel_size is not None and (dw_kernel_size < 1 or dw_kernel_size % 2 == 0):
            raise ValueError(f"dw_kernel_size must be odd, to keep the map's size, got {dw_kernel_size}")
        self.channels = channels
        self.without_pointwise = bool(without_pointwise)
        self.center_feature_scale = bool(center_feature_scale)
        self.init = init

        # in the place of value_proj and offset_mask after fuse_dcnv4
        self.packed_proj: MergedProjection | None = None
        self.offset_mask_dw = None
        if dw_kernel_size is not None:
            self.offset_mask_dw = nn.Conv2d(
                channels, channels, dw_kernel_size, padding=(dw_kernel_size - 1) // 2, groups=channels
            )
        self.offset_mask = nn.Linear(channels, self.core.entries)
        if not without_pointwise:
            self.value_proj = nn.Linear(channels, channels)
            self.output_proj = nn.Linear(channels, out_channels, bias=output_bias)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.zeros(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.zeros(group))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial parameters: no offsets, weights as `init` says, Xavier-uniform projections."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        if self.init == "average":
            group, points = self.core.group, self.core.points
            with torch.no_grad():
                records = self.offset_mask.bias[: 3 * group * points].view(group, 3 * points)
                records[:, 2 * points :] = 1 / points
        if not self.without_pointwise:
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    # the published name, which FlashInternImage calls
    _reset_parameters = reset_parameters

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Apply the layer.

        Args:
            input: (N, C, H, W) in any memory format, or a sequence (N, L, C) with L = H * W.
            shape: (H, W) of a sequence; may be left out where L is a square.

        Returns:
            (N, C_out, H_out, W_out) in the memory format of `input`, or (N, H_out * W_out, C_out) for a sequence.

        Raises:
            ValueError: Wrong rank, channel count or `shape`.
        """
        out = self.infer(input)
        if out is not None:
            return out
        if input.dim() == 4:
            if input.shape[1] != self.channels:
                raise ValueError(
                    f"input must have {self.channels} channels (N, C, H, W), got shape {tuple(input.shape)}"
                )
            return _in_format_of(input, self._forward_nhwc(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        if input.dim() != 3 or input.shape[2] != self.channels:
            raise ValueError(
                f"input must be (N, {self.channels}, H, W) or (N, L, {self.channels}), got shape {tuple(input.shape)}"
            )
        n, length, channels = input.shape
        height, width = self._sequence_shape(length) if shape is None else shape
        if height * width != length:
            raise ValueError(f"shape {(height, width)} does not fit an input of L = {length} pixels")
        return self._forward_nhwc(input.reshape(n, height, width, channels)).flatten(1, 2)

    @staticmethod
    def _sequence_shape(length: int) -> tuple[int, int]:
        side = math.isqrt(length)
        if side * side != length:
            raise ValueError(f"input of L = {length} pixels is no square map; pass shape=(H, W)")
        return side, side

    def fuse_dcnv4(self) -> None:
        """Merge both projections of the input into one, for inference; `BaseModel.fuse` calls this."""
        if self.packed_proj is not None or not self._reads_one_input():
            return
        # a module, so that FLOP counters go on seeing its multiply-adds
        self.packed_proj = MergedProjection((self.value_proj, self.offset_mask), pad=self.offset_mask.weight.is_cuda)
        del self.value_proj, self.offset_mask

    def infer(self, x: Tensor) -> Tensor | None:
        """Apply a fused layer past its modules' calls, which take as long as its operators at small maps.

        Args:
            x: (N, C, H, W) in any memory format.

        Returns:
            (N, C_out, H, W) in the memory format of `x`. None, and nothing is done, where the layer is not fused or `x`
            is no such map, and where this call is recorded, traced or seen by hooks.
        """
        # nn.Module.__getattr__ takes as long as what it leads to here
        modules: dict[str, Any] = self._modules
        packed_proj: Any = modules.get("packed_proj")
        output_proj: Any = modules.get("output_proj")
        core = modules["core"]
        plain = (
            type(packed_proj) is MergedProjection
            and type(core) is DCNv4Core
            and type(output_proj) is nn.Linear
            and not self.center_feature_scale
            and x.dim() == 4
            and x.shape[1] == self.channels
            and not torch.is_grad_enabled()
            and not is_traced()
            and not (has_hooks(packed_proj) or has_hooks(core) or has_hooks(output_proj) or _has_any_global_hook())
        )
        if not plain:
            return None
        arguments = self.channels, core.group, core.window, core.offset_scale, core.remove_center
        if parses(x):
            packed = convolve(packed_proj, x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
            out = convolve(output_proj, infer_packed(dense_rows(packed), *arguments).permute(0, 3, 1, 2))
        else:
            packed = F.linear(x.permute(0, 2, 3, 1).contiguous(), *numbers(packed_proj))
            out = F.linear(infer_packed(packed, *arguments), *numbers(output_proj)).permute(0, 3, 1, 2)
        return _in_format_of(x, out)

    def _reads_one_input(self) -> bool:
        # whether value and offset_mask are projections of the same pixels
        window = self.core.window
        keeps_size = window.stride_h == window.stride_w == 1 and (
            (2 * window.pad_h, 2 * window.pad_w)
            == (window.dilation_h * (window.kernel_h - 1), window.dilation_w * (window.kernel_w - 1))
        )
        return keeps_size and self.offset_mask_dw is None and not self.without_pointwise

    def _packed(self, x: Tensor) -> Tensor | None:
        """Return value and offset_mask side by side, or None where two projections are the better way."""
        if self.packed_proj is not None:
            return project(self.packed_proj, x)
        # joining the weights takes a moment, which the backward pass pays back: one product each instead of two
        if torch.is_grad_enabled() and self._reads_one_input() and not self.center_feature_scale:
            halves = x.is_cuda and autocast_dtype(x) in (torch.float16, torch.bfloat16)
            return F.linear(x, *merged((self.value_proj, self.offset_mask), pad=halves))
        return None

    def _forward_nhwc(self, x: Tensor) -> Tensor:
        # one copy for all that read it, and none for a channels-last map
        x = x.contiguous()
        packed = self._packed(x)
        if packed is not None:
            out = self.core(packed, None, self.channels)
        else:
            value = x if self.without_pointwise else project(self.value_proj, x)
            out = self.core(value, self._offset_mask(x, value))
        if self.center_feature_scale:
            out = self._scale_by_center(out, value if packed is None else packed[..., : self.channels])
        return out if self.without_pointwise else project(self.output_proj, out)

    def _offset_mask(self, x: Tensor, value: Tensor) -> Tensor:
        features = x
        if self.offset_mask_dw is not None:
            features = self.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return project(self.offset_mask, self._at_window_centers(features, value.shape[1], value.shape[2]))

    def _at_window_centers(self, features: Tensor, height: int, width: int) -> Tensor:
        window = self.core.window
        out_h, out_w = window.output_size(height, width)
        if (out_h, out_w) == (height, width) and window.stride_h == window.stride_w == 1:
            return features
        if out_h < 1 or out_w < 1:
            raise ValueError(f"input of {height} x {width} pixels is too small for {self.core}")
        if is_exporting():
            return at_window_centers(features, window)
        device = features.device
        rows = torch.arange(out_h, device=device) * window.stride_h + (window.half_h - window.pad_h)
        columns = torch.arange(out_w, device=device) * window.stride_w + (window.half_w - window.pad_w)
        features = features.index_select(1, rows.clamp(0, height - 1))
        return features.index_select(2, columns.clamp(0, width - 1))

    def _scale_by_center(self, out: Tensor, value: Tensor) -> Tensor:
        if out.shape != value.shape:
            raise ValueError(
                f"center_feature_scale needs an output of the input's size, got {tuple(out.shape[1:3])} "
                f"from {tuple(value.shape[1:3])}; choose stride 1 and a padding that keeps the size"
            )
        scale = F.linear(
            out, self.center_feature_scale_proj_weight.to(out), self.center_feature_scale_proj_bias.to(out)
        ).sigmoid()
        scale = scale.repeat_interleave(self.channels // self.core.group, dim=-1)
        return out * (1 - scale) + value * scale


def _in_format_of(x: Tensor, out: Tensor) -> Tensor:
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return out
    return out.contiguous()
