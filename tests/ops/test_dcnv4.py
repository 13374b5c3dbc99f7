"""Forward and backward of the operator and of its reference against the oracles."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from yolo_dcnv4.ops import dcnv4, dcnv4_reference

from .cases import (
    DEVICES,
    DTYPES,
    Case,
    Inputs,
    assert_close,
    expectation,
    named,
    parameters,
    relative_error,
    run,
)
from .oracles import Geometry, numpy_oracle, torchvision_gradients

OPS = [pytest.param(dcnv4, id="op"), pytest.param(dcnv4_reference, id="reference")]
TINY = Case("tiny", 2, (5, 7), 4, Geometry(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "device"), parameters())
@pytest.mark.parametrize("op", OPS)
def test_agrees_with_torchvision(op, case, device, dtype):
    inputs, expected = expectation(case, dtype, device)
    result = run(op, inputs, case.geometry)
    assert_close(result, expected, dtype, case.tolerance(dtype))
    assert result[2][..., case.geometry.rows :].count_nonzero() == 0, "padding rows must get zero gradient"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "device"), parameters())
def test_deterministic_backward_agrees_with_torchvision(case, device, dtype, deterministic):
    inputs = case.inputs(dtype, device, seed=1)
    result = run(dcnv4, inputs, case.geometry)
    assert_close(result, torchvision_gradients(*inputs, case.geometry), dtype, case.tolerance(dtype))
    assert result[2][..., case.geometry.rows :].count_nonzero() == 0, "padding rows must get zero gradient"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case",
    named("default", "everything-odd", "remove-center-3x3", "scale0.5-kernel4x3-dilation2", "softmax", "stride2x3"),
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_agrees_with_numpy_loop(op, dtype, case, device):
    case = dataclasses.replace(case, n=2, size=(7, 5))
    inputs = case.inputs(dtype, device, seed=2)
    assert_close(run(op, inputs, case.geometry), numpy_oracle(*inputs, case.geometry), dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "geometry", [Geometry(2), Geometry(2, (5, 3), (2, 1), (2, 1), remove_center=True)], ids=["3x3", "5x3"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op, dtype, geometry, device):
    case = Case("empty", 0, (5, 7), 4, geometry)
    inputs = case.inputs(dtype, device)
    out, grad_value, grad_offset_mask = run(op, inputs, geometry)
    assert out.shape == inputs.grad.shape
    assert grad_value.shape == inputs.value.shape
    assert grad_offset_mask.shape == inputs.offset_mask.shape


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch_in_another_layout(device):
    """Such as a convolution returns: contiguous() changes nothing about it."""
    value, offset_mask = (torch.empty(0, c, 5, 7, device=device).permute(0, 2, 3, 1) for c in (8, 56))
    assert value.is_contiguous()
    assert value.stride(-1) == 35
    assert dcnv4(value, offset_mask, groups=2).shape == value.shape


def _with_offsets(case: Case, dtype: torch.dtype, device: str, dx: float, dy: float) -> Inputs:
    """Inputs of a case whose every offset is (dx, dy)."""
    inputs = case.inputs(dtype, device, poison=0.0)
    n, h, w, _ = inputs.offset_mask.shape
    points = len(case.geometry.points)
    rows = inputs.offset_mask[..., : case.geometry.rows].reshape(n, h, w, case.geometry.groups, 3 * points).clone()
    # past the range of dtype: infinity
    rows[..., 0 : 2 * points : 2] = torch.tensor(dx).to(dtype)
    rows[..., 1 : 2 * points : 2] = torch.tensor(dy).to(dtype)
    inputs.offset_mask[..., : case.geometry.rows] = rows.flatten(-2)
    return inputs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, -1), (-2, 1), (0, 0.5), (0.5, 0)])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(2),
        Geometry(2, remove_center=True),
        Geometry(2, scale=2.0),
        Geometry(2, softmax=True),
        Geometry(2, (2, 4)),
    ],
    ids=["3x3", "remove-center", "scale2", "softmax", "2x4"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_on_the_grid(op, dtype, geometry, dx, dy, device):
    """On whole pixels the gradient is that of floor(), and -1 lies outside."""
    case = dataclasses.replace(TINY, geometry=geometry)
    inputs = _with_offsets(case, dtype, device, dx, dy)
    assert_close(run(op, inputs, geometry), numpy_oracle(*inputs, geometry), dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [
        (-1.0, 2.0, False),
        (7.0, 2.0, False),
        (3.0, -1.0, False),
        (3.0, 5.0, False),
        (-0.9375, 2.5, True),
        (6.9375, 2.5, True),
        (6.0, 4.0, True),
        (3.5, -0.9375, True),
        (3.5, 4.9375, True),
        (-0.5, -0.5, True),
        (6.5, 4.5, True),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_border_positions(op, dtype, x, y, inside, device):
    """One point at (x, y) of a 5 x 7 image, from a window that covers the image once."""
    geometry = Geometry(1, (1, 1), (5, 7), (0, 0))
    case = Case("one-point", 1, (5, 7), 3, geometry, padding_rows=0)
    inputs = _with_offsets(case, dtype, device, x, y)
    out, grad_value, grad_offset_mask = run(op, inputs, geometry)
    assert_close((out, grad_value, grad_offset_mask), numpy_oracle(*inputs, geometry), dtype)
    if not inside:
        for tensor in (out, grad_value, grad_offset_mask):
            assert tensor.count_nonzero() == 0
    else:
        assert out.count_nonzero() == out.numel()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 4e9, -4e9, 3e4, -3e4])
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_points_nowhere_contribute_nothing(op, dtype, scale, axis, bad, device):
    """A third of the points lie at NaN, infinity or beyond the range of integers."""
    geometry = Geometry(2, scale=scale)
    case = dataclasses.replace(TINY, geometry=geometry)
    inputs = case.inputs(dtype, device, seed=3)
    points = len(geometry.points)
    begin = 0 if axis == "x" else 1
    for group in range(geometry.groups):
        first = 3 * points * group
        inputs.offset_mask[..., first + begin : first + 2 * points : 6] = torch.tensor(bad).to(dtype)
    out, grad_value, grad_offset_mask = run(op, inputs, geometry)
    assert_close((out, grad_value, grad_offset_mask), numpy_oracle(*inputs, geometry), dtype)
    for group in range(geometry.groups):
        first = 3 * points * group
        record = grad_offset_mask[..., first : first + 3 * points]
        for k in range(0, points, 3):
            assert record[..., [2 * k, 2 * k + 1, 2 * points + k]].count_nonzero() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 100.0, -100.0])
@pytest.mark.parametrize("deterministic_backward", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_points_outside_read_nothing(op, dtype, deterministic_backward, bad, device, request):
    """With every point outside, neither NaN pixels nor NaN gradients reach a result."""
    if deterministic_backward:
        request.getfixturevalue("deterministic")
    inputs = _with_offsets(TINY, dtype, device, bad, bad)
    inputs.value.fill_(math.nan)
    inputs.grad.fill_(math.nan)
    for tensor in run(op, inputs, TINY.geometry):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("pixel", [(0, 0), (4, 6), (2, 3)], ids=str)
def test_nan_pixel_stays_where_it_is_sampled(op, pixel, dtype, device):
    """A corner outside the image is zero, not a NaN pixel elsewhere times zero."""
    geometry = Geometry(2, padding=(2, 2))
    case = dataclasses.replace(TINY, geometry=geometry, depth=8)
    inputs = case.inputs(dtype, device, seed=4)
    inputs.value[:, pixel[0], pixel[1]] = math.nan
    expected = numpy_oracle(*inputs, geometry)
    for actual, wanted in zip(run(op, inputs, geometry), expected, strict=True):
        actual = actual.cpu().double()
        assert torch.equal(actual.isnan(), wanted.isnan())
        assert relative_error(actual.nan_to_num(0.0), wanted.nan_to_num(0.0)) <= 2e-2
    assert 0 < expected[0].isnan().sum() < expected[0].numel()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("deterministic_backward", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_expanded_gradient(op, deterministic_backward, device, request):
    """`.sum().backward()` sends a gradient with all strides zero."""
    if deterministic_backward:
        request.getfixturevalue("deterministic")
    inputs = TINY.inputs(torch.float64, device)
    value, offset_mask = inputs.leaves()
    op(value, offset_mask, **TINY.geometry.keywords).sum().backward()
    ones = inputs.grad.new_ones(inputs.grad.shape)
    _, *expected = torchvision_gradients(inputs.value, inputs.offset_mask, ones, TINY.geometry)
    assert relative_error(value.grad, expected[0]) <= 1e-10
    assert relative_error(offset_mask.grad, expected[1]) <= 1e-10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_projection(dtype, device):
    """Value and offset_mask as two views of one packed tensor, as a merged projection gives them."""
    case = Case("packed", 2, (6, 7), 16, Geometry(2))
    inputs = case.inputs(dtype, device, poison=0.0)
    packed = torch.cat((inputs.value, inputs.offset_mask), -1).requires_grad_()
    value, offset_mask = packed.split((case.channels, case.row), -1)
    out = dcnv4(value, offset_mask, **case.geometry.keywords)
    (grad,) = torch.autograd.grad(out, packed, inputs.grad)
    expected = torchvision_gradients(*inputs, case.geometry)
    assert_close((out, *grad.split((case.channels, case.row), -1)), expected, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_batch_expanded_value(op, device):
    """One image, many sets of offsets: the batch stride of value is zero."""
    case = Case("expanded", 3, (6, 7), 16, Geometry(2))
    inputs = case.inputs(torch.float32, device)
    value = inputs.value[:1].expand(3, -1, -1, -1)
    inputs = inputs._replace(value=value)
    expected = torchvision_gradients(*inputs, case.geometry)
    assert_close(run(op, inputs, case.geometry), expected, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_left_alone(dtype, device):
    case = Case("untouched", 2, (6, 7), 16, Geometry(2, softmax=True))
    inputs = case.inputs(dtype, device, poison=0.0)
    before = [tensor.clone() for tensor in inputs]
    run(dcnv4, inputs, case.geometry)
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("device", DEVICES)
def test_accumulates_in_float32(device):
    """A sum whose float16 partial sums would overflow, and one they would swallow."""
    geometry = Geometry(1, (5, 5), padding=(2, 2))
    case = Case("sums", 1, (5, 5), 8, geometry)
    inputs = _with_offsets(case, torch.float16, device, 0, 0)
    points = len(geometry.points)
    inputs.value.fill_(300.0)
    weights = torch.tensor([200.0, -200.0] * (points // 2) + [0.25], device=device).half()
    inputs.offset_mask[..., 2 * points : 3 * points] = weights
    out = dcnv4(inputs.value, inputs.offset_mask, **geometry.keywords)
    assert out[0, 2, 2].tolist() == [75.0] * 8


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradient_of_value_accumulates_in_float32(dtype, device):
    """All 4096 outputs sample one pixel: partial sums in half precision would stop growing."""
    geometry = Geometry(1, (1, 1), padding=(0, 0))
    case = Case("collisions", 1, (64, 64), 8, geometry, padding_rows=0)
    inputs = case.inputs(dtype, device)
    grid = torch.arange(64, device=device, dtype=dtype)
    inputs.offset_mask[..., 0] = 31.5 - grid
    inputs.offset_mask[..., 1] = (31.5 - grid)[:, None]
    inputs.offset_mask[..., 2] = 1.0
    inputs.grad.fill_(1.0)
    _, grad_value, _ = run(dcnv4, inputs, geometry)
    assert grad_value[0, 31:33, 31:33].double().eq(1024).all()
    assert grad_value.count_nonzero() == 4 * 8
