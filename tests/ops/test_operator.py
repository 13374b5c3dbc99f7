"""The operator as a citizen of torch.library: schema, fake kernels, autograd, autocast, compile, determinism."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from yolo_dcnv4.ops import dcnv4, dcnv4_reference
from yolo_dcnv4.ops.library import SCHEMAS

from .cases import CASES, DEVICES, DTYPES, Case, assert_close, named, relative_error, run
from .oracles import Geometry, torchvision_gradients

OPS = [pytest.param(dcnv4, id="op"), pytest.param(dcnv4_reference, id="reference")]
SMALL = Case("small", 2, (5, 6), 4, Geometry(2))
GRADCHECK = [
    Case("3x3", 1, (3, 4), 2, Geometry(2)),
    Case("2x3-stride-dilation", 2, (5, 6), 1, Geometry(1, (2, 3), (2, 1), (1, 0), (1, 2))),
    Case("remove-center-scale", 1, (4, 3), 3, Geometry(1, scale=2.0, remove_center=True)),
    Case("softmax", 1, (3, 3), 2, Geometry(2, softmax=True)),
    Case("strided", 1, (3, 4), 3, Geometry(2), value_layout="packed_tail", offset_mask_layout="nchw"),
]
OPCHECK = named(
    "default",
    "everything-odd",
    "scale0.5",
    "softmax-remove-center",
    "padding-rows0",
    "kernel1x1-stride2",
    "value-packed_tail-depth3",
    "offset-mask-packed_head",
)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_schema(name):
    expected = torch._C.parse_schema(f"yolo_dcnv4::{name}{SCHEMAS[name]}")
    loaded = getattr(torch.ops.yolo_dcnv4, name).default._schema
    assert str(loaded) == str(expected)
    assert not loaded.is_mutable


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", GRADCHECK, ids=lambda case: case.id)
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op, case, device):
    inputs = case.inputs(torch.float64, device, poison=0.0)
    nondet = 1e-12 if device == "cuda" else 0.0
    assert torch.autograd.gradcheck(
        lambda value, offset_mask: op(value, offset_mask, **case.geometry.keywords), inputs.leaves(), nondet_tol=nondet
    )


def test_reference_is_twice_differentiable():
    case = Case("second-order", 1, (3, 3), 2, Geometry(1))
    inputs = case.inputs(torch.float64, poison=0.0)
    assert torch.autograd.gradgradcheck(
        lambda value, offset_mask: dcnv4_reference(value, offset_mask, **case.geometry.keywords), inputs.leaves()
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", OPCHECK, ids=lambda case: case.id)
def test_opcheck(case, device):
    inputs = case.inputs(torch.float32, device, poison=0.0)
    torch.library.opcheck(torch.ops.yolo_dcnv4.dcnv4.default, (*inputs.leaves(), *case.geometry.operator_arguments))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("needs_value", "needs_offset_mask"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("case", OPCHECK[:2] + OPCHECK[-2:], ids=lambda case: case.id)
def test_opcheck_backward(case, needs_value, needs_offset_mask, device):
    value, offset_mask, grad = case.inputs(torch.float32, device, poison=0.0)
    arguments = (grad, value, offset_mask, *case.geometry.operator_arguments, needs_value, needs_offset_mask, True)
    torch.library.opcheck(torch.ops.yolo_dcnv4.dcnv4_backward.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if not case.big][::7], ids=lambda case: case.id)
def test_fake_kernel(case, dtype):
    """On the meta device nothing runs, and shape, dtype and device come out."""
    value, offset_mask, grad = (t.to("meta") for t in case.inputs(dtype))
    value.requires_grad_()
    offset_mask.requires_grad_()
    out = dcnv4(value, offset_mask, **case.geometry.keywords)
    assert (out.shape, out.dtype, out.device) == (grad.shape, dtype, torch.device("meta"))
    grads = torch.autograd.grad(out, (value, offset_mask), grad)
    assert [(g.shape, g.dtype) for g in grads] == [(value.shape, dtype), (offset_mask.shape, dtype)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_needs_input_grad(op, softmax, needs, device):
    case = dataclasses.replace(SMALL, geometry=Geometry(2, softmax=softmax))
    inputs = case.inputs(torch.float64, device)
    leaves = [t.detach().requires_grad_(n) for t, n in zip(inputs[:2], needs, strict=True)]
    out = op(*leaves, **case.geometry.keywords)
    out.backward(inputs.grad)
    _, *expected = torchvision_gradients(*inputs, case.geometry)
    for leaf, need, wanted in zip(leaves, needs, expected, strict=True):
        if need:
            assert relative_error(leaf.grad, wanted) <= 1e-10
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("needs_value", "needs_offset_mask"), [(True, False), (False, True), (False, False)])
def test_backward_skips_what_is_not_needed(needs_value, needs_offset_mask, device):
    value, offset_mask, grad = SMALL.inputs(torch.float64, device)
    _, *expected = torchvision_gradients(value, offset_mask, grad, SMALL.geometry)
    results = torch.ops.yolo_dcnv4.dcnv4_backward(
        grad, value, offset_mask, *SMALL.geometry.operator_arguments, needs_value, needs_offset_mask, False
    )
    for result, needed, wanted in zip(results, (needs_value, needs_offset_mask), expected, strict=True):
        if needed:
            assert relative_error(result, wanted) <= 1e-10
        else:
            assert result.numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_no_gradient_asked(op, device):
    inputs = SMALL.inputs(torch.float32, device)
    plain = op(inputs.value, inputs.offset_mask, **SMALL.geometry.keywords)
    assert not plain.requires_grad
    with torch.no_grad():
        out = op(*inputs.leaves(), **SMALL.geometry.keywords)
    assert not out.requires_grad
    assert torch.equal(out, plain)
    with torch.inference_mode():
        out = op(inputs.value.clone(), inputs.offset_mask.clone(), **SMALL.geometry.keywords)
    assert out.is_inference()
    assert torch.equal(out, plain)


@pytest.mark.parametrize("device", DEVICES)
def test_double_backward_is_refused(device):
    inputs = SMALL.inputs(torch.float64, device, poison=0.0)
    value, offset_mask = inputs.leaves()
    out = dcnv4(value, offset_mask, **SMALL.geometry.keywords)
    (grad,) = torch.autograd.grad(out, value, inputs.grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivative.*dcnv4_reference"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_backward_twice_through_a_kept_graph(device):
    inputs = SMALL.inputs(torch.float64, device)
    leaves = inputs.leaves()
    out = dcnv4(*leaves, **SMALL.geometry.keywords)
    first = torch.autograd.grad(out, leaves, inputs.grad, retain_graph=True)
    second = torch.autograd.grad(out, leaves, inputs.grad)
    for a, b in zip(first, second, strict=True):
        assert relative_error(a[..., :4], b[..., :4]) <= 1e-12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("n", [4, 32])
def test_deterministic_backward_repeats_itself(n, collisions, dtype, device, deterministic):
    """Bit for bit, also where many points sample one pixel, and where there are many images."""
    case = Case("repeat", n, (24, 20), 16, Geometry(4), spread=8.0 if collisions else 1.0)
    inputs = case.inputs(dtype, device)
    results = [run(dcnv4, inputs, case.geometry) for _ in range(4)]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", [Case("map", 3, (24, 23), 16, Geometry(4)), Case("one-group", 1, (37, 21), 5)], ids=lambda c: c.id
)
def test_thread_count_changes_nothing(case, dtype):
    before = torch.get_num_threads()
    inputs = case.inputs(dtype)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(dcnv4, inputs, case.geometry))
    finally:
        torch.set_num_threads(before)
    expected = torchvision_gradients(*inputs, case.geometry)
    for result in results:
        assert torch.equal(result[0], results[0][0])
        assert_close(result, expected, dtype)
        assert relative_error(result[1], results[0][1]) <= 0.1 * {torch.float64: 1e-10, torch.float32: 1e-5}.get(
            dtype, 1e-2
        )


AUTOCAST = [
    ("cpu", torch.bfloat16),
    ("cpu", torch.float16),
    pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
    pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
]


@pytest.mark.parametrize(("device", "dtype"), AUTOCAST)
@pytest.mark.parametrize(
    "given", [(torch.float32, torch.float32), (torch.float32, None), (None, torch.float32), (None, None)], ids=str
)
@pytest.mark.parametrize("op", OPS)
def test_autocast(op, given, device, dtype):
    """The op runs in the autocast dtype, whatever mixture comes in, and each gradient has its input's dtype."""
    case = Case("autocast", 2, (6, 7), 16, Geometry(2))
    rounded = case.inputs(dtype, device, poison=0.0)
    value, offset_mask = (
        t.to(dtype if g is None else g).detach().requires_grad_()
        for t, g in zip((rounded.value, rounded.offset_mask), given, strict=True)
    )
    with torch.autocast(device, dtype):
        out = op(value, offset_mask, **case.geometry.keywords)
    assert out.dtype == dtype
    out.backward(rounded.grad)
    assert value.grad.dtype == value.dtype
    assert offset_mask.grad.dtype == offset_mask.dtype
    expected = torchvision_gradients(*rounded, case.geometry)
    assert_close((out, value.grad, offset_mask.grad), expected, dtype)


