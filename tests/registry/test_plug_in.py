"""Modules of others, standing for each kind that `parse_model` treats in its own way."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import modules
from ultralytics.nn.modules import C2f, Classify, Conv, Detect, Segment
from ultralytics.utils import YAML

from yolo_dcnv4.demo_data import write_demo_data
from yolo_dcnv4.registry import register_module, registered, unregister

LIKES = ("C2f", "C3k2", "Conv", "Bottleneck", "SPPF", "Concat", "Detect", "Segment", "Pose", "OBB", "Classify")


def own(like: str) -> type[nn.Module]:
    return type(f"Own{like}", (getattr(modules, like),), {"__module__": __name__})


def renamed(tasks, base: str, names: dict[str, str]) -> dict:
    config = copy.deepcopy(tasks.yaml_model_load(base))
    for row in config["backbone"] + config["head"]:
        row[2] = names.get(row[2], row[2])
    return config


BASES = {
    "yolov8n.yaml": ("C2f", "Conv", "SPPF", "Concat", "Detect"),
    "yolo11n.yaml": ("C3k2", "Conv", "SPPF", "Concat", "Detect"),
    "yolov8n-seg.yaml": ("C2f", "Segment"),
    "yolov8n-pose.yaml": ("C2f", "Pose"),
    "yolov8n-obb.yaml": ("C2f", "OBB"),
    "yolov8n-cls.yaml": ("C2f", "Classify"),
}
TASKS = {"seg": "segment", "pose": "pose", "obb": "obb", "cls": "classify"}


@pytest.mark.parametrize("base", BASES)
def test_every_kind_of_module_takes_its_place(hook, tmp_path, base):
    for like in BASES[base]:
        register_module(own(like), like=like)
    names = {like: f"Own{like}" for like in BASES[base]}
    file = tmp_path / base.replace(".yaml", "-own.yaml")
    YAML.save(file, {k: v for k, v in renamed(hook, base, names).items() if k != "yaml_file"})
    # no task given: ultralytics reads it from the head's name
    model, stock = YOLO(file), YOLO(base)
    assert model.task == stock.task == TASKS.get(base.split("-")[-1].removesuffix(".yaml"), "detect")
    assert {type(layer).__name__ for layer in model.model.model} >= set(names.values())
    assert torch.equal(model.model.stride, stock.model.stride)
    model.model.load_state_dict(stock.model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = (m.model.eval()(x) for m in (stock, model))
    first = expected if isinstance(expected, torch.Tensor) else expected[0]
    while not isinstance(first, torch.Tensor):
        first, got = first[0], got[0]
    torch.testing.assert_close(got if isinstance(got, torch.Tensor) else got[0], first, rtol=0, atol=0)
    assert hook.guess_model_task(model.model) == model.task


def test_head_whose_name_says_nothing_of_its_task(hook):
    cls = type("Ending", (Segment,), {"__module__": __name__})
    register_module(cls, like="Segment")
    register_module(type("Last", (cls,), {"__module__": __name__}), like="Ending")
    for name in ("Ending", "Last"):
        config = renamed(hook, "yolov8n-seg.yaml", {"Segment": name})
        assert hook.guess_model_task(config) == "segment"
        assert hook.guess_model_task(hook.SegmentationModel(config, verbose=False)) == "segment"


def test_tasks_of_other_models_are_guessed_as_before(hook):
    for thing in ("yolov8n-seg.pt", {"head": [[-1, 1, "Pose", [3]]]}, nn.Linear(1, 1)):
        assert hook.guess_model_task(thing) == hook.guess_model_task.__wrapped__(thing)


def test_function_that_others_have_imported_follows(hook):
    import ultralytics.engine.model as engine

    register_module(type("Ending", (Segment,), {"__module__": __name__}), like="Segment")
    config = renamed(hook, "yolov8n-seg.yaml", {"Segment": "Ending"})
    assert engine.guess_model_task(config) == "segment"
    unregister()
    assert engine.guess_model_task(config) is None


class TwoArguments(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1)

    def forward(self, x):
        return self.conv(x)


class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()


class KeywordsOnly(nn.Module):
    def __init__(self, *, c1, c2):
        super().__init__()


class OwnPooling(TwoArguments):
    def __init__(self, c1, c2, k=5):
        super().__init__(c1, c2)


class Broken(Conv):
    def __init__(self, *args):
        raise ValueError("no luck")


@pytest.mark.parametrize("cls", [NoArguments, KeywordsOnly])
def test_class_that_cannot_take_channels(hook, cls):
    before = registered()
    with pytest.raises(TypeError, match=rf"{cls.__name__}\(.*\) cannot stand for C2f\(c1, c2, n=1.*\(c1, c2\)"):
        register_module(cls, like="C2f")
    assert registered() == before and not hasattr(hook, cls.__name__)


@pytest.mark.parametrize("like", [Detect, Classify])
def test_head_must_be_a_subclass(hook, like):
    with pytest.raises(TypeError, match=rf"NoArguments cannot be like the head {like.__name__}.*isinstance"):
        register_module(NoArguments, like=like)


@pytest.mark.parametrize(
    ("cls", "like", "row", "error", "message"),
    [
        (
            TwoArguments,
            "C2f",
            2,
            TypeError,
            r"positional arguments.*\nLayer 2 .* passes 32, 32, 1, True to TwoArguments",
        ),
        (Broken, "C2f", 2, ValueError, r"no luck\nLayer 2 of the model passes 32, 32, 1, True to Broken"),
    ],
    ids=["signature", "raises"],
)
def test_error_in_a_model_names_class_arguments_and_what_is_expected(hook, cls, like, row, error, message):
    register_module(cls, like=like)
    config = renamed(hook, "yolov8n.yaml", {like: cls.__name__})
    with pytest.raises(error, match=message) as caught:
        hook.DetectionModel(config, verbose=False)
    assert "registered like C2f(c1, c2, n=1, shortcut=False, g=1, e=0.5)" in str(caught.value)
    assert str(caught.value).count("Layer 2") == 1
    # constructors of subclasses call each other
    with pytest.raises(error) as caught:
        hook.SegmentationModel(config, verbose=False)
    assert str(caught.value).count("Layer 2") == 1


def test_attribute_that_parse_model_sets(hook):
    register_module(OwnPooling, like="SPPF")
    config = renamed(hook, "yolov8n.yaml", {"SPPF": "OwnPooling"})
    if "SPPF and len(args)" not in open(hook.__file__, encoding="utf-8").read():
        pytest.skip("this release sets nothing on an SPPF")
    with pytest.raises(AttributeError, match=r"cv1'\nLayer 9 .* OwnPooling\(c1, c2, k=5\), registered like SPPF\("):
        hook.DetectionModel(config, verbose=False)


def test_error_of_another_module_stays_as_it_is(hook):
    config = renamed(hook, "yolov8n.yaml", {})
    config["backbone"][2][3] = [128, True, 1, 2, 3, 4, 5, 6]
    with pytest.raises(TypeError) as caught:
        hook.DetectionModel(config, verbose=False)
    assert "Layer 2" not in str(caught.value)


def test_arguments_as_they_are(hook):
    register_module(TwoArguments, like=None)
    config = renamed(hook, "yolov8n.yaml", {"SPPF": "TwoArguments"})
    config["backbone"][9][3] = [256]
    with pytest.raises(TypeError, match=r"passes 256 to TwoArguments\(c1, c2\), registered with like=None"):
        hook.DetectionModel(config, verbose=False)


def test_like_of_torch_and_class_without_signature(hook):
    class Upscaling(nn.ConvTranspose2d):
        pass

    register_module(Upscaling, like="nn.ConvTranspose2d")
    assert registered()["Upscaling"].like == "nn.ConvTranspose2d"


def test_pack_classes_pass_the_check():
    from yolo_dcnv4.modules import C2f_DCNv4
    from yolo_dcnv4.registry import arguments

    arguments.check(C2f_DCNv4, C2f)


@pytest.mark.slow
def test_files_of_the_how_to(python, tmp_path):
    page = Path(__file__).parents[2] / "docs" / "plug-in.md"
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert [name for name, _ in files] == ["own_blocks.py", "yolov8n-own.yaml", "train.py"]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = write_demo_data(tmp_path / "data", train=8, val=4, imgsz=64)
    out = python("train.py", str(data), str(tmp_path), cwd=tmp_path)
    assert "GatedC2f detect" in out.splitlines()
    (weights,) = tmp_path.rglob("best.pt")
    # what the page says of restricted loading and of export
    code = (
        "import sys, torch, own_blocks\nfrom ultralytics import YOLO\nmodel = YOLO(sys.argv[1])\n"
        "names = {type(m).__name__ for m in model.model.modules()}\n"
        "exported = torch.jit.load(model.export(format='torchscript', imgsz=64, device='cpu'))\n"
        "x = torch.rand(1, 3, 64, 64)\nwanted = model.model.float().eval()(x)\n"
        "wanted = wanted[0] if isinstance(wanted, (tuple, list)) else wanted\n"
        "torch.testing.assert_close(exported(x), wanted, rtol=1e-3, atol=1e-2)\nprint('holds', *names)"
    )
    out = python("-c", code, str(weights), cwd=tmp_path, ULTRALYTICS_SAFE_LOAD="1")
    (names,) = re.findall(r"^holds (.*)$", out, re.MULTILINE)
    assert {"GatedC2f", "SmoothHead", "SpatialGate"} <= set(names.split())
