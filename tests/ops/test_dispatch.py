"""The ways in which an operator is called: whichever is taken, numbers and gradients are the same."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from yolo_dcnv4.ops import dcnv4, dispatch

from .cases import DEVICES, Case, run
from .oracles import Geometry

OPERATOR = torch.ops.yolo_dcnv4.dcnv4.default
SMALL = Case("small", 2, (5, 6), 4, Geometry(2))


@pytest.mark.parametrize("device", DEVICES)
def test_a_function_of_its_own_is_recorded(device, deterministic):
    """Past the dispatcher's form of the same rule, which takes several times as long."""
    value, offset_mask, grad = SMALL.inputs(torch.float32, device)
    leaves = value.requires_grad_(), offset_mask.requires_grad_()
    results = []
    for call in (dispatch.dispatch, lambda operator, *arguments: operator(*arguments)):
        out = call(OPERATOR, *leaves, *SMALL.geometry.operator_arguments)
        results.append((type(out.grad_fn).__name__, out, *torch.autograd.grad(out, leaves, grad)))
    names = [result[0] for result in results]
    assert names == ["dcnv4Backward", "GeneratedBackwardFor_yolo_dcnv4_dcnv4_defaultBackward"]
    for ours, theirs in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_recorded_where_nothing_asks(device):
    value, offset_mask, _ = SMALL.inputs(torch.float32, device)
    out = dcnv4(value, offset_mask, **SMALL.geometry.keywords)
    assert not out.requires_grad
    with torch.no_grad():
        assert torch.equal(dcnv4(value.requires_grad_(), offset_mask, **SMALL.geometry.keywords), out)


def _python_files(function: Callable[[], object]) -> set[str]:
    """Return the files of all Python functions that run in a call."""
    files = set()
    sys.setprofile(lambda frame, event, argument: files.add(frame.f_code.co_filename))
    try:
        function()
    finally:
        sys.setprofile(None)
    return files


@pytest.mark.parametrize("device", DEVICES)
def test_inference_leaves_the_rule_out(device):
    """The rule is a Python function; without this it is called even where nothing is recorded."""
    value, offset_mask, _ = SMALL.inputs(torch.float32, device)
    arguments = value.requires_grad_(), offset_mask, *SMALL.geometry.operator_arguments
    rule = torch._library.autograd.__file__
    with torch.no_grad():
        assert rule in _python_files(lambda: OPERATOR(*arguments))
        assert rule not in _python_files(lambda: dispatch.dispatch(OPERATOR, *arguments))
        expected = OPERATOR(*arguments)
    with torch.inference_mode():
        assert rule not in _python_files(lambda: dispatch.dispatch(OPERATOR, *arguments))
        out = dispatch.dispatch(OPERATOR, *arguments)
    assert out.is_inference() and torch.equal(out, expected)


def test_transforms_see_the_operator():
    """torch.func refuses functions such as ours; the dispatcher's form it takes where it can."""
    value, offset_mask, _ = SMALL.inputs(torch.float64, poison=0.0)
    images = torch.stack((value, value.flip(0)))
    out = torch.func.vmap(lambda image: dcnv4(image, offset_mask, **SMALL.geometry.keywords))(images)
    for image, result in zip(images, out, strict=True):
        torch.testing.assert_close(result, dcnv4(image, offset_mask, **SMALL.geometry.keywords))


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_memory_is_not_filled_twice(device, deterministic, monkeypatch):
    """Deterministic algorithms fill new memory with NaN, but not for the operator, which writes all of its own."""
    seen = []

    def spy(operator, arguments, original=dispatch._dispatch):
        seen.append(torch.utils.deterministic.fill_uninitialized_memory)
        return original(operator, arguments)

    monkeypatch.setattr(dispatch, "_dispatch", spy)
    run(dcnv4, SMALL.inputs(torch.float32, device), SMALL.geometry)
    assert seen == [False, False]
    assert torch.utils.deterministic.fill_uninitialized_memory

    def fail(operator, arguments):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(dispatch, "_dispatch", fail)
    inputs = SMALL.inputs(torch.float32, device)
    with pytest.raises(RuntimeError, match="on purpose"):
        dcnv4(inputs.value, inputs.offset_mask, **SMALL.geometry.keywords)
    assert torch.utils.deterministic.fill_uninitialized_memory
