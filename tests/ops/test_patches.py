"""How the forward kernel of 3 x 3 windows shares pixels and channels out among its blocks, whole patches or not."""

from __future__ import annotations

import pytest
import torch

from .cases import SHORT, Case, assert_forward_close
from .oracles import Geometry

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled")]

# in half precision the input around a patch is fetched ahead for the first; float32 has a kernel of its own for it
DILATIONS = [1, 3]


def _assert_right(case: Case, dtype: torch.dtype) -> None:
    assert_forward_close(case.inputs(dtype, "cuda"), case.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (37, 1), (2, 3), (4, 4), (5, 6), (13, 14), (3, 130)], ids=str)
@pytest.mark.parametrize("n", [1, 64])
@pytest.mark.parametrize("dilation", DILATIONS)
def test_sizes(dtype, size, n, dilation):
    """Edges within a patch, and few blocks or many."""
    _assert_right(Case("sizes", n, size, 16, Geometry(3, dilation=(dilation,) * 2, padding=(dilation,) * 2)), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize(
    ("groups", "depth"),
    [(5, 16), (10, 16), (11, 16), (17, 8), (33, 16), (131, 16), (1, 256), (3, 24), (7, 24), (2, 520), (257, 8)],
)
@pytest.mark.parametrize("dilation", DILATIONS)
def test_widths(dtype, groups, depth, dilation):
    """Numbers of vectors with and without a divisor that makes a good slice."""
    geometry = Geometry(groups, dilation=(dilation,) * 2, padding=(dilation,) * 2)
    _assert_right(Case("widths", 2, (9, 10), depth, geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("extra", [{"stride": (2, 1)}, {"scale": 0.5}, {"softmax": True}, {"padding": (0, 5)}], ids=str)
def test_windows(dtype, extra):
    _assert_right(Case("windows", 2, (13, 15), 16, Geometry(10, **extra)), dtype)
