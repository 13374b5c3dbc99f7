from __future__ import annotations

import copy
import functools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn import tasks

import model_yamls
import yolo_dcnv4.modules  # registers the blocks
from tests.task_data import IMGSZ, write_task_data
from yolo_dcnv4.locate import data_folder
from yolo_dcnv4.modules import DCNv4

ROOT = Path(__file__).parents[1]
SCALES = "nsmlx"


def _replaced() -> dict[str, dict[int, str]]:
    """File without -dcnv4- and suffix, and place -> number of each replaced layer and its module there."""
    files: dict[str, dict[int, str]] = {}
    backbone = (4, 6, 8)
    for family, block, neck in (
        ("yolov8", "C2f_DCNv4", (12, 15, 18, 21)),
        ("yolo11", "C3k2_DCNv4", (13, 16, 19, 22)),
        ("yolo26", "C3k2_DCNv4", (13, 16, 19, 22)),
    ):
        for task in ("", "-seg", "-pose", "-obb"):
            places = {"backbone": backbone, "neck": neck, "full": (2, *backbone, *neck)}
            files |= {f"{family}-dcnv4-{place}{task}": dict.fromkeys(at, block) for place, at in places.items()}
        files[f"{family}-dcnv4-backbone-cls"] = dict.fromkeys(backbone, block)
    files["yolov8-dcnv4-conv"] = dict.fromkeys((3, 5, 7), "DCNv4Conv")
    files["yolov8-rtdetr-dcnv4-backbone"] = dict.fromkeys(backbone, "C2f_DCNv4")
    files["yolov5-dcnv4-backbone"] = dict.fromkeys(backbone, "C3_DCNv4")
    files["yolo12-dcnv4-backbone"] = {4: "C3k2_DCNv4"}  # the blocks behind it are attention
    # where a scale of YOLOv10 has C2fCIB, it stays
    for scale, at in {"n": backbone, "s": (4, 6), "m": (4, 6), "b": (4, 6), "l": (4, 6), "x": (4,)}.items():
        files[f"yolov10{scale}-dcnv4-backbone"] = dict.fromkeys(at, "C2f_DCNv4")
    return files


REPLACED = _replaced()


def scaled(stem: str, scale: str) -> str:
    return re.sub(r"^(yolov?\d+)", rf"\g<1>{scale}", stem) + ".yaml"


def models(scales: str = SCALES) -> list[str]:
    """Names of all shipped models at the scales, those of YOLOv10 at the one that they have."""
    names = []
    for stem in REPLACED:
        own = re.match(r"yolov10(\w)", stem)
        names += [f"{stem}.yaml"] if own else [scaled(stem, scale) for scale in scales]
    return names


def without_scale(name: str) -> str:
    stem = name.removesuffix(".yaml")
    return stem if stem in REPLACED else re.sub(r"^(yolov?\d+)[nsmlx]", r"\1", stem)


def plain(name: str) -> str:
    """Name of the model without DCNv4, where the installed ultralytics knows it."""
    base = re.sub(r"-dcnv4-\w+", "", name)
    if not tasks.check_yaml(re.sub(r"^(yolo(?:11|12|26|v5|v8))[nsmlx]", r"\1", base), hard=False):
        pytest.skip(f"the installed ultralytics has no {base}")
    return base


@dataclass(frozen=True)
class Outline:
    types: dict[int, str]
    shapes: list[dict[str, tuple[int, ...]]]


@functools.cache
def outline(name: str) -> Outline:
    config = tasks.yaml_model_load(name) | {"nc": 80}  # 8.3.0 wrote another number into YOLO11's classifier
    # the types and shapes of the largest model without its memory
    with torch.device("meta"):
        model, _ = tasks.parse_model(copy.deepcopy(config), ch=3, verbose=False)
    return Outline(
        types={index: type(layer).__name__ for index, layer in enumerate(model)},
        shapes=[{name: tuple(t.shape) for name, t in layer.state_dict().items()} for layer in model],
    )


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_every_shipped_yaml_is_tested_here():
    assert {path.stem for path in data_folder("model_yamls").iterdir()} == REPLACED.keys()


def test_shipped_yamls_are_written_by_the_command(tmp_path: Path):
    assert {f"{stem}.yaml" for stem in REPLACED} == model_yamls.SHIPPED.keys()
    compared = 0
    for name, (model, where) in model_yamls.SHIPPED.items():
        base, shipped = tasks.check_yaml(model, hard=False), (data_folder("model_yamls") / name).read_bytes()
        if not base or yaml.safe_load(Path(base).read_bytes())["nc"] != yaml.safe_load(shipped)["nc"]:
            continue
        variant = yolo_dcnv4.write_variant(model, where, tmp_path / name, layout="plain")
        assert variant.file.read_bytes() == shipped, name
        assert variant.modules == REPLACED[variant.file.stem]
        compared += 1
    assert compared >= 34  # the oldest release that is supported lacks YOLO26 and YOLO12


@pytest.mark.parametrize("stem", REPLACED)
def test_scales_are_written_out(stem: str):
    model = yaml.safe_load((data_folder("model_yamls") / f"{stem}.yaml").read_text(encoding="utf-8"))
    own = re.match(r"yolov10(\w)", stem)
    assert list(model["scales"]) == (list(own[1]) if own else list(SCALES))


