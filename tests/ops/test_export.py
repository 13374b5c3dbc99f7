"""The forms in which the operator leaves on export, and when it does."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from yolo_dcnv4.build.folders import library_path
from yolo_dcnv4.modules import DCNv4
from yolo_dcnv4.ops import backend, dcnv4, export_form
from yolo_dcnv4.ops.export import current_form, decompose, is_exporting

from .cases import TOLERANCE, Case, named, parameters, relative_error
from .oracles import Geometry, numpy_oracle, torchvision_oracle

FORMS = ["grid_sample", "grid_sample_finite", "deform_conv"]
# what differs in kind: window, stride, scale, softmax, padding rows, one pixel, groups
SHAPES = named(
    "default",
    "everything-odd",
    "kernel2x3",
    "kernel1x1-stride2",
    "dilation2x3",
    "padding-past-image",
    "remove-center-5x3",
    "scale0.5-kernel4x3-dilation2",
    "softmax-remove-center",
    "one-pixel",
    "width1",
    "padding-rows37",
)
needs_library = pytest.mark.skipif(backend("cpu").name != "cpu", reason="needs the compiled library")


class Op(nn.Module):
    """The operator as a model."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.keywords = geometry.keywords

    def forward(self, value: Tensor, offset_mask: Tensor) -> Tensor:
        return dcnv4(value, offset_mask, **self.keywords)


def other_size(case: Case) -> Case:
    return dataclasses.replace(case, n=case.n + 1, size=(case.size[0] + 3, case.size[1] + 4))


def trace(case: Case, dtype: torch.dtype = torch.float64) -> torch.jit.ScriptModule:
    inputs = case.inputs(dtype, poison=0.0)
    with warnings.catch_warnings():
        # the checks of the arguments look at sizes, and torch advises against tracing
        warnings.simplefilter("ignore")
        return torch.jit.trace(Op(case.geometry), (inputs.value, inputs.offset_mask), check_trace=False)


def kinds(graph: torch.Graph) -> set[str]:
    return {node.kind() for node in graph.nodes()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("case", "device"), parameters())
def test_forms_agree_with_torchvision(case, device, dtype):
    inputs = case.inputs(dtype, device)
    expected = torchvision_oracle(inputs.value, inputs.offset_mask, case.geometry)
    # grid_sample takes positions in units of the image, which rounds them to parts of its width
    tolerance = TOLERANCE[dtype] + max(case.size) * 2**-24
    for form in FORMS:
        with export_form(form):
            out = decompose(inputs.value, inputs.offset_mask, *case.geometry.operator_arguments)
        assert out.dtype == dtype
        assert relative_error(out, expected) <= tolerance, form


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
@pytest.mark.parametrize("form", FORMS)
def test_form_agrees_with_numpy_loop(form, case):
    inputs = case.inputs(torch.float64)
    with export_form(form):
        out = decompose(inputs.value, inputs.offset_mask, *case.geometry.operator_arguments)
    assert relative_error(out, numpy_oracle(*inputs, case.geometry)[0]) <= 1e-10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -4e9, 3e4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_points_nowhere_contribute_nothing(dtype, form, bad):
    if form == "grid_sample_finite" and math.isnan(bad):
        pytest.skip("this form is for runtimes that cannot compare")
    case = Case("nowhere", 2, (5, 7), 4, Geometry(2, scale=0.5))
    inputs = case.inputs(dtype, seed=3)
    for first in (0, 27):
        inputs.offset_mask[..., first : first + 18 : 6] = torch.tensor(bad).to(dtype)
        inputs.offset_mask[..., first + 3 : first + 18 : 6] = torch.tensor(bad).to(dtype)
    with export_form(form):
        out = decompose(inputs.value, inputs.offset_mask, *case.geometry.operator_arguments)
    expected = numpy_oracle(*inputs, case.geometry)[0]
    assert expected.count_nonzero() > 0
    assert relative_error(out, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 100.0])
@pytest.mark.parametrize("form", ["grid_sample", "deform_conv"])
def test_points_outside_read_nothing(form, bad):
    case = Case("outside", 2, (5, 7), 4, Geometry(2))
    inputs = case.inputs(torch.float32, poison=0.0)
    inputs.value.fill_(math.nan)
    records = inputs.offset_mask[..., :54].unflatten(-1, (2, 27))
    records[..., :18] = bad
    with export_form(form):
        out = decompose(inputs.value, inputs.offset_mask, *case.geometry.operator_arguments)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
