"""Geometry of the sampling window, shared by the checks, the reference and the compiled kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch


def _pair(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) and not isinstance(value, bool) else value
    if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair)
    ):
        raise TypeError(f"{name} must be an int or a pair (h, w) of ints, got {value!r}")
    if min(pair) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return pair[0], pair[1]


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding and dilation of the sampling window, in pixels."""

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def make(
        cls,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
    ) -> Window:
        """Build a window from ints or (h, w) pairs.

        Raises:
            TypeError: An argument is neither an int nor a pair of ints.
            ValueError: Kernel size, stride or dilation below 1, or negative padding.
        """
        return cls(
            *_pair("kernel_size", kernel_size, 1),
            *_pair("stride", stride, 1),
            *_pair("padding", padding, 0),
            *_pair("dilation", dilation, 1),
        )

    @classmethod
    def from_list(cls, window: Sequence[int]) -> Window:
        """Build a window from the eight ints that travel through the operator schema."""
        return cls(*window)

    def to_list(self) -> list[int]:
        """Return the eight ints that travel through the operator schema."""
        return [
            self.kernel_h,
            self.kernel_w,
            self.stride_h,
            self.stride_w,
            self.pad_h,
            self.pad_w,
            self.dilation_h,
            self.dilation_w,
        ]

    @property
    def half_h(self) -> int:
        """Rows between the window's first row and its centre."""
        return self.dilation_h * (self.kernel_h - 1) // 2

    @property
    def half_w(self) -> int:
        """Columns between the window's first column and its centre."""
        return self.dilation_w * (self.kernel_w - 1) // 2

    def points(self, remove_center: bool) -> int:
        """Return the number of sampling points K."""
        return self.kernel_h * self.kernel_w - int(remove_center)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H_out, W_out) for an input of (H, W) pixels; not positive where the window does not fit."""
        out_h = (height + 2 * self.pad_h - self.dilation_h * (self.kernel_h - 1) - 1) // self.stride_h + 1
        out_w = (width + 2 * self.pad_w - self.dilation_w * (self.kernel_w - 1) - 1) // self.stride_w + 1
        return out_h, out_w

    def grid(self, remove_center: bool) -> list[tuple[int, int]]:
        """Return the (i, j) = (horizontal, vertical) index of each sampling point, horizontal index outer."""
        center = (self.kernel_w // 2, self.kernel_h // 2)
        points = [(i, j) for i in range(self.kernel_w) for j in range(self.kernel_h)]
        return [p for p in points if not (remove_center and p == center)]


_cached = functools.lru_cache(maxsize=1024)(Window.make)


def window_of(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Window:
    """Return `Window.make(...)`, remembered from an earlier call where it can be."""
    # ints alone: a list is not hashable, and a bool would find the window of the int it equals
    if type(kernel_size) is type(stride) is type(padding) is type(dilation) is int:
        if not torch.compiler.is_compiling():
            return _cached(kernel_size, stride, padding, dilation)
    return Window.make(kernel_size, stride, padding, dilation)
