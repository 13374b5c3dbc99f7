from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load

import yolo_dcnv4.modules
from yolo_dcnv4 import bench as module
from yolo_dcnv4.bench import bench, plain_variant
from yolo_dcnv4.cli import main
from yolo_dcnv4.modules import DCNv4Core

BACKBONE, CONV = "yolov8n-dcnv4-backbone.yaml", "yolov8n-dcnv4-conv.yaml"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODEL_SECONDS", 0.01)
    monkeypatch.setattr(module, "LAYER_SECONDS", 0.001)


@pytest.mark.parametrize("name", [BACKBONE, CONV, "yolov8n-dcnv4-full.yaml"])
def test_plain_variant_is_ultralytics_own_model(name: str):
    plain, expected = plain_variant(YOLO(name).model, name), YOLO("yolov8n.yaml").model
    assert {key: value.shape for key, value in plain.state_dict().items()} == {
        key: value.shape for key, value in expected.state_dict().items()
    }


def test_plain_variant_of_a_checkpoint_keeps_classes_and_channels():
    net = type(YOLO(BACKBONE).model)(BACKBONE, ch=1, nc=3, verbose=False)
    plain = plain_variant(net, "best.pt")
    assert next(plain.parameters()).shape[1] == 1
    assert plain.yaml["nc"] == 3
    assert not any(isinstance(part, DCNv4Core) for part in plain.modules())


def test_every_layer_is_measured_against_what_it_replaced():
    report = bench(BACKBONE, imgsz=(64, 96), batch=2, device="cpu", verbose=False)
    assert [(layer.layer, layer.input, layer.groups, layer.plain) for layer in report.layers] == [
        ("model.4.m.0.cv2", (2, 32, 8, 12), 2, "Conv"),
        ("model.4.m.1.cv2", (2, 32, 8, 12), 2, "Conv"),
        ("model.6.m.0.cv2", (2, 64, 4, 6), 4, "Conv"),
        ("model.6.m.1.cv2", (2, 64, 4, 6), 4, "Conv"),
        ("model.8.m.0.cv2", (2, 128, 2, 3), 8, "Conv"),
    ]
    # of the same calls: the operator is a part of its layer
    assert all(0 < layer.operator_ms < 3 * layer.layer_ms for layer in report.layers)
    assert [row.model for row in report.models] == [BACKBONE, f"{BACKBONE} without DCNv4"]
    assert report.setting["batch"] == 2 and report.setting["imgsz"] == "64x96"


def test_blocks_within_blocks_find_their_counterparts(tmp_path: Path):
    description = yaml_model_load("yolo11n.yaml")
    for layer in (*description["backbone"], *description["head"]):
        layer[2] = {"C3k2": "C3k2_DCNv4"}.get(layer[2], layer[2])
    path = tmp_path / "yolo11n-mine.yaml"
    path.write_text(yaml.safe_dump({key: description[key] for key in ("nc", "scales", "backbone", "head")}))
    report = bench(path, imgsz=64, device="cpu", verbose=False)
    assert {"model.2.m.0.cv2", "model.22.m.0.m.1.cv2"} <= {layer.layer for layer in report.layers}
    assert {layer.plain for layer in report.layers} == {"Conv"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls take 4 ms where DCNv4 runs within, else 2 ms, and every tenth call 10 ms."""

    def run_seconds(fn: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
        ran = []
        handle = torch.nn.modules.module.register_module_forward_hook(lambda part, *_: ran.append(type(part)))
        fn()
        handle.remove()
        return [*[0.004 if DCNv4Core in ran else 0.002] * 9, 0.01]

    monkeypatch.setattr(module, "run_seconds", run_seconds)


def test_figures_are_those_of_the_clock(clock: None):
    report = bench(CONV, imgsz=64, batch=4, device="cpu", verbose=False)
    ours, plain = report.models
    assert (ours.median_ms, ours.p10_ms, ours.p90_ms) == pytest.approx((4, 4, 4))
    assert (plain.median_ms, plain.pictures_per_second) == pytest.approx((2, 2000))
    assert report.ratio == pytest.approx(2)
    assert [(layer.layer, layer.layer_ms, layer.plain_ms) for layer in report.layers] == [
        (f"model.{index}", pytest.approx(4), pytest.approx(2)) for index in (3, 5, 7)
    ]


def test_plain_model_of_another_shape_has_no_counterparts(clock: None):
    report = bench(CONV, plain="yolo11n.yaml", imgsz=64, device="cpu", verbose=False)
    assert report.models[1].model == "yolo11n.yaml"
    # both have a Conv there, of another width in the deeper ones
    assert report.layers[0].plain == "Conv" or report.layers[0].plain_ms is None
    assert all((layer.plain is None) == (layer.plain_ms is None) for layer in report.layers)


def test_tables_and_json_tell_the_same(clock: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "deep" / "bench.json"
    words = [f"model={CONV}", "imgsz=64", "device=cpu", f"out={out}"]
    assert main(["bench", *words]) == 0
    report = bench(CONV, imgsz=64, device="cpu", verbose=False)
    assert json.loads(out.read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(report)))
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("|")]
    assert [CONV, "4.000", "4.000", "4.000", "250.0", "2.00"] in rows
    assert ["model.3", "1x32x16x16", "2", "4.000", "4.000", "Conv", "2.000", "2.00"] in rows
    assert f"written to {out}" in shown and "backend" in shown.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"model={BACKBONE}", "batch=0"], "batch must be a positive integer, got 0"),
        ([f"model={BACKBONE}", "half=1", "device=cpu"], "half=1 needs a CUDA device, got device cpu"),
        ([f"model={BACKBONE}", "half=maybe"], "half must be bool, got 'maybe'"),
        ([f"model={BACKBONE}", "device=disc"], "device must be cpu, cuda or the index of a CUDA device, got 'disc'"),
        ([f"model={BACKBONE}", "device=99"], "device=99 is not there"),
        ([f"model={BACKBONE}", "out=a.xml"], "must be one of md, json, got 'xml'"),
        (["model=yolov8n.yaml"], "yolov8n.yaml holds no DCNv4 layer to measure"),
        (["model=nowhere.yaml"], "nowhere.yaml: no such model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


def test_layers_outside_of_blocks_are_measured_alone(monkeypatch: pytest.MonkeyPatch, clock: None):
    # a model of the user's own may hold the bare layer, which stands in nothing's place
    net = YOLO(CONV).model
    plain = YOLO("yolov8n.yaml").model
    net.model[3].dcn.__class__ = type("Mine", (yolo_dcnv4.modules.DCNv4,), {})
    net.model[3].__class__ = type("Wrapper", (yolo_dcnv4.modules.DCNv4Conv,), {})
    pairs = module._layer_pairs(net.eval(), plain.eval(), torch.rand(1, 3, 64, 64))
    assert [(pair.path, pair.plain is None) for pair in pairs] == [
        ("model.3.dcn", True),
        ("model.5", False),
        ("model.7", False),
    ]


@pytest.mark.gpu
def test_runs_in_half_on_a_gpu():
    report = bench(BACKBONE, imgsz=64, batch=2, device=0, half=True, verbose=False)
    assert report.setting["dtype"] == "float16" and report.setting["backend"] == "cuda"
    assert all(layer.operator_ms > 0 for layer in report.layers)
