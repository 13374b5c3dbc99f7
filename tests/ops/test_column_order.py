"""Pixels an odd multiple of 64 bytes apart: the threads of the forward kernel order neighbouring columns."""

from __future__ import annotations

import math

import pytest
import torch

from .cases import Case, assert_forward_close, assert_forward_like_the_cpu
from .oracles import Geometry

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled")]

HALVES = [torch.float16, torch.bfloat16]


def _assert_right(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype, "cuda")
    assert inputs.value.stride(2) * 2 % 128 == 64
    assert_forward_close(inputs, case.geometry, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("spread", [0.3, 4.0])
@pytest.mark.parametrize("size", [(1, 2), (9, 2), (5, 4), (1, 8), (12, 14), (7, 40), (9, 7), (9, 1)], ids=str)
def test_sizes(dtype, size, spread):
    """Borders on both sides, for columns of both kinds; odd widths, where rows are of the other kind."""
    _assert_right(Case("sizes", 2, size, 16, Geometry(6), spread=spread), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("groups", "depth"),
    [(2, 16), (10, 16), (14, 16), (22, 16), (130, 16), (4, 8), (20, 8), (4, 24), (4, 40), (2, 48), (1, 96), (3, 32)],
)
def test_widths(dtype, groups, depth):
    """Slices of channels, and groups of one vector and more."""
    _assert_right(Case("widths", 2, (9, 10), depth, Geometry(groups)), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("groups", [1, 5])
def test_part_of_wider_rows(dtype, groups):
    _assert_right(Case("rows", 2, (9, 10), 16, Geometry(groups), value_layout="aligned_tail"), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "extra",
    [
        {"stride": (2, 1)},
        {"scale": 0.5},
        {"softmax": True},
        {"padding": (0, 5)},
        {"dilation": (3, 2), "padding": (3, 2)},
    ],
    ids=str,
)
def test_windows(dtype, extra):
    _assert_right(Case("windows", 2, (13, 16), 16, Geometry(10, **extra)), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("pixel", [(0, 0), (4, 4), (4, 5), (8, 9)], ids=str)
def test_pixel_that_is_not_finite(dtype, bad, pixel):
    """It shows where a point touches it, and nowhere else."""
    geometry = Geometry(2)
    inputs = Case("bad", 2, (9, 10), 16, geometry).inputs(dtype, "cuda")
    inputs.value[0, pixel[0], pixel[1], 3] = bad
    assert_forward_like_the_cpu(inputs, geometry, dtype)