@pytest.mark.parametrize("form", FORMS)
def test_trace_serves_other_sizes(form, case):
    with export_form(form):
        traced = trace(case)
    for served in (case, other_size(case)):
        inputs = served.inputs(torch.float64, seed=5)
        out = traced(inputs.value, inputs.offset_mask)
        assert relative_error(out, torchvision_oracle(inputs.value, inputs.offset_mask, case.geometry)) <= 1e-10


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("case", named("default", "everything-odd"), ids=lambda case: case.id)
def test_exported_program_serves_other_batches(case, strict):
    inputs = case.inputs(torch.float64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Op(case.geometry),
        (inputs.value, inputs.offset_mask),
        dynamic_shapes={"value": {0: batch}, "offset_mask": {0: batch}},
        strict=strict,
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("grid_sampler" in target for target in targets)
    assert not any("dcnv4" in target for target in targets)
    inputs = dataclasses.replace(case, n=case.n + 2).inputs(torch.float64, seed=5)
    out = program.module()(inputs.value, inputs.offset_mask)
    assert relative_error(out, torchvision_oracle(inputs.value, inputs.offset_mask, case.geometry)) <= 1e-10


def test_graph_holds_a_grid_sample_per_group_and_no_rank_above_four():
    case = Case("groups", 2, (6, 7), 4, Geometry(3))
    graph = trace(case, torch.float32).inlined_graph
    nodes = list(graph.nodes())
    assert sum(node.kind() == "aten::grid_sampler" for node in nodes) == 3
    ranks = [t.dim() for node in nodes for o in node.outputs() if isinstance(t := o.type(), torch.TensorType)]
    assert max(rank for rank in ranks if rank is not None) == 4


def test_traced_graph_moves_to_another_device():
    """A device that tracing has written into the graph meets tensors of another one here."""
    case = Case("moves", 2, (6, 7), 4, Geometry(2, stride=(2, 1)))
    traced = trace(case, torch.float32)
    inputs = case.inputs(torch.float32)
    out = traced(inputs.value.to("meta"), inputs.offset_mask.to("meta"))
    assert out.device.type == "meta" and out.shape == inputs.grad.shape


def test_half_precision_samples_in_float32():
    traced = trace(Case("half", 1, (6, 7), 4, Geometry(2)), torch.float16)
    graph = traced.inlined_graph
    samplers = graph.findAllNodes("aten::grid_sampler")
    assert len(samplers) == 2
    for node in samplers:
        assert [value.type().scalarType() for value in list(node.inputs())[:2]] == ["Float", "Float"]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("grid_sample", "aten::grid_sampler"),
        ("grid_sample_finite", "aten::grid_sampler"),
        ("deform_conv", "torchvision::deform_conv2d"),
        ("native", "yolo_dcnv4::dcnv4"),
    ],
)
@pytest.mark.parametrize("way", ["context", "environment"])
def test_chosen_form_is_what_leaves(form, kind, way, monkeypatch):
    case = Case("chosen", 1, (6, 7), 4, Geometry(1))
    if way == "environment":
        monkeypatch.setenv("YOLO_DCNV4_EXPORT", form)
        assert current_form() == form
        found = kinds(trace(case).inlined_graph)
    else:
        with export_form(form):
            found = kinds(trace(case).inlined_graph)
    assert kind in found
    assert not found & ({"aten::grid_sampler", "torchvision::deform_conv2d", "yolo_dcnv4::dcnv4"} - {kind})
    assert ("aten::where" in found) == (form in ("grid_sample", "deform_conv"))


def test_form_holds_inside_the_block_only():
    assert current_form() == "grid_sample"
    with export_form("native"):
        with pytest.raises(RuntimeError, match="inside"), export_form("deform_conv"):
            raise RuntimeError("inside")
        assert current_form() == "native"
    assert current_form() == "grid_sample"


def test_unknown_form_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"form must be one of grid_sample, .*native, got 'gridsample'"):
        export_form("gridsample").__enter__()
    monkeypatch.setenv("YOLO_DCNV4_EXPORT", "fast")
    with pytest.raises(ValueError, match=r"YOLO_DCNV4_EXPORT must be one of .*, got 'fast'"):
        trace(Case("refused", 1, (6, 7), 4, Geometry(1)))


def test_wrong_arguments_are_refused_while_tracing():
    inputs = Case("wrong", 1, (6, 7), 4, Geometry(1)).inputs(torch.float32)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="offset_mask must have at least"):
        warnings.simplefilter("ignore")
        torch.jit.trace(Op(Geometry(4)), (inputs.value, inputs.offset_mask), check_trace=False)