@pytest.mark.parametrize(("device", "dtype"), AUTOCAST)
@pytest.mark.parametrize("op", OPS)
def test_autocast_rounds_its_inputs(op, device, dtype):
    """float32 numbers that the autocast dtype cannot hold: as if the caller had cast them."""
    case = Case("autocast-rounds", 2, (6, 7), 16, Geometry(2))
    inputs = case.inputs(torch.float32, device, poison=0.0)
    with torch.autocast(device, dtype):
        out = op(inputs.value, inputs.offset_mask, **case.geometry.keywords)
        disabled_inside = torch.autocast(device, enabled=False)
        with disabled_inside:
            cast = op(inputs.value.to(dtype), inputs.offset_mask.to(dtype), **case.geometry.keywords)
            full = op(inputs.value, inputs.offset_mask, **case.geometry.keywords)
    assert torch.equal(out, cast)
    assert full.dtype == torch.float32


@pytest.mark.parametrize(("device", "dtype"), AUTOCAST)
@pytest.mark.parametrize("op", OPS)
def test_autocast_leaves_float64_alone(op, device, dtype):
    inputs = SMALL.inputs(torch.float64, device)
    with torch.autocast(device, dtype):
        result = run(op, inputs, SMALL.geometry)
    assert_close(result, torchvision_gradients(*inputs, SMALL.geometry), torch.float64)


