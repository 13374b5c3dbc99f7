"""What the kernels on tiles and planes do on their own: far points, scales of weights, numbers that are not finite.

A plane, an image's group, is the work of one block where small maps have many of them and shared memory is large. The
compiled CPU operator, in float32 and without tiles, is the other side wherever no oracle follows IEEE arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from yolo_dcnv4.ops import dcnv4

from .cases import SHORT, TOLERANCE, Case, Inputs, assert_close, assert_like_the_cpu, relative_error, run
from .oracles import Geometry, torchvision_gradients

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("compiled", "both_ways")]


def case(depth: int = 16, size: tuple[int, int] = (21, 19), n: int = 2, **extra) -> Case:
    return Case("tiles", n, size, depth, extra.pop("geometry", Geometry(3)), **extra)


# one for tiles; one with enough images and groups for planes
SMALL = {
    "tiles": case(size=(17, 18), padding_rows=0),
    "planes": case(size=(20, 20), n=16, geometry=Geometry(8), padding_rows=0),
}


def weights(inputs: Inputs, groups: int, points: int = 9) -> Tensor:
    """Return a view of the weights in offset_mask."""
    return inputs.records(groups, points)[..., 2 * points :]


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("spread", [0.3, 2.0, 5.0, 40.0])
@pytest.mark.parametrize("small", SMALL)
def test_offsets_of_any_reach(dtype, spread, small):
    chosen = replace(SMALL[small], spread=spread)
    inputs = chosen.inputs(dtype, "cuda")
    assert_close(run(dcnv4, inputs, chosen.geometry), torchvision_gradients(*inputs, chosen.geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("depth", [4, 8, 16, 24, 32, 40, 48, 64])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 7), (16, 33)], ids=str)
def test_groups_and_borders(dtype, depth, size):
    chosen = case(depth, size, geometry=Geometry(2))
    inputs = chosen.inputs(dtype, "cuda")
    assert_close(run(dcnv4, inputs, chosen.geometry), torchvision_gradients(*inputs, chosen.geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("depth", [8, 16, 24, 32])
@pytest.mark.parametrize("size", [(14, 14), (13, 19), (28, 28), (5, 50)], ids=str)
def test_planes(dtype, depth, size):
    chosen = case(depth, size, 32, geometry=Geometry(8))
    inputs = chosen.inputs(dtype, "cuda")
    assert_close(run(dcnv4, inputs, chosen.geometry), torchvision_gradients(*inputs, chosen.geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("which", [0, 1], ids=["value", "offset_mask"])
def test_one_gradient_alone(dtype, small, which):
    chosen = SMALL[small]
    inputs = chosen.inputs(dtype, "cuda")
    expected = torchvision_gradients(*inputs, chosen.geometry)[1 + which]
    leaves = [inputs.value.clone(), inputs.offset_mask.clone()]
    leaves[which].requires_grad_()
    out = dcnv4(*leaves, **chosen.geometry.keywords)
    (grad,) = torch.autograd.grad(out, leaves[which], inputs.grad)
    assert relative_error(grad, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(2, dilation=(2, 2), padding=(2, 2)),
        Geometry(2, dilation=(1, 2), padding=(0, 3)),
        Geometry(2, padding=(0, 0)),
        Geometry(2, padding=(2, 2), scale=1.7),
        # these are sorted, in smaller tiles
        Geometry(2, dilation=(3, 4), padding=(3, 4)),
        Geometry(2, stride=(3, 2)),
        Geometry(2, (5, 5), dilation=(2, 1), padding=(4, 2)),
    ],
    ids=str,
)
def test_windows(dtype, many, geometry):
    chosen = case(16, (14, 23), 64 if many else 2, geometry=replace(geometry, groups=4 if many else 2))
    inputs = chosen.inputs(dtype, "cuda")
    assert_close(run(dcnv4, inputs, chosen.geometry), torchvision_gradients(*inputs, chosen.geometry), dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("factor", [2.0**-13, 2.0**-6, 2.0**9])
def test_weights_of_any_size(dtype, factor):
    """Powers of two only shift the results, also where float16 weights are near the ends of their range."""
    chosen = case()
    inputs = chosen.inputs(dtype, "cuda")
    view = weights(inputs, 3)
    # round to what the smaller copy can hold, too
    view.copy_((view * factor).to(dtype) / factor)
    scaled = inputs._replace(offset_mask=inputs.offset_mask.clone())
    weights(scaled, 3).mul_(factor)
    expected = torchvision_gradients(*[t.double() for t in scaled], chosen.geometry)
    value, offset_mask = scaled.leaves()
    out = dcnv4(value, offset_mask, **chosen.geometry.keywords)
    grads = torch.autograd.grad(out, (value, offset_mask), scaled.grad)
    if dtype == torch.float16 and factor < 1e-3:
        # what the dtype itself cannot hold of the results
        assert (grads[0].double() - expected[1]).abs().max() < 2.0**-24 + 2e-3 * expected[1].abs().max()
    else:
        assert relative_error(grads[0], expected[1]) < TOLERANCE[dtype]
    assert relative_error(grads[1][..., :81], expected[2][..., :81]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_one_heavy_weight_leaves_the_others_exact(dtype):
    """Targets that only light points fall on keep their digits beside a point that weighs 10,000 times as much."""
    chosen = case(size=(8, 24), geometry=Geometry(1))
    inputs = chosen.inputs(dtype, "cuda")
    weights(inputs, 1)[:, 0, 0, :, 0] = 1e4
    expected = torchvision_gradients(*inputs, chosen.geometry)[1]
    value, _ = inputs.leaves()
    (grad,) = torch.autograd.grad(dcnv4(value, inputs.offset_mask, **chosen.geometry.keywords), value, inputs.grad)
    # columns of the other tiles, and of the same tile away from the heavy pixel
    for columns in (slice(6, 8), slice(14, 24)):
        assert relative_error(grad[:, :, columns], expected[:, :, columns]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0, -3.0, 0.5])
def test_points_on_the_grid(dtype, offset):
    """As a new layer has them: floor() and its gradient are those of the CPU."""
    chosen = case(size=(17, 18), padding_rows=0)
    inputs = chosen.inputs(dtype, "cuda")
    inputs.offset_mask.unflatten(-1, (3, 27))[..., :18] = offset
    assert_like_the_cpu(inputs, chosen.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("size", [(17, 18), (40, 64)], ids=str)
def test_points_on_the_grid_next_to_others(dtype, bad, size):
    """Corners of weight zero may only be left out where nothing shows: not next to infinite and NaN features."""
    chosen = case(size=size, padding_rows=0)
    inputs = chosen.inputs(dtype, "cuda")
    inputs.offset_mask.unflatten(-1, (3, 27))[:, : size[0] // 2, :, :, :18] = 0.0
    inputs.offset_mask.unflatten(-1, (3, 27))[:, -1, -1, :, 3] = 0.25
    inputs.value[0, 2, 3, 4] = inputs.value[1, -1, -1, -1] = bad
    assert_like_the_cpu(inputs, chosen.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("small", SMALL)
def test_gradients_that_are_not_finite(dtype, bad, small):
    """They reach what their own points touch, and nothing else of their tile."""
    chosen = SMALL[small]
    inputs = chosen.inputs(dtype, "cuda")
    inputs.grad[0, 3, 4, 5] = bad
    inputs.grad[1, -1, -1, -1] = bad
    assert_like_the_cpu(inputs, chosen.geometry, dtype)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["value", "offset", "weight"])
@pytest.mark.parametrize("small", SMALL)
def test_inputs_that_are_not_finite(dtype, bad, where, small):
    chosen = SMALL[small]
    inputs = chosen.inputs(dtype, "cuda")
    if where == "value":
        inputs.value[0, 5, 6, 7] = bad
    elif where == "weight":
        weights(inputs, chosen.geometry.groups)[0, 9, 9, 1, 4] = bad
    else:
        inputs.offset_mask[1, 2, 3, 27 * 2 + 5] = bad
    assert_like_the_cpu(inputs, chosen.geometry, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("small", SMALL)
def test_sums_beyond_the_largest_number(dtype, small):
    """They are not finite, and their neighbours among the channels are not touched."""
    chosen = SMALL[small]
    inputs = chosen.inputs(dtype, "cuda")
    inputs.grad.zero_()
    inputs.grad[0, 3, 4, 0], inputs.grad[0, 3, 4, 1] = 3e38, 1e37
    inputs.offset_mask[0, 3, 4, :18], inputs.offset_mask[0, 3, 4, 18:27] = 0.5, 8.0
    grad_value = run(dcnv4, inputs, chosen.geometry)[1].double()
    overlapping = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.double, device="cuda")
    touched = grad_value[0, 2:6, 3:7]
    assert not touched[..., 0].isfinite().any()
    finite = 1e37 * 8 / 4 * overlapping[:, None] * overlapping
    torch.testing.assert_close(touched[..., 1], finite, rtol=TOLERANCE[dtype], atol=0.0)
    touched[..., :2] = 0
    assert not grad_value.count_nonzero()
