"""Models exported by ultralytics' own exporter and run by stock runtimes give the detections of PyTorch."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.utils import ASSETS, LOGGER

from yolo_dcnv4.demo_data import write_demo_data
from yolo_dcnv4.modules import DCNv4
from yolo_dcnv4.ops.export import current_form
from yolo_dcnv4.registry import export_formats

from .environments import THIS_PACKAGE, make_environment

IMGSZ = 96
CONF = 0.25
PICTURES = [str(ASSETS / "bus.jpg"), str(ASSETS / "zidane.jpg")]
# every block, strided and not, at the size of a test
SMALL_YAML = """\
nc: 12
scales:
  n: [0.50, 0.25, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C2f_DCNv4, [128, True]]
  - [-1, 1, DCNv4Conv, [256, 3, 2]]
  - [-1, 1, C3k2_DCNv4, [256, False, 0.5]]
  - [-1, 1, DCNv4Conv, [256, 3, 2]]
  - [-1, 1, C2f_DCNv4, [256]]
head:
  - [[4, 6], 1, Detect, [nc]]
"""
# the operators that the parsers of TensorRT 8.6 and of TensorRT 10.0 both support, among those that exporters of torch
# write; source: docs/operators.md of onnx/onnx-tensorrt, branches release/8.6-GA and 10.0-GA
TENSORRT_OPERATORS = frozenset(
    """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose
    CumSum Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool Greater
    GreaterOrEqual GridSample HardSigmoid HardSwish Identity LayerNormalization LeakyRelu Less LessOrEqual Log MatMul
    Max MaxPool Min Mod Mul Neg NonMaxSuppression NonZero Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Shape Sigmoid Sign Slice Softmax Softplus
    Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()
)


@pytest.fixture(scope="module", autouse=True)
def no_installing():
    """Keep ultralytics from installing packages that a format wants."""
    from ultralytics.utils import checks

    patch = pytest.MonkeyPatch()
    patch.setenv("YOLO_AUTOINSTALL", "0")
    patch.setattr(checks, "AUTOINSTALL", False, raising=False)
    yield
    patch.undo()


