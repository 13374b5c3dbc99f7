"""A test of the operator on one device that takes no second, against the reference in float64."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from yolo_dcnv4.ops import dcnv4, dcnv4_reference

TOLERANCE = 1e-4
HOPELESS = 1e9
GROUPS, KERNEL = 2, 3
WINDOWS = ({"stride": 1, "padding": 1}, {"stride": 2, "padding": 2, "dilation": 2})


def self_test(device: str) -> dict[str, Any]:
    """Run forward and backward in float32 on a device and compare with the reference in float64 on the CPU.

    Args:
        device: A torch device.

    Returns:
        The largest relative errors (of Frobenius norms) `forward` and `backward`, the `seconds` it took, and `passed`.
    """
    start = time.perf_counter()
    forward = backward = 0.0
    for window in WINDOWS:
        value, offset_mask, grad = _inputs(**window)
        tested = _run(dcnv4, value.float(), offset_mask.float(), grad.float(), window, device)
        expected = _run(dcnv4_reference, value, offset_mask, grad, window, "cpu")
        errors = [_error(a, b) for a, b in zip(tested, expected, strict=True)]
        forward, backward = max(forward, errors[0]), max(backward, *errors[1:])
    return {
        "forward": forward,
        "backward": backward,
        "seconds": round(time.perf_counter() - start, 3),
        "passed": max(forward, backward) <= TOLERANCE,
    }


def _inputs(stride: int, padding: int, dilation: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, height, width, channels, points = 2, 13, 17, 32, KERNEL * KERNEL
    out = [(side + 2 * padding - dilation * (KERNEL - 1) - 1) // stride + 1 for side in (height, width)]
    # float32 steps, so that both dtypes get the same numbers; positions stay off the grid, where floor() would flip
    value = torch.randn(n, height, width, channels, generator=generator)
    whole = torch.randint(-2, 3, (n, *out, GROUPS, 2 * points), generator=generator)
    fraction = 0.1 + 0.8 * torch.rand(whole.shape, generator=generator)
    weights = torch.randn(n, *out, GROUPS, points, generator=generator)
    offset_mask = torch.cat((whole + fraction, weights), -1).flatten(-2)
    grad = torch.randn(n, *out, channels, generator=generator)
    return value.double(), offset_mask.double(), grad.double()


def _run(op: Any, value: Tensor, offset_mask: Tensor, grad: Tensor, window: dict, device: str) -> list[Tensor]:
    inputs = [tensor.to(device).requires_grad_() for tensor in (value, offset_mask)]
    out = op(*inputs, groups=GROUPS, kernel_size=KERNEL, **window)
    out.backward(grad.to(device))
    return [tensor.detach().cpu().double() for tensor in (out, *(each.grad for each in inputs))]


def _error(tested: Tensor, expected: Tensor) -> float:
    error = float((tested - expected).norm() / expected.norm())
    # comparisons with NaN are false; JSON knows neither NaN nor infinity
    return error if error < HOPELESS else HOPELESS