def test_compile_is_no_export():
    targets: list[str] = []

    def keep(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    inputs = Case("compiled", 1, (6, 7), 4, Geometry(1)).inputs(torch.float32)
    torch.compile(Op(Geometry(1)), backend=keep, fullgraph=True)(inputs.value, inputs.offset_mask)
    assert any("dcnv4" in target for target in targets)
    assert not any("grid_sample" in target for target in targets)
    assert not is_exporting()


def onnx_session(case: Case, path: Path, opset: int, **export):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    inputs = case.inputs(torch.float32, poison=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Op(case.geometry),
            (inputs.value, inputs.offset_mask),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["value", "offset_mask"],
            **export,
        )
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_session(session, case: Case) -> tuple[Tensor, Tensor]:
    inputs = case.inputs(torch.float32, seed=6, poison=0.0)
    (out,) = session.run(None, {"value": inputs.value.numpy(), "offset_mask": inputs.offset_mask.numpy()})
    return torch.from_numpy(out), torchvision_oracle(inputs.value, inputs.offset_mask, case.geometry)


SIZES = {0: "n", 1: "h", 2: "w"}


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.id)
def test_onnx_agrees_with_torchvision(case, tmp_path):
    session = onnx_session(
        case, tmp_path / "op.onnx", 18, dynamic_axes={"value": SIZES, "offset_mask": {0: "n", 1: "oh", 2: "ow"}}
    )
    for served in (case, other_size(case)):
        out, expected = run_session(session, served)
        assert relative_error(out, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("opset", [16, 20])
def test_onnx_of_other_opsets(opset, tmp_path):
    case = named("default")[0]
    out, expected = run_session(onnx_session(case, tmp_path / "op.onnx", opset), case)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("case", named("default", "everything-odd", "scale2.0"), ids=lambda case: case.id)
def test_onnx_deform_conv(case, tmp_path):
    onnx = pytest.importorskip("onnx")
    with export_form("deform_conv"):
        session = onnx_session(case, tmp_path / "op.onnx", 19)
    operators = {node.op_type for node in onnx.load(tmp_path / "op.onnx").graph.node}
    assert "DeformConv" in operators and "GridSample" not in operators
    out, expected = run_session(session, case)
    assert relative_error(out, expected) <= TOLERANCE[torch.float32]


def test_onnx_deform_conv_needs_opset_19(tmp_path):
    pytest.importorskip("onnx")
    with export_form("deform_conv"), pytest.raises(torch.onnx.errors.OnnxExporterError, match="added in version 19"):
        onnx_session(named("default")[0], tmp_path / "op.onnx", 18)


LOAD = """
import sys
import torch
assert "yolo_dcnv4" not in sys.modules
torch.ops.load_library(sys.argv[1])
model = {load}(sys.argv[2])
inputs, expected = torch.load(sys.argv[3])
torch.testing.assert_close({call}(*inputs), expected)
assert "yolo_dcnv4" not in sys.modules
"""


def operator_model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    case = Case("native", 2, (6, 7), 4, Geometry(2, stride=(2, 1)))
    inputs = case.inputs(torch.float32, seed=7)
    return Op(case.geometry), (inputs.value, inputs.offset_mask)


def packed_model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(7)
    layer = DCNv4(8, group=2)
    nn.init.normal_(layer.offset_mask.weight)
    layer.fuse_dcnv4()
    return layer, (torch.rand(2, 8, 6, 7),)


NATIVE = pytest.mark.parametrize(
    ("make", "operator"), [(operator_model, "dcnv4"), (packed_model, "dcnv4_packed")], ids=["operator", "packed"]
)


def run_without_package(load: str, call: str, file: Path, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    tensors = file.with_name("tensors.pt")
    with torch.no_grad():
        torch.save((inputs, model(*inputs)), tensors)
    process = subprocess.run(
        [sys.executable, "-c", LOAD.format(load=load, call=call), library_path(), file, tensors],
        cwd=file.parent,
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def native_program(model: nn.Module, inputs: tuple[Tensor, ...], operator: str) -> torch.export.ExportedProgram:
    with export_form("native"), torch.no_grad():
        program = torch.export.export(model, inputs)
    assert f"yolo_dcnv4.{operator}.default" in {str(node.target) for node in program.graph.nodes}
    return program


@needs_library
@NATIVE
def test_native_torchscript_runs_with_the_library_alone(make, operator, tmp_path):
    model, inputs = make()
    with export_form("native"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs, check_trace=False)
    assert f"yolo_dcnv4::{operator}" in kinds(traced.inlined_graph)
    traced.save(tmp_path / "op.torchscript")
    run_without_package("torch.jit.load", "model", tmp_path / "op.torchscript", model, inputs)


@needs_library
@NATIVE
def test_native_exported_program_runs_with_the_library_alone(make, operator, tmp_path):
    model, inputs = make()
    torch.export.save(native_program(model, inputs, operator), tmp_path / "op.pt2")
    run_without_package("torch.export.load", "model.module()", tmp_path / "op.pt2", model, inputs)


@needs_library
@NATIVE
@pytest.mark.slow
def test_native_aot_inductor_package_runs_with_the_library_alone(make, operator, tmp_path):
    model, inputs = make()
    program = native_program(model, inputs, operator)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "op.pt2"))
    # torch 2.10 loads packages only where this has been imported
    load = "__import__('torch._inductor.codecache')._inductor.aoti_load_package"
    run_without_package(load, "model", Path(package), model, inputs)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_projections_in_one_tensor_are_taken_apart_at_constants(dynamic, tmp_path):
    """What an optimiser would have to fold first is a burden to runtimes that take the file as it is."""
    onnx = pytest.importorskip("onnx")
    layer, inputs = packed_model()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            layer,
            inputs,
            str(tmp_path / "layer.onnx"),
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}} if dynamic else None,
        )
    graph = onnx.load(tmp_path / "layer.onnx").graph
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    constants |= {tensor.name for tensor in graph.initializer}
    slices = [node for node in graph.node if node.op_type == "Slice" and "packed_proj" in node.input[0]]
    assert len(slices) == 2
    assert {name for node in slices for name in node.input[1:]} <= constants
