"""Random configurations, drawn by hypothesis, against torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from yolo_dcnv4.ops import dcnv4, dcnv4_reference

from .cases import DEVICES, DTYPES, LAYOUTS, TOLERANCE, Case, Inputs, assert_close, relative_error, run
from .oracles import Geometry, torchvision_gradients

COMMON = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    # the failing configuration is printed whole; shrinking it would take minutes
    "phases": (Phase.explicit, Phase.generate),
}


def _pairs(minimum: int, maximum: int) -> st.SearchStrategy[tuple[int, int]]:
    side = st.integers(minimum, maximum)
    return st.tuples(side, side)


@st.composite
def configurations(draw) -> Case:
    kernel = draw(st.one_of(st.just((3, 3)), _pairs(1, 5), st.sampled_from([(7, 7), (1, 7), (6, 2)])))
    dilation = draw(_pairs(1, 3))
    padding = draw(_pairs(0, 4))
    reach = [dilation[a] * (kernel[a] - 1) + 1 for a in (0, 1)]
    # at least one window fits
    smallest = [max(1, reach[a] - 2 * padding[a]) for a in (0, 1)]
    size = tuple(draw(st.integers(smallest[a], smallest[a] + 8)) for a in (0, 1))
    depth = draw(st.one_of(st.integers(1, 20), st.sampled_from([16, 24, 32, 64, 80])))
    odd = kernel[0] % 2 and kernel[1] % 2 and kernel != (1, 1)
    geometry = Geometry(
        # the oracle takes its time for each channel; wide layers stand in the list of cases
        draw(st.integers(1, max(1, min(9, 96 // depth)))),
        kernel,
        draw(_pairs(1, 3)),
        padding,
        dilation,
        draw(st.sampled_from([1.0, 1.0, 0.5, 2.0, 0.7, 1.25])),
        draw(st.booleans()) if odd else False,
        draw(st.booleans()),
    )
    layouts = st.sampled_from(["contiguous", *LAYOUTS])
    return Case(
        "random",
        draw(st.integers(1, 3)),
        size,
        depth,
        geometry,
        draw(st.one_of(st.none(), st.integers(0, 9))),
        draw(st.sampled_from([0.2, 1.0, 1.0, 3.0, 20.0])),
        draw(layouts),
        draw(layouts),
        draw(layouts),
    )


def _rounding_of_positions(inputs: Inputs, geometry: Geometry, expected: tuple) -> float:
    """What the oracle's own result changes by when each position moves by one float32 rounding of its largest term.

    Where next to nothing of the samples falls into the image, as on a map of one pixel, that exceeds the tolerance.
    """
    size = max(inputs.value.shape[1:3])
    reach = max(d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel, strict=True))
    step = (size + max(geometry.padding) + reach * geometry.scale) * torch.finfo(torch.float32).eps / geometry.scale
    records = inputs.offset_mask.double().clone()
    points = len(geometry.points)
    offsets = records[..., : geometry.rows].unflatten(-1, (geometry.groups, 3 * points))[..., : 2 * points]
    signs = torch.arange(offsets.numel(), device=offsets.device).reshape(offsets.shape) % 3 - 1
    offsets += step * signs
    moved = torchvision_gradients(inputs.value, records, inputs.grad, geometry)
    return max(relative_error(m, e) for m, e in zip(moved, expected, strict=True))


def _check(op, case: Case, seed: int, dtype: torch.dtype, device: str) -> None:
    inputs = case.inputs(dtype, device, seed)
    result = run(op, inputs, case.geometry)
    expected = torchvision_gradients(*inputs, case.geometry)
    tolerance = TOLERANCE[dtype]
    if dtype == torch.float32 and max(map(relative_error, result, expected)) > tolerance:
        tolerance = max(tolerance, _rounding_of_positions(inputs, case.geometry, expected))
    assert_close(result, expected, dtype, tolerance)
    assert result[2][..., case.geometry.rows :].count_nonzero() == 0


SEEDS = st.integers(0, 2**31)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60, **COMMON)
@given(case=configurations(), seed=SEEDS)
def test_random_configurations(device, dtype, case, seed):
    _check(dcnv4, case, seed, dtype, device)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, **COMMON)
@given(case=configurations(), seed=SEEDS, dtype=st.sampled_from(DTYPES))
def test_random_configurations_of_the_reference(device, case, seed, dtype):
    _check(dcnv4_reference, case, seed, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=1500, **COMMON)
@given(case=configurations(), seed=SEEDS)
def test_thousands_of_random_configurations(device, dtype, case, seed):
    _check(dcnv4, case, seed, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=500, **COMMON)
@given(case=configurations(), seed=SEEDS, dtype=st.sampled_from(DTYPES))
def test_hundreds_of_random_configurations_of_the_reference(device, case, seed, dtype):
    _check(dcnv4_reference, case, seed, dtype, device)
