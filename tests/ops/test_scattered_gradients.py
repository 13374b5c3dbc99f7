"""Gradients of value that go out corner by corner, where windows reach too far for a tile's corners to be sorted."""

from __future__ import annotations

import math

import pytest

from yolo_dcnv4.ops import dcnv4

from .cases import SHORT, Case, assert_close, assert_like_the_cpu, run
from .oracles import Geometry, torchvision_gradients

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled", "both_ways")]

WINDOWS = {
    "7x7": Geometry(2, (7, 7), padding=(3, 3)),
    "dilation5": Geometry(2, dilation=(5, 5), padding=(5, 5)),
    "stride4": Geometry(2, stride=(4, 4)),
}


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("depth", [1, 3, 4, 6, 8, 16, 24, 48, 64, 80, 200])
@pytest.mark.parametrize("window", WINDOWS)
def test_widths(dtype, depth, window):
    """Lanes that share a group's channels evenly, and those that do not."""
    case = Case("widths", 2, (13, 11), depth, WINDOWS[window])
    inputs = case.inputs(dtype, "cuda")
    assert_close(run(dcnv4, inputs, case.geometry), torchvision_gradients(*inputs, case.geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite(dtype, bad):
    """They reach what their own points touch, and no other channel."""
    case = Case("bad", 2, (13, 11), 16, WINDOWS["7x7"])
    inputs = case.inputs(dtype, "cuda")
    inputs.grad[0, 3, 4, 5] = bad
    inputs.grad[1, -1, -1, -1] = bad
    assert_like_the_cpu(inputs, case.geometry, dtype)
