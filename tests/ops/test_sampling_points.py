from __future__ import annotations

import itertools

import pytest
import torch

from yolo_dcnv4.modules import DCNv4Core
from yolo_dcnv4.ops import dcnv4_reference
from yolo_dcnv4.ops.sampling_points import sampling_points

WINDOWS = {
    "3x3": {},
    "stride 2": {"stride": 2},
    "3x5, stride (2, 1), dilation (1, 2)": {
        "kernel_size": (3, 5),
        "stride": (2, 1),
        "padding": (1, 3),
        "dilation": (1, 2),
    },
    "even kernel": {"kernel_size": (2, 4), "padding": (1, 2)},
    "scaled, no centre": {"offset_scale": 1.5, "remove_center": True},
    "no padding": {"padding": 0},
}


def points_of(window: dict) -> int:
    size = window.get("kernel_size", (3, 3))
    return size[0] * size[1] - int(window.get("remove_center", False))


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS.keys())
def test_positions_are_where_the_reference_samples(window: dict):
    # of an input that holds its own coordinates, a sample in its inside is its position
    torch.manual_seed(0)
    n, height, width, groups = 2, 30, 34, 3
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    value = torch.stack((columns, rows), -1).repeat(n, 1, 1, groups).double()
    points = points_of(window)
    out_h, out_w = output_size(value, window)
    offsets = 2 * torch.rand(n, out_h, out_w, groups, 2 * points, dtype=torch.float64) - 1
    for k in range(points):
        weights = torch.zeros(n, out_h, out_w, groups, points, dtype=torch.float64)
        weights[..., k] = 1
        # rows past 3 * groups * K are padding
        offset_mask = torch.nn.functional.pad(torch.cat((offsets, weights), -1).flatten(-2), (0, 5), value=9.0)
        sampled = dcnv4_reference(value, offset_mask, groups=groups, **window).unflatten(-1, (groups, 2))
        told = sampling_points(offset_mask, groups=groups, **window)
        assert torch.equal(told.weights, weights)
        x, y = told.x[..., k], told.y[..., k]
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        assert inside.float().mean() > 0.7
        torch.testing.assert_close(torch.stack((x, y), -1)[inside], sampled[inside])


def output_size(value: torch.Tensor, window: dict) -> tuple[int, int]:
    """The output map's size, told by an oracle of shapes: torch's own convolution."""
    arguments = {"stride": 1, "padding": 1, "dilation": 1} | {
        key: window[key] for key in ("stride", "padding", "dilation") if key in window
    }
    weight = value.new_zeros(1, value.shape[3], *window.get("kernel_size", (3, 3)))
    return tuple(torch.nn.functional.conv2d(value.permute(0, 3, 1, 2), weight, **arguments).shape[2:])


def test_without_offsets_the_points_are_the_regular_grid():
    told = sampling_points(torch.zeros(1, 4, 6, 32), groups=1, stride=2, padding=1)
    assert torch.count_nonzero(told.dx) == torch.count_nonzero(told.dy) == 0
    # horizontal index outer
    expected = [(4 + i, 2 + j) for i, j in itertools.product((-1, 0, 1), repeat=2)]
    assert list(zip(told.x[0, 1, 2, 0].tolist(), told.y[0, 1, 2, 0].tolist(), strict=True)) == expected


def test_softmax_and_scaled_offsets():
    offset_mask = torch.zeros(1, 1, 1, 27)
    offset_mask[..., 0:18:2], offset_mask[..., 1:18:2] = 3.0, -4.0
    told = sampling_points(offset_mask, groups=1, offset_scale=0.5, softmax=True)
    torch.testing.assert_close(told.weights, torch.full((1, 1, 1, 1, 9), 1 / 9))
    torch.testing.assert_close(told.dx, torch.full((1, 1, 1, 1, 9), 1.5))
    torch.testing.assert_close(told.dy, torch.full((1, 1, 1, 1, 9), -2.0))


def test_half_precision_is_read_in_float32():
    told = sampling_points(torch.zeros(1, 1, 3000, 32, dtype=torch.float16), groups=1)
    assert told.x.dtype == torch.float32
    assert told.x[0, 0, 2999, 0, 4] == 2999  # float16 has no 2999


def test_core_passes_its_window_on():
    core = DCNv4Core((3, 5), 2, (1, 2), 1, group=2, offset_scale=0.7, remove_center=True)
    value, offset_mask = torch.randn(1, 9, 11, 8), torch.randn(1, 5, 6, 2 * 14 * 3 + 4)
    told = core.sampling_points(value, offset_mask)
    window = {"kernel_size": (3, 5), "stride": 2, "padding": (1, 2), "offset_scale": 0.7, "remove_center": True}
    for ours, expected in zip(told, sampling_points(offset_mask, groups=2, **window), strict=True):
        assert torch.equal(ours, expected)


def test_core_reads_a_packed_input_too():
    core = DCNv4Core(group=2)
    value, offset_mask = torch.randn(1, 5, 6, 8), torch.randn(1, 5, 6, 56)
    packed = torch.cat((value, offset_mask), -1)
    torch.testing.assert_close(core(packed), core(value, offset_mask))
    for ours, expected in zip(core.sampling_points(packed), core.sampling_points(value, offset_mask), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("shape", [(1, 2, 2, 26), (2, 2, 27)])
def test_refuses(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"offset_mask must be .* at least 3 \* groups \* K = 27, got shape"):
        sampling_points(torch.zeros(shape), groups=1)
