"""Every wrong argument is refused by name, with what it is and what was expected, before any kernel runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from yolo_dcnv4.ops import dcnv4, dcnv4_reference

from .cases import DEVICES

OPS = [pytest.param(dcnv4, id="op"), pytest.param(dcnv4_reference, id="reference")]


def _value(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*(shape or (2, 5, 6, 8)), **options)


def _rows(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*(shape or (2, 5, 6, 56)), **options)


# id: (changed arguments, exception, words the message must hold, in this order)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "value-no-tensor": ({"value": [1.0]}, TypeError, ["value", "Tensor", "list"]),
    "offset-mask-none": ({"offset_mask": None}, TypeError, ["offset_mask", "Tensor", "NoneType"]),
    "value-integers": ({"value": _value(dtype=torch.int64)}, TypeError, ["value", "floating", "int64"]),
    "value-uint8": ({"value": _value(dtype=torch.uint8)}, TypeError, ["value", "floating", "uint8"]),
    "value-bool": ({"value": _value(dtype=torch.bool)}, TypeError, ["value", "floating", "bool"]),
    "value-complex": ({"value": _value(dtype=torch.complex64)}, TypeError, ["value", "floating", "complex64"]),
    "offset-mask-integers": (
        {"offset_mask": _rows(dtype=torch.int32)},
        TypeError,
        ["offset_mask", "floating", "int32"],
    ),
    "mixed-dtypes": (
        {"offset_mask": _rows(dtype=torch.float64)},
        TypeError,
        ["value", "offset_mask", "float32", "float64"],
    ),
    "mixed-half": ({"value": _value(dtype=torch.float16)}, TypeError, ["value", "offset_mask", "float16", "float32"]),
    "mixed-devices": (
        {"offset_mask": _rows(device="meta")},
        ValueError,
        ["value", "offset_mask", "device", "cpu", "meta"],
    ),
    "value-rank3": ({"value": _value(2, 5, 48)}, ValueError, ["value", "4", "(N, H, W, C)", "(2, 5, 48)"]),
    "value-rank5": ({"value": _value(1, 2, 5, 6, 8)}, ValueError, ["value", "4", "(1, 2, 5, 6, 8)"]),
    "offset-mask-rank3": (
        {"offset_mask": _rows(2, 30, 56)},
        ValueError,
        ["offset_mask", "4", "(N, H_out, W_out, R)", "(2, 30, 56)"],
    ),
    "value-height0": ({"value": _value(2, 0, 6, 8)}, ValueError, ["value", "(2, 0, 6, 8)"]),
    "value-width0": ({"value": _value(2, 5, 0, 8)}, ValueError, ["value", "(2, 5, 0, 8)"]),
    "value-channels0": ({"value": _value(2, 5, 6, 0)}, ValueError, ["value", "(2, 5, 6, 0)"]),
    "batch": ({"offset_mask": _rows(3, 5, 6, 56)}, ValueError, ["offset_mask", "2", "(3, 5, 6, 56)"]),
    "height": ({"offset_mask": _rows(2, 4, 6, 56)}, ValueError, ["offset_mask", "5 x 6", "(2, 4, 6, 56)"]),
    "width": ({"offset_mask": _rows(2, 5, 7, 56)}, ValueError, ["offset_mask", "5 x 6", "(2, 5, 7, 56)"]),
    "size-of-stride1": ({"stride": 2}, ValueError, ["offset_mask", "3 x 3", "(2, 5, 6, 56)"]),
    "transposed-map": ({"offset_mask": _rows(2, 6, 5, 56)}, ValueError, ["offset_mask", "5 x 6", "(2, 6, 5, 56)"]),
    "too-few-rows": ({"offset_mask": _rows(2, 5, 6, 53)}, ValueError, ["offset_mask", "54", "(2, 5, 6, 53)"]),
    "groups-do-not-divide": ({"groups": 3}, ValueError, ["groups", "8", "3"]),
    "groups-beyond-channels": ({"groups": 16}, ValueError, ["groups", "8", "16"]),
    "groups-zero": ({"groups": 0}, ValueError, ["groups", "1", "0"]),
    "groups-negative": ({"groups": -2}, ValueError, ["groups", "1", "-2"]),
    "groups-float": ({"groups": 2.0}, TypeError, ["groups", "int", "2.0"]),
    "groups-bool": ({"groups": True}, TypeError, ["groups", "int", "True"]),
    "kernel-zero": ({"kernel_size": 0}, ValueError, ["kernel_size", "1", "0"]),
    "kernel-negative": ({"kernel_size": (3, -1)}, ValueError, ["kernel_size", "1", "(3, -1)"]),
    "kernel-triple": ({"kernel_size": (3, 3, 3)}, TypeError, ["kernel_size", "(h, w)", "(3, 3, 3)"]),
    "kernel-float": ({"kernel_size": 3.0}, TypeError, ["kernel_size", "int", "3.0"]),
    "kernel-string": ({"kernel_size": "33"}, TypeError, ["kernel_size", "int", "'33'"]),
    "kernel-floats": ({"kernel_size": (3, 3.0)}, TypeError, ["kernel_size", "int", "(3, 3.0)"]),
    "kernel-none": ({"kernel_size": None}, TypeError, ["kernel_size", "int", "None"]),
    "stride-zero": ({"stride": 0}, ValueError, ["stride", "1", "0"]),
    "stride-negative": ({"stride": (1, -2)}, ValueError, ["stride", "1", "(1, -2)"]),
    "stride-bool": ({"stride": True}, TypeError, ["stride", "int", "True"]),
    "dilation-zero": ({"dilation": (0, 1)}, ValueError, ["dilation", "1", "(0, 1)"]),
    "dilation-negative": ({"dilation": -1}, ValueError, ["dilation", "1", "-1"]),
    "padding-negative": ({"padding": -1}, ValueError, ["padding", "0", "-1"]),
    "padding-negative-pair": ({"padding": (1, -3)}, ValueError, ["padding", "0", "(1, -3)"]),
    "padding-string": ({"padding": "same"}, TypeError, ["padding", "int", "'same'"]),
    "no-points": ({"kernel_size": 1, "remove_center": True}, ValueError, ["remove_center", "kernel_size", "(1, 1)"]),
    "no-center": (
        {"kernel_size": 2, "remove_center": True},
        ValueError,
        ["remove_center", "odd", "kernel_size", "(2, 2)"],
    ),
    "half-a-center": (
        {"kernel_size": (3, 4), "remove_center": True},
        ValueError,
        ["remove_center", "odd", "kernel_size", "(3, 4)"],
    ),
    "empty-output": (
        {"kernel_size": (9, 3), "padding": (1, 1)},
        ValueError,
        ["value", "5 x 6", "kernel_size", "(9, 3)", "output", "-1 x 6"],
    ),
    "empty-output-stride2": (
        {"kernel_size": 7, "padding": 0, "stride": 2},
        ValueError,
        ["value", "5 x 6", "kernel_size", "(7, 7)", "output"],
    ),
    "empty-output-dilation": ({"dilation": (4, 1)}, ValueError, ["value", "5 x 6", "dilation", "(4, 1)", "output"]),
    "scale-string": ({"offset_scale": "1"}, TypeError, ["offset_scale", "number", "'1'"]),
    "scale-none": ({"offset_scale": None}, TypeError, ["offset_scale", "number", "None"]),
}


@pytest.mark.parametrize("name", list(REFUSED))
@pytest.mark.parametrize("op", OPS)
def test_refused(op, name, capfd):
    changes, exception, words = REFUSED[name]
    arguments = {"value": _value(), "offset_mask": _rows(), "groups": 2, **changes}
    value, offset_mask = arguments.pop("value"), arguments.pop("offset_mask")
    with pytest.raises(exception, match=".*".join(map(re.escape, words))) as caught:
        op(value, offset_mask, **arguments)
    assert caught.type is exception
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("op", OPS)
def test_the_unchanged_arguments_are_accepted(op):
    assert op(_value(), _rows(), groups=2).shape == (2, 5, 6, 8)


def test_float8_is_refused():
    """The compiled operator knows four dtypes; another one is named here, not in a kernel."""
    value, rows = _value().to(torch.float8_e4m3fn), _rows().to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"value.*float64, float32, float16 or bfloat16.*float8_e4m3fn"):
        dcnv4(value, rows, groups=2)


@pytest.mark.parametrize("op", OPS)
def test_mixed_dtypes_are_named_under_autocast_too(op):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"bfloat16 and torch\.float64"):
        op(_value(), _rows(dtype=torch.float64), groups=2)


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
def test_cpu_and_cuda_are_not_mixed(op):
    with pytest.raises(ValueError, match=r"device.*cuda:0.*cpu"):
        op(_value(device="cuda"), _rows(), groups=2)
    with pytest.raises(ValueError, match=r"device.*cpu.*cuda:0"):
        op(_value(), _rows(device="cuda"), groups=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needs", ["output", "gradients"])
def test_out_of_memory_is_named(needs, device, capfd, request):
    """In the words that ultralytics looks for before it tries a smaller batch, without the trace of torch's macros."""
    if device == "cuda":
        # PyTorch then refuses by itself: compute-sanitizer would report a failed call of the driver
        request.getfixturevalue("caching_allocator")
        torch.cuda.set_per_process_memory_fraction(1.0)
    shape = (1 << 30, 256, 256)
    value, offset_mask = (torch.zeros(1, 1, 1, c, device=device).expand(*shape, c) for c in (16, 32))
    arguments = (1, [3, 3, 1, 1, 1, 1, 1, 1], 1.0, False, False)
    with pytest.raises(RuntimeError, match=f"out of memory: no room for {1 << 50} elements"):
        if needs == "output":
            torch.ops.yolo_dcnv4.dcnv4(value, offset_mask, *arguments)
        else:
            torch.ops.yolo_dcnv4.dcnv4_backward(value, value, offset_mask, *arguments, True, False, False)
    # before 2.13 torch prints a line of its own
    assert "C API boundary" not in capfd.readouterr().err
