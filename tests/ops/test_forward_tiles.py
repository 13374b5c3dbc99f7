"""The forward kernel over staged tiles, on maps with more threads than a GPU holds; half precision gathers others.

Channels are shared out in lines of 128 bytes, of one pixel or of the same pixel of two or four images.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from .cases import LAYOUTS, SHORT, TOLERANCE, Case, Inputs, assert_forward_close, assert_forward_like_the_cpu
from .oracles import Geometry

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled")]

# output elements of a map; a GPU with 170 multiprocessors holds 2.8 million, at 16 a thread
MANY = 3_000_000


def _large(groups: int, depth: int = 16, n: int = 2, width: int = 61, **geometry) -> Case:
    """A case with this geometry that has enough rows; its sides are odd where nothing else is said."""
    height = MANY // (n * width * groups * depth) // 2 * 2 + 1
    return Case("large", n, (height, width), depth, Geometry(groups, **geometry))


def _assert_right(case: Case, dtype: torch.dtype) -> None:
    assert_forward_close(case.inputs(dtype, "cuda"), case.geometry, dtype, case.tolerance(dtype))


def _assert_like_the_cpu(inputs: Inputs, geometry: Geometry, dtype: torch.dtype) -> None:
    # on a high map positions are rounded otherwise on the CPU, by 1e-5 pixels and more
    assert_forward_like_the_cpu(inputs, geometry, dtype, max(TOLERANCE[dtype], 1e-3))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("groups", "depth"),
    [(1, 16), (2, 16), (3, 16), (6, 16), (7, 16), (10, 16), (1, 32), (3, 32), (2, 48), (1, 64), (1, 80), (2, 96)],
)
def test_lines(dtype, n, groups, depth):
    """Lines that are full and that are not, shared by images or not, the last of which may be missing."""
    _assert_right(_large(groups, depth, n), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 14, 28, 200])
def test_sides(dtype, width):
    """Tiles of all widths, and such that reach beyond the map."""
    _assert_right(_large(4, width=width), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize(
    "extra",
    [
        {"dilation": (2, 2), "padding": (2, 2)},
        {"dilation": (1, 2)},
        {"dilation": (2, 1), "padding": (0, 0)},
        {"padding": (0, 5)},
        {"padding": (9, 0)},
        {"scale": 0.5},
        {"scale": 3.0, "dilation": (2, 2)},
    ],
    ids=str,
)
def test_windows(dtype, extra):
    _assert_right(_large(4, **extra), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.2, 3.0, 9.0, 300.0])
def test_offsets_of_any_reach(dtype, spread):
    """Within the staged pixels and far outside, of the map too."""
    # offsets of zero lie on the grid, where a case does not put them
    case = replace(_large(4), spread=spread or 1.0)
    inputs = case.inputs(dtype, "cuda")
    if spread == 0:
        inputs.records(4)[..., :18] = 0
    assert_forward_close(inputs, case.geometry, dtype, case.tolerance(dtype))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["value", "offset_mask"])
def test_layouts(dtype, layout, which):
    """Those that the kernel takes, and those that are left to others."""
    _assert_right(replace(_large(4), **{f"{which}_layout": layout}), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("groups", "depth"), [(1, 16), (4, 16), (6, 16), (1, 48)])
def test_expanded_images(dtype, n, groups, depth):
    """Images with the same memory, of which no tensor engine can copy."""
    case = _large(groups, depth, n)
    inputs = case.inputs(dtype, "cuda")
    for name in ("value", "offset_mask"):
        expanded = getattr(inputs, name)[:1].expand(n, -1, -1, -1)
        assert_forward_close(inputs._replace(**{name: expanded}), case.geometry, dtype, case.tolerance(dtype))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("unmoved", [False, True])
def test_values_that_are_not_finite(dtype, n, groups, unmoved):
    """They reach the windows that touch them, and neither their neighbours in a line nor what has weight zero."""
    case = _large(groups, n=n, width=253)
    inputs = case.inputs(dtype, "cuda", poison=0.0)
    if unmoved:
        inputs.records(groups)[..., :18] = 0
    for i, bad in enumerate([math.nan, math.inf, -math.inf]):
        inputs.value[0, 7 + 9 * i, 5 + 9 * i, 3 + i] = bad
        inputs.value[-1, -1, 9 * i, -1] = bad
    _assert_like_the_cpu(inputs, case.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_records_that_are_not_finite(dtype, bad):
    case = _large(4)
    inputs = case.inputs(dtype, "cuda", poison=0.0)
    records = inputs.records(4)
    records[0, 5, 6, 1, 4] = records[1, 7, 8, 2, 9] = records[1, -1, -1, 3, 20] = bad
    _assert_like_the_cpu(inputs, case.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_sums_beyond_the_largest_number(dtype):
    """What a number cannot hold is infinite, and its neighbours are not touched."""
    case = _large(4)
    inputs = case.inputs(dtype, "cuda", poison=0.0)
    inputs.value[0, 10:13, 10:13, 5] = torch.finfo(dtype).max / 4
    records = inputs.records(4)
    # others may be large in one order of summation only
    records[0, :30, :30, 0, 18:] = 0.0
    records[0, 11, 11, 0, :18], records[0, 11, 11, 0, 18:] = 0.25, 1.0
    _assert_like_the_cpu(inputs, case.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_more_rows_than_a_grid_holds(dtype):
    """A column of pixels with more tiles than a grid's second dimension counts."""
    case = Case("tall", 1, (8 * 65536 + 1, 1), 16, Geometry(1))
    # positions are numbers in float32
    assert_forward_close(case.inputs(dtype, "cuda"), case.geometry, dtype, case.tolerance(torch.float32))
