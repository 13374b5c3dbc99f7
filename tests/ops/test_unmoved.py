"""Windows that no offset moves, as a new layer has them: the forward kernels have a shorter way for these."""

from __future__ import annotations

import math

import pytest
import torch

from .cases import SHORT, Case, Inputs, assert_forward_close, assert_forward_like_the_cpu
from .oracles import Geometry

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled")]


def _unmoved(case: Case, dtype: torch.dtype) -> Inputs:
    inputs = case.inputs(dtype, "cuda")
    inputs.records(case.geometry.groups)[..., :18] = 0
    return inputs


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (13, 14)], ids=str)
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"stride": (2, 1)},
        {"stride": (3, 2), "padding": (2, 3)},
        {"padding": (4, 1)},
        {"dilation": (2, 1), "padding": (2, 1)},
        {"scale": 0.5},
        {"softmax": True},
    ],
    ids=str,
)
def test_geometries(dtype, size, extra):
    """Points beyond the borders, and windows that do not lie on neighbouring pixels."""
    geometry = Geometry(3, **extra)
    assert_forward_close(_unmoved(Case("unmoved", 2, size, 16, geometry), dtype), geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_next_to_moved_ones(dtype):
    """Both ways within a warp; a negative zero is zero."""
    geometry = Geometry(3)
    case = Case("unmoved", 2, (11, 12), 16, geometry)
    inputs, moved = _unmoved(case, dtype), case.inputs(dtype, "cuda")
    records = inputs.records(3)
    records[..., 1, :18] = -0.0
    chosen = torch.rand(records.shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.5
    records[chosen.cuda()] = moved.records(3)[chosen.cuda()]
    # one offset of eighteen is enough
    records[0, 0, 0, 0, :18] = 0
    records[0, 0, 0, 0, 17] = 0.25
    assert_forward_close(inputs, geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("pixel", [(0, 0), (0, 5), (4, 4), (8, 9)], ids=str)
def test_pixel_that_is_not_finite(dtype, bad, pixel):
    """It shows where a point touches it, with weight zero too."""
    geometry = Geometry(2)
    inputs = _unmoved(Case("unmoved", 2, (9, 10), 16, geometry), dtype)
    inputs.value[0, pixel[0], pixel[1], 3] = bad
    assert_forward_like_the_cpu(inputs, geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_weight_that_is_not_finite(dtype, bad):
    geometry = Geometry(2)
    inputs = _unmoved(Case("unmoved", 2, (9, 10), 16, geometry), dtype)
    records = inputs.records(2)
    records[0, 0, 0, 0, 18] = records[0, 4, 4, 1, 22] = records[1, 8, 9, 0, 26] = bad
    assert_forward_like_the_cpu(inputs, geometry, dtype)