@pytest.mark.gpu
def test_autocast_of_another_device_changes_nothing():
    inputs = SMALL.inputs(torch.float32, "cuda")
    with torch.autocast("cpu", torch.bfloat16):
        out = dcnv4(inputs.value, inputs.offset_mask, **SMALL.geometry.keywords)
    assert out.dtype == torch.float32


def _compiler(device: str) -> str:
    """The inductor backend where it finds a C++ compiler, else the tracing without code generation."""
    return "inductor" if device == "cuda" or shutil.which("g++") or shutil.which("clang++") else "aot_eager"


def _block(value: torch.Tensor, offset_mask: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    return dcnv4(value * 2, offset_mask + 0, **geometry.keywords).relu() + 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compile_fullgraph(dtype, device):
    torch._dynamo.reset()
    compiled = torch.compile(_block, fullgraph=True, backend=_compiler(device), dynamic=False)
    for case in named("everything-odd", "value-packed_tail-depth16"):
        inputs = case.inputs(dtype, device, poison=0.0)
        assert_close(
            run(lambda v, o, case=case, **_: compiled(v, o, case.geometry), inputs, case.geometry),
            run(lambda v, o, case=case, **_: _block(v, o, case.geometry), inputs, case.geometry),
            dtype,
        )


@pytest.mark.parametrize("device", DEVICES)
def test_compile_dynamic_shapes(device):
    torch._dynamo.reset()
    compiled = torch.compile(_block, fullgraph=True, backend=_compiler(device), dynamic=True)
    for n, size in ((2, (6, 7)), (3, (9, 5)), (1, (12, 12))):
        case = Case("dynamic", n, size, 8, Geometry(2, stride=(2, 1)))
        inputs = case.inputs(torch.float32, device, poison=0.0)
        with torch._dynamo.config.patch(error_on_recompile=n == 3):
            assert_close(
                run(lambda v, o, case=case, **_: compiled(v, o, case.geometry), inputs, case.geometry),
                run(lambda v, o, case=case, **_: _block(v, o, case.geometry), inputs, case.geometry),
                torch.float32,
            )


@pytest.mark.parametrize(("device", "dtype"), [AUTOCAST[0], AUTOCAST[2]])
def test_compile_under_autocast(device, dtype):
    torch._dynamo.reset()
    case = Case("compiled-autocast", 2, (6, 7), 16, Geometry(2))
    inputs = case.inputs(torch.float32, device, poison=0.0)

    def block(value, offset_mask):
        with torch.autocast(device, dtype):
            return dcnv4(value, offset_mask, **case.geometry.keywords)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out = compiled(inputs.value, inputs.offset_mask)
    assert out.dtype == dtype
    assert torch.equal(out, block(inputs.value, inputs.offset_mask))


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_is_printed(device, capfd):
    inputs = SMALL.inputs(torch.float32, device)
    run(dcnv4, inputs, SMALL.geometry)
    with pytest.raises(ValueError, match="groups"):
        dcnv4(inputs.value, inputs.offset_mask, groups=3)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups"),
        ({"groups": 0}, "groups"),
        ({"window": [3, 3, 1, 1, 0, 0, 1, 1]}, "offset_mask"),
        ({"window": [3, 3, 1, 1, 1, 1]}, "window"),
        ({"window": [3, 3, 0, 1, 1, 1, 1, 1]}, "stride"),
        ({"window": [5, 5, 1, 1, 2, 2, 1, 1]}, "offset_mask"),
        ({"dtype": torch.float64}, "dtype"),
        ({"batch": 1}, "offset_mask"),
    ],
    ids=str,
)
def test_bare_compiled_operator_refuses(change, message, device):
    """Past the wrapper the compiled operator checks again, so that no call reads out of bounds."""
    from yolo_dcnv4.ops import backend

    if backend(device).name == "torch":
        pytest.skip(f"no compiled kernel: {backend(device).reason}")
    value, offset_mask, _ = SMALL.inputs(torch.float32, device)
    groups, window, *rest = SMALL.geometry.operator_arguments
    offset_mask = offset_mask.to(change.get("dtype", torch.float32))[: change.get("batch", 2)]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.yolo_dcnv4.dcnv4(
            value, offset_mask, change.get("groups", groups), change.get("window", window), *rest
        )
