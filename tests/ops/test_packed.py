"""The operator on value and offset_mask side by side: the numbers of the operator, one gradient for both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_dcnv4.ops.packed import dcnv4_packed
from yolo_dcnv4.ops.window import Window

from .cases import CASES, DEVICES, DTYPES, Case, Inputs, assert_close, expectation, parameters, poison_free_memory
from .oracles import Geometry

KEEPING = [case for case in CASES if case.geometry.output_size(case.size) == case.size]
SMALL = Case("small", 2, (5, 6), 4, Geometry(2))


def packed_keywords(geometry: Geometry) -> dict:
    keywords = dict(geometry.keywords)
    window = Window.make(*(keywords.pop(name) for name in ("kernel_size", "stride", "padding", "dilation")))
    return keywords | {"window": window}


def pack(inputs: Inputs) -> Tensor:
    return torch.cat((inputs.value, inputs.offset_mask), dim=-1)


def run_packed(packed: Tensor, inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, gradient of value and gradient of offset_mask."""
    packed, channels = packed.detach().requires_grad_(), inputs.value.shape[-1]
    out = dcnv4_packed(packed, channels=channels, **packed_keywords(geometry))
    poison_free_memory((packed, inputs.grad))
    (grad,) = torch.autograd.grad(out, packed, inputs.grad)
    assert (grad.shape, grad.dtype) == (packed.shape, packed.dtype)
    return out.detach(), grad[..., :channels], grad[..., channels:]


def test_there_are_cases():
    assert len(KEEPING) >= 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "device"), parameters(KEEPING))
def test_agrees_with_torchvision(case, device, dtype):
    inputs, expected = expectation(case, dtype, device)
    result = run_packed(pack(inputs), inputs, case.geometry)
    assert_close(result, expected, dtype, case.tolerance(dtype))
    assert result[2][..., case.geometry.rows :].count_nonzero() == 0, "padding rows must get zero gradient"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "device"), parameters(KEEPING[::3]))
def test_deterministic_backward_agrees_with_torchvision(case, device, dtype, deterministic):
    inputs, expected = expectation(case, dtype, device)
    first, second = (run_packed(pack(inputs), inputs, case.geometry) for _ in range(2))
    assert_close(first, expected, dtype, case.tolerance(dtype))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_any_layout(device):
    inputs, expected = expectation(SMALL, torch.float32, device)
    packed = pack(inputs)
    for layout in (
        packed.transpose(1, 2).contiguous().transpose(1, 2),
        packed.movedim(-1, 1).contiguous().movedim(1, -1),
    ):
        assert not layout.is_contiguous()
        assert_close(run_packed(layout, inputs, SMALL.geometry), expected, torch.float32)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    inputs = SMALL.inputs(torch.float32, device, poison=0.0)
    arguments = (*SMALL.geometry.operator_arguments, inputs.value.shape[-1])
    packed = pack(inputs).requires_grad_()
    torch.library.opcheck(torch.ops.yolo_dcnv4.dcnv4_packed.default, (packed, *arguments))
    torch.library.opcheck(
        torch.ops.yolo_dcnv4.dcnv4_packed_backward.default, (inputs.grad, packed.detach(), *arguments, True)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_double_backward_is_refused(device):
    inputs = SMALL.inputs(torch.float32, device, poison=0.0)
    packed = pack(inputs).requires_grad_()
    out = dcnv4_packed(packed, channels=inputs.value.shape[-1], **packed_keywords(SMALL.geometry))
    (grad,) = torch.autograd.grad(out, packed, inputs.grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [0, 64])
def test_bare_operator_refuses_channels(channels, device):
    packed = torch.zeros(1, 4, 4, 64, device=device)
    with pytest.raises((RuntimeError, ValueError), match=r"channels|entries"):
        torch.ops.yolo_dcnv4.dcnv4_packed(packed, 1, [3, 3, 1, 1, 1, 1, 1, 1], 1.0, False, False, channels)