def _check_difference(name: str) -> None:
    theirs, ours, replaced = outline(plain(name)), outline(name), REPLACED[without_scale(name)]
    assert ours.types == theirs.types | replaced
    for index, (after, before) in enumerate(zip(ours.shapes, theirs.shapes, strict=True)):
        if replaced.get(index) == "DCNv4Conv":
            assert after["dcn.output_proj.weight"][0] == before["conv.weight"][0]
            continue
        if index in replaced:
            assert any(".cv2.dcn." in tensor for tensor in after)
            after, before = (
                {
                    tensor: shape
                    for tensor, shape in layer.items()
                    if not re.match(r"m\.[\w.]*cv2\.(dcn|conv)\.", tensor)
                }
                for layer in (after, before)
            )
        assert after == before, f"layer {index}"


@pytest.mark.parametrize("name", models("n"))
def test_differs_from_the_plain_model_only_where_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # bare names are found from anywhere
    _check_difference(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models()) - set(models("n"))))
def test_differs_from_the_plain_model_at_every_scale(name: str):
    _check_difference(name)


@pytest.mark.parametrize("scale", SCALES)
def test_strides_are_those_of_the_plain_model(scale: str):
    assert YOLO(f"yolov8{scale}-dcnv4-full.yaml").model.stride.tolist() == [8, 16, 32]


@pytest.mark.parametrize("variant", ["backbone", "neck", "full", "conv"])
def test_trains_forward_and_backward(variant: str):
    torch.manual_seed(0)
    model = YOLO(f"yolov8n-dcnv4-{variant}.yaml").model.train()
    outputs = tensors_in(model(torch.randn(2, 3, 64, 64)))
    assert outputs and all(tensor.isfinite().all() for tensor in outputs)
    sum(tensor.square().mean() for tensor in outputs).backward()
    layers = [module for module in model.modules() if isinstance(module, DCNv4)]
    # a DCNv4Conv is one layer, a C2f_DCNv4 one per bottleneck
    replaced = REPLACED[f"yolov8-dcnv4-{variant}"]
    assert len(layers) == sum(len(getattr(model.model[index], "m", (1,))) for index in replaced)
    for layer in layers:
        for linear in (layer.value_proj, layer.offset_mask, layer.output_proj):
            assert linear.weight.grad.isfinite().all()
            assert linear.weight.grad.any()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, DCNv4)}
    return {name: layer.output_proj.weight.detach().clone() for name, layer in layers.items()}


def _run(name: str, folder: Path) -> None:
    """Train one step, validate and predict, with ultralytics' own trainer, validator and predictor."""
    plain(name)
    model = (RTDETR if "rtdetr" in name else YOLO)(name)
    assert sum(type(layer).__name__.endswith(("_DCNv4", "DCNv4Conv")) for layer in model.model.model) == len(
        REPLACED[without_scale(name)]
    )
    data = write_task_data(folder / "data", model.task)
    common = {"data": str(data), "imgsz": IMGSZ, "batch": 2, "workers": 0, "device": "cpu", "project": str(folder)}
    weights: dict[str, dict[str, Tensor]] = {}
    model.add_callback("on_train_start", lambda trainer: weights.update(before=_weights(trainer.model)))
    model.add_callback("on_train_end", lambda trainer: weights.update(after=_weights(trainer.model)))
    # nbs: the nominal batch, at which the optimiser steps
    quick = {"nbs": 2, "optimizer": "SGD", "warmup_epochs": 0, "plots": False, "amp": False, "val": False}
    model.train(epochs=1, name="train", exist_ok=True, pretrained=False, **quick, **common)
    assert weights["before"] and weights["before"].keys() == weights["after"].keys()
    for layer, before in weights["before"].items():
        after = weights["after"][layer]
        assert after.isfinite().all() and not torch.equal(after, before), f"{layer} has not learned"

    metrics = model.val(name="val", exist_ok=True, plots=False, **common)
    assert 0 <= metrics.fitness <= 1
    (result,) = model.predict(torch.rand(1, 3, IMGSZ, IMGSZ), imgsz=IMGSZ, device="cpu", verbose=False)
    found = {"classify": result.probs, "obb": result.obb}.get(model.task, result.boxes)
    assert found is not None and found.data.isfinite().all()


# one of each task, of each block, of YOLO26's attention in C3k2, of RT-DETR
SAMPLE = (
    "yolov8n-dcnv4-backbone-seg.yaml",
    "yolo11n-dcnv4-neck-pose.yaml",
    "yolo26n-dcnv4-full-obb.yaml",
    "yolo26n-dcnv4-backbone-cls.yaml",
    "yolov5n-dcnv4-backbone.yaml",
    "yolov8n-rtdetr-dcnv4-backbone.yaml",
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # checkpoints of all models and scales are too much for a disk


@pytest.mark.parametrize("name", SAMPLE)
def test_trains_validates_and_predicts(name: str, folder: Path):
    _run(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models()) - set(SAMPLE)))
def test_trains_validates_and_predicts_at_every_scale(name: str, folder: Path):
    _run(name, folder)


def test_attention_of_yolo26_stays():
    plain("yolo26n.yaml")
    model = YOLO("yolo26n-dcnv4-neck.yaml").model
    last = model.model[22]
    assert [type(part).__name__ for part in last.m[0]] == ["Bottleneck_DCNv4", "PSABlock"]


def test_first_block_of_the_smallest_scale_keeps_its_16_channels():
    first = YOLO("yolov8n-dcnv4-full.yaml").model.model[2]
    assert first.c == 16
    assert [(m.cv2.dcn.channels, m.cv2.dcn.core.group) for m in first.m] == [(16, 1)]