def pictures(height: int, width: int) -> Tensor:
    """The two pictures as the predictor gives them to a model of fixed size."""
    boxed = [LetterBox((height, width), auto=False)(image=cv2.imread(picture)) for picture in PICTURES]
    return torch.from_numpy(np.stack(boxed)[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255


def save_detecting_model(yaml: str, path: Path, imgsz: int) -> Path:
    """Save a model with random weights that detects something in both pictures.

    Points lie about a pixel off the grid, batch statistics are those of the pictures, and a class's weights are the
    feature at one pixel: its score is high there and low elsewhere, in the grey border above all. Boxes are a few cells
    large. The pixels themselves move points a little only: eight layers with random weights would turn the last bits of
    float32, which differ between any two backends, into another picture.
    """
    torch.manual_seed(0)
    yolo = YOLO(yaml)
    model = yolo.model.train()
    for module in model.modules():
        if isinstance(module, DCNv4):
            nn.init.normal_(module.offset_mask.weight, std=0.01)
            group, points = module.core.group, module.core.points
            records = module.offset_mask.bias.data[: 3 * group * points].view(group, 3 * points)
            nn.init.normal_(records[:, : 2 * points])
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    x = pictures(imgsz, imgsz)
    features: list[Tensor] = []
    head = model.model[-1]
    with torch.no_grad():
        model(torch.cat((x, x.flip(3), x.flip(2), x.roll(imgsz // 4, 3))))
        model.eval()
        hooks = [
            branch[-1].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])) for branch in head.cv3
        ]
        model(x)
        for hook in hooks:
            hook.remove()
        cls = 0
        for scores, boxes, feature in zip(head.cv3, head.cv2, features, strict=True):
            rows = feature.flatten(2).transpose(1, 2)
            mean = rows.mean((0, 1))
            border = torch.linalg.qr((rows[:, [0, -1]] - mean).flatten(0, 1).T)[0]
            rows = (rows - mean) - (rows - mean) @ border @ border.T
            scores[-1].weight.zero_()
            scores[-1].bias.fill_(-12)
            for image in rows:
                for row in image[image.square().sum(1).topk(3).indices]:
                    weight = row / row.square().sum() * 10
                    scores[-1].weight[cls] = weight[:, None, None]
                    # no two classes alike, for equal scores come in any order
                    scores[-1].bias[cls] = -9 + 0.1 * cls - weight @ mean
                    cls += 1
            boxes[-1].bias.copy_((-(torch.arange(16) - 2.0).abs() * 2).repeat(4))
    yolo.save(path)
    return path


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    (folder / "yolo11n-small.yaml").write_text(SMALL_YAML)
    return save_detecting_model(str(folder / "yolo11n-small.yaml"), folder / "small.pt", IMGSZ)


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """A copy, for exports land beside the model."""
    return Path(YOLO(small_model).save(tmp_path / "small.pt") or tmp_path / "small.pt")


def detect(model: Path | str, imgsz: int, **settings: Any) -> list[Tensor]:
    # rect: PyTorch would take a smaller picture than a model of fixed size can
    results = YOLO(str(model), task="detect").predict(
        PICTURES, imgsz=imgsz, conf=CONF, rect=False, device="cpu", verbose=False, **settings
    )
    return [result.boxes.data.cpu() for result in results]


def assert_same_detections(actual: list[Tensor], expected: list[Tensor], pixels: float = 1.0, score: float = 1e-3):
    """Each detection has one of its class in the other list, with a box within `pixels` and a score within `score`.

    Those whose score is within `score` of the threshold may be missing.
    """
    assert len(actual) == len(expected) == len(PICTURES)
    for ours, theirs in zip(actual, expected, strict=True):
        assert len(theirs) >= 3, "the comparison would say nothing"
        for some, others in ((ours, theirs), (theirs, ours)):
            free = list(range(len(others)))
            for row in some[some[:, 4] > CONF + score]:
                near = [
                    i
                    for i in free
                    if others[i, 5] == row[5]
                    and (others[i, :4] - row[:4]).abs().max() <= pixels
                    and abs(others[i, 4] - row[4]) <= score
                ]
                assert near, f"no match for {row.tolist()} in {others.tolist()}"
                free.remove(near[0])


def raw_outputs(session, model: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    plain = YOLO(model).model.float().eval().fuse()
    with torch.no_grad():
        expected = plain(x)
    return torch.from_numpy(out), expected[0] if isinstance(expected, (tuple, list)) else expected


def onnx_session(path: str):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


def test_torchscript(model: Path):
    exported = YOLO(model).export(format="torchscript", imgsz=IMGSZ)
    assert_same_detections(detect(exported, IMGSZ), detect(model, IMGSZ))
    operators = {node.kind().split("::")[0] for node in torch.jit.load(exported).inlined_graph.nodes()}
    assert operators <= {"aten", "prim"}


@pytest.mark.parametrize(
    "settings",
    [{}, {"simplify": False}, {"batch": 2}, {"dynamic": True}, {"nms": True}],
    ids=["static", "not-simplified", "batch", "dynamic", "nms"],
)
def test_onnx(model: Path, settings: dict[str, Any]):
    needs("onnx", "onnxruntime", "onnxslim")
    exported = YOLO(model).export(format="onnx", imgsz=IMGSZ, **settings)
    batch = settings.get("batch", 1)
    assert_same_detections(detect(exported, IMGSZ, batch=batch), detect(model, IMGSZ, batch=batch))


def test_onnx_of_traced_sizes_serves_every_size(model: Path):
    needs("onnx", "onnxruntime", "onnxslim")
    session = onnx_session(YOLO(model).export(format="onnx", imgsz=IMGSZ, dynamic=True))
    for batch, height, width in ((1, 96, 96), (3, 64, 160), (2, 128, 32)):
        x = pictures(height, width)
        out, expected = raw_outputs(session, model, torch.cat((x, x.flip(3)))[:batch])
        assert out.shape == expected.shape
        assert (out[:, :4] - expected[:, :4]).abs().max() <= 1
        assert (out[:, 4:] - expected[:, 4:]).abs().max() <= 1e-3


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_onnx_half(model: Path, dynamic: bool):
    """On a CPU, positions are rounded to float16 too: scores and boxes move, detections stay."""
    needs("onnx", "onnxruntime", "onnxslim")
    onnx = pytest.importorskip("onnx")
    exported = YOLO(model).export(format="onnx", imgsz=IMGSZ, half=True, dynamic=dynamic)
    assert_same_detections(detect(exported, IMGSZ), detect(model, IMGSZ), pixels=25, score=0.1)
    kinds = Counter(tensor.data_type for tensor in onnx.load(exported).graph.initializer)
    assert kinds[onnx.TensorProto.FLOAT16] > kinds[onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("nms", [False, True], ids=["plain", "nms"])
def test_onnx_holds_only_operators_of_tensorrt(model: Path, dynamic: bool, nms: bool):
    needs("onnx", "onnxruntime", "onnxslim")
    import onnx

    file = YOLO(model).export(format="onnx", imgsz=IMGSZ, dynamic=dynamic, nms=nms)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file))
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert {node.op_type for node in graph.graph.node} - TENSORRT_OPERATORS == set()
    assert [opset.version for opset in graph.opset_import if opset.domain in ("", "ai.onnx")] < [20]
    samplers = [node for node in graph.graph.node if node.op_type == "GridSample"]
    assert samplers
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.graph.value_info}
    assert {ranks[name] for node in samplers for name in [*node.input, *node.output]} == {4}
    # an axis that is computed while the model runs is refused by the parser
    constants = {tensor.name for tensor in graph.graph.initializer}
    constants |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
    for node in graph.graph.node:
        place = {"Slice": 3, "Squeeze": 1, "Unsqueeze": 1, "ReduceSum": 1}.get(node.op_type)
        if place is not None and len(node.input) > place:
            assert node.input[place] in constants, node.name


def test_openvino(model: Path, monkeypatch: pytest.MonkeyPatch):
    openvino = pytest.importorskip("openvino")
    compile_model = openvino.Core.compile_model

    def in_float32(self, network, *args, config=None, **kwargs):
        return compile_model(
            self, network, *args, config={**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **kwargs
        )

    # some CPUs would run in bfloat16
    monkeypatch.setattr(openvino.Core, "compile_model", in_float32)
    for settings in ({}, {"dynamic": True}):
        exported = YOLO(model).export(format="openvino", imgsz=IMGSZ, **settings)
        assert_same_detections(detect(exported, IMGSZ), detect(model, IMGSZ))


@pytest.mark.slow
def test_ncnn(model: Path):
    needs("ncnn", "pnnx")
    exported = YOLO(model).export(format="ncnn", imgsz=IMGSZ)
    # NCNN stores and multiplies in float16 and bfloat16 where the CPU can
    assert_same_detections(detect(exported, IMGSZ), detect(model, IMGSZ), score=5e-3)


RUN = """
import importlib.util
import sys

import torch
from ultralytics import YOLO

assert importlib.util.find_spec("yolo_dcnv4") is None
model, out, imgsz, *pictures = sys.argv[1:]
if "openvino" in model:
    import openvino

    class Core(openvino.Core):
        def compile_model(self, *args, config=None, **kwargs):
            # some CPUs would run in bfloat16
            return super().compile_model(*args, config={**(config or {}), "INFERENCE_PRECISION_HINT": "f32"}, **kwargs)

    openvino.Core = Core
results = YOLO(model, task="detect").predict(pictures, imgsz=int(imgsz), rect=False, device="cpu", verbose=False)
torch.save([result.boxes.data.cpu() for result in results], out)
"""


@pytest.fixture(scope="module")
def python_without_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform == "win32":
        pytest.skip("environments are made of symbolic links")
    return make_environment(tmp_path_factory.mktemp("without") / "environment", without=THIS_PACKAGE)


@pytest.mark.parametrize(
    ("file_format", "packages"),
    [
        ("torchscript", ()),
        ("onnx", ("onnx", "onnxruntime", "onnxslim")),
        pytest.param("openvino", ("openvino",), marks=pytest.mark.slow),
    ],
)
def test_exported_model_runs_without_this_package(
    model: Path, python_without_package: Path, file_format: str, packages: tuple[str, ...]
):
    needs(*packages)
    exported = YOLO(model).export(format=file_format, imgsz=IMGSZ)
    out = model.with_name("detections.pt")
    process = subprocess.run(
        [python_without_package, "-c", RUN, exported, out, str(IMGSZ), *PICTURES],
        cwd=model.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert_same_detections(torch.load(out), detect(model, IMGSZ))


@pytest.mark.slow
@pytest.mark.parametrize("yaml", ["yolov8n-dcnv4-full.yaml", "yolov8n-dcnv4-conv.yaml"])
@pytest.mark.parametrize("file_format", ["torchscript", "onnx"])
def test_shipped_models(yaml: str, file_format: str, tmp_path: Path):
    needs("onnx", "onnxruntime", "onnxslim")
    model = save_detecting_model(yaml, tmp_path / "model.pt", 160)
    exported = YOLO(model).export(format=file_format, imgsz=160)
    assert_same_detections(detect(exported, 160), detect(model, 160))


@pytest.mark.slow
def test_benchmark_runs_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("onnx", "onnxruntime", "onnxslim", "polars")
    from ultralytics.utils.benchmarks import benchmark

    monkeypatch.chdir(tmp_path)
    data = write_demo_data(tmp_path / "shapes", train=2, val=4, imgsz=64)
    (tmp_path / "yolo11n-small.yaml").write_text(SMALL_YAML.replace("nc: 12", "nc: 3"))
    YOLO("yolo11n-small.yaml").save("small.pt")
    for file_format in ("-", "torchscript", "onnx"):
        frame = benchmark(model="small.pt", data=str(data), imgsz=64, device="cpu", format=file_format)
        assert frame["Status❔"].to_list() == ["✅"]


def exporter(model: nn.Module, file_format: str, opset: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(model=model, args=SimpleNamespace(format=file_format, opset=opset))


@pytest.mark.parametrize("file_format", sorted(export_formats.REFUSED))
def test_format_that_cannot_hold_the_operator_says_why(model: Path, file_format: str):
    with pytest.raises(ValueError, match=rf"format={file_format} cannot hold DCNv4: .*docs/export\.md"):
        export_formats.prepare_export(exporter(YOLO(model).model, file_format))
    export_formats.prepare_export(exporter(nn.Conv2d(1, 1, 1), file_format))


def test_refusal_reaches_the_user(model: Path):
    with pytest.raises(ValueError, match=r"format=paddle cannot hold DCNv4: .*grid_sampler"):
        YOLO(model).export(format="paddle", imgsz=IMGSZ)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture):
    LOGGER.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    LOGGER.removeHandler(caplog.handler)


def test_untested_format_is_said_to_be_so(model: Path, warned):
    export_formats.prepare_export(exporter(YOLO(model).model, "rknn"))
    assert [m for m in warned() if "format=rknn has not been tested with DCNv4" in m]


@pytest.mark.parametrize("file_format", ["engine", "tensorrt", "onnx"])
def test_opset_that_tensorrt_misreads(model: Path, file_format: str, warned):
    export = exporter(YOLO(model).model, file_format, opset=20)
    export_formats.prepare_export(export)
    assert export.args.opset == (20 if file_format == "onnx" else 19)
    assert [m for m in warned() if "TensorRT would sample the nearest pixel" in m]
    export = exporter(YOLO(model).model, file_format, opset=19)
    export_formats.prepare_export(export)
    assert export.args.opset == 19
    assert not [m for m in warned()[2:] if "TensorRT would sample" in m and "opset=19" in m]


def test_engine_gets_an_opset_that_tensorrt_reads(model: Path):
    export = exporter(YOLO(model).model, "engine")
    export_formats.prepare_export(export)
    assert export.args.opset == export_formats.DEFAULT_OPSET


class OldExporter:
    """Fires the event before it takes up the model, as releases before 8.3.200 do."""

    def __init__(self, file_format: str):
        self.args = SimpleNamespace(format=file_format, opset=None)
        self.forms: list[str] = []

    def __call__(self, model: nn.Module) -> list[str]:
        export_formats.prepare_export(self)
        self.model = model
        self.export_torchscript()
        self.export_ncnn(prefix="NCNN:")
        return self.forms

    def export_torchscript(self):
        self.forms.append(current_form())

    def export_ncnn(self, prefix: str):
        self.forms.append(f"{prefix} {current_form()}")


def test_release_that_tells_of_the_export_before_it_has_the_model(model: Path):
    own = YOLO(model).model
    assert OldExporter("ncnn")(own) == ["grid_sample_finite", "NCNN: grid_sample_finite"]
    assert OldExporter("ncnn")(nn.Conv2d(1, 1, 1)) == ["grid_sample", "NCNN: grid_sample"]
    with pytest.raises(ValueError, match="format=paddle cannot hold DCNv4"):
        OldExporter("paddle")(own)
    assert OldExporter("paddle")(nn.Conv2d(1, 1, 1)) == ["grid_sample", "NCNN: grid_sample"]


def test_every_format_of_ultralytics_is_accounted_for():
    from ultralytics.engine.exporter import export_formats as table

    formats = set(table()["Argument"]) - {"-"}
    assert formats <= export_formats.TESTED | export_formats.UNTESTED | set(export_formats.REFUSED)
