from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn
from ultralytics import YOLO

import yolo_dcnv4.modules  # noqa: F401  registers the blocks
from yolo_dcnv4.locate import data_folder
from yolo_dcnv4.modules import DCNv4

REPLACED = {
    "backbone": dict.fromkeys((4, 6, 8), "C2f_DCNv4"),
    "neck": dict.fromkeys((12, 15, 18, 21), "C2f_DCNv4"),
    "full": dict.fromkeys((2, 4, 6, 8, 12, 15, 18, 21), "C2f_DCNv4"),
    "conv": dict.fromkeys((3, 5, 7), "DCNv4Conv"),
}


def build(name: str) -> nn.Module:
    return YOLO(name).model


@dataclass(frozen=True)
class Outline:
    strides: list[float]
    types: dict[int, str]
    shapes: list[dict[str, tuple[int, ...]]]


@functools.cache
def outline(name: str) -> Outline:
    model = build(name)
    return Outline(
        strides=model.stride.tolist(),
        types={index: type(layer).__name__ for index, layer in enumerate(model.model)},
        shapes=[{name: tuple(t.shape) for name, t in layer.state_dict().items()} for layer in model.model],
    )


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_every_shipped_yaml_is_tested_here():
    assert {path.name for path in data_folder("model_yamls").glob("*.yaml")} == {
        f"yolov8-dcnv4-{variant}.yaml" for variant in REPLACED
    }


@pytest.mark.parametrize("variant", REPLACED)
def test_scales_are_written_out(variant: str):
    model = yaml.safe_load((data_folder("model_yamls") / f"yolov8-dcnv4-{variant}.yaml").read_text(encoding="utf-8"))
    assert list(model["scales"]) == list("nsmlx")


@pytest.mark.parametrize("scale", "nsmlx")
@pytest.mark.parametrize("variant", REPLACED)
def test_differs_from_the_plain_model_only_where_named(
    variant: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # bare names are found from anywhere
    plain, model = outline(f"yolov8{scale}.yaml"), outline(f"yolov8{scale}-dcnv4-{variant}.yaml")
    replaced = REPLACED[variant]

    assert model.strides == plain.strides == [8, 16, 32]
    assert model.types == plain.types | replaced
    for index, (ours, theirs) in enumerate(zip(model.shapes, plain.shapes, strict=True)):
        if replaced.get(index) == "C2f_DCNv4":
            assert any(".cv2.dcn." in name for name in ours)
            ours = {name: shape for name, shape in ours.items() if not (name[0] == "m" and ".cv2." in name)}
            theirs = {name: shape for name, shape in theirs.items() if not (name[0] == "m" and ".cv2." in name)}
        if replaced.get(index) == "DCNv4Conv":
            assert ours["dcn.output_proj.weight"][0] == theirs["conv.weight"][0]
        else:
            assert ours == theirs, f"layer {index}"


@pytest.mark.parametrize("variant", REPLACED)
def test_trains_forward_and_backward(variant: str):
    torch.manual_seed(0)
    model = build(f"yolov8n-dcnv4-{variant}.yaml").train()
    outputs = tensors_in(model(torch.randn(2, 3, 64, 64)))
    assert outputs and all(tensor.isfinite().all() for tensor in outputs)
    sum(tensor.square().mean() for tensor in outputs).backward()
    layers = [module for module in model.modules() if isinstance(module, DCNv4)]
    # a DCNv4Conv is one layer, a C2f_DCNv4 one per bottleneck
    assert len(layers) == sum(len(getattr(model.model[index], "m", (1,))) for index in REPLACED[variant])
    for layer in layers:
        for linear in (layer.value_proj, layer.offset_mask, layer.output_proj):
            assert linear.weight.grad.isfinite().all()
            assert linear.weight.grad.any()


def test_first_block_of_the_smallest_scale_keeps_its_16_channels():
    first = build("yolov8n-dcnv4-full.yaml").model[2]
    assert first.c == 16
    assert [(m.cv2.dcn.channels, m.cv2.dcn.core.group) for m in first.m] == [(16, 1)]
