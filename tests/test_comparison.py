from __future__ import annotations

import csv
import json
import math
import sys
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from ultralytics import YOLO
from ultralytics.nn.modules import Detect
from ultralytics.utils.torch_utils import get_flops

import yolo_dcnv4
from yolo_dcnv4.cli import main
from yolo_dcnv4.comparison import ModelCost, figure
from yolo_dcnv4.locate import data_folder
from yolo_dcnv4.modules import DCNv4Core

PLAIN, BACKBONE, CONV = "yolov8n.yaml", "yolov8n-dcnv4-backbone.yaml", "yolov8n-dcnv4-conv.yaml"
KEYS = ["model", "layers", "parameters", "gradients", "gflops", "parameters_change_pct", "gflops_change_pct"]


def layer_multiply_adds(pixels: int, channels: int, out_channels: int, in_pixels: int | None = None) -> int:
    """Multiply-adds of a DCNv4 layer of 3x3, counted by hand."""
    offset_mask = math.ceil(3 * (channels // 16) * 9 / 8) * 8
    core = 5 * 9 * channels
    value = channels * channels * (pixels if in_pixels is None else in_pixels)
    return value + pixels * (channels * offset_mask + core + channels * out_channels)


def test_plain_model_costs_what_ultralytics_says():
    (cost,) = yolo_dcnv4.compare([PLAIN], verbose=False)
    model = YOLO(PLAIN).model
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.gradients == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.gflops == get_flops(model, 640)
    assert (cost.parameters_change_pct, cost.gflops_change_pct) == (0, 0)


@pytest.mark.skipif(not hasattr(Detect, "legacy"), reason="this release gives YOLOv8 the head of YOLO11")
def test_plain_model_costs_what_ultralytics_publishes():
    (cost,) = yolo_dcnv4.compare([PLAIN], verbose=False)
    assert (cost.parameters, cost.gradients, round(cost.gflops, 1)) == (3_157_200, 3_157_184, 8.9)


def test_operator_in_the_backbone_is_counted_as_by_hand():
    plain, ours = yolo_dcnv4.compare([PLAIN, BACKBONE], verbose=False)
    # (pixels of the map at 640 px, hidden channels, bottlenecks) of layers 4, 6 and 8 at scale n
    blocks = [(80 * 80, 32, 2), (40 * 40, 64, 2), (20 * 20, 128, 1)]
    change = sum(n * (layer_multiply_adds(p, c, c) - 9 * c * c * p) for p, c, n in blocks)
    assert ours.gflops - plain.gflops == pytest.approx(2 * change / 1e9, rel=1e-9)
    assert ours.gflops_change_pct == pytest.approx(100 * 2 * change / 1e9 / plain.gflops, abs=1e-3)


def test_operator_of_stride_2_is_counted_as_by_hand():
    plain, ours = yolo_dcnv4.compare([PLAIN, CONV], verbose=False)
    # (pixels of the output at 640 px, input channels, output channels) of layers 3, 5 and 7 at scale n
    layers = [(80 * 80, 32, 64), (40 * 40, 64, 128), (20 * 20, 128, 256)]
    change = sum(layer_multiply_adds(p, c, out, in_pixels=4 * p) - 9 * c * out * p for p, c, out in layers)
    assert ours.gflops - plain.gflops == pytest.approx(2 * change / 1e9, rel=1e-9)


@pytest.mark.parametrize("name", [BACKBONE, "yolov8n-dcnv4-full.yaml", CONV])
def test_count_equals_a_run_at_full_size(name: str):
    import thop

    (cost,) = yolo_dcnv4.compare([name], imgsz=(192, 320), verbose=False)
    picture = torch.zeros(1, 3, 192, 320)
    multiply_adds = thop.profile(deepcopy(YOLO(name).model), inputs=[picture], verbose=False)[0]
    assert cost.gflops == pytest.approx(2 * multiply_adds / 1e9, rel=1e-9)


def test_checkpoints_and_paths_are_models_too(tmp_path: Path):
    path = tmp_path / "yolov8n-mine.yaml"
    path.write_bytes((data_folder("model_yamls") / "yolov8-dcnv4-neck.yaml").read_bytes())
    checkpoint = tmp_path / "trained.pt"
    torch.save({"model": YOLO("yolov8n-dcnv4-neck.yaml").model}, checkpoint)
    named, from_path, trained = yolo_dcnv4.compare(
        ["yolov8n-dcnv4-neck.yaml", path, str(checkpoint)], imgsz=64, verbose=False
    )
    assert from_path.model == str(path)
    for cost in (from_path, trained):
        assert (cost.layers, cost.parameters, cost.gflops) == (named.layers, named.parameters, named.gflops)


@pytest.fixture(scope="module")
def costs() -> list[ModelCost]:
    return yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, verbose=False)


def test_json_is_a_list_of_objects_with_the_agreed_keys(costs: list[ModelCost], tmp_path: Path):
    out = tmp_path / "deep" / "table.json"
    yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, out=out, verbose=False)
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert rows == [asdict(cost) for cost in costs]


def test_csv_holds_the_same_figures(costs: list[ModelCost], tmp_path: Path):
    out = tmp_path / "table.csv"
    yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, out=out, verbose=False)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [KEYS, KEYS]
    assert rows == [{key: str(value) for key, value in asdict(cost).items()} for cost in costs]


def test_table_is_shown_and_written(costs: list[ModelCost], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "table.txt"
    yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, format="md", out=out)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert out.read_text(encoding="utf-8") == shown
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| model") and "GFLOPs" in lines[0]
    assert lines[2].startswith(f"| {PLAIN} ") and f" {costs[0].parameters:,} " in lines[2]
    assert lines[3].startswith(f"| {BACKBONE} ") and f" {costs[1].parameters_change_pct:+.1f} " in lines[3]


def test_format_without_a_file_goes_to_the_screen(capsys: pytest.CaptureFixture[str]):
    yolo_dcnv4.compare([PLAIN], imgsz=64, format="json")
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == [PLAIN]


def test_a_swallowed_error_is_an_error_with_its_cause(monkeypatch: pytest.MonkeyPatch):
    # fails only while FLOPs are counted: the stride probe has passed by then
    forward = DCNv4Core.forward

    def fail(self, *inputs):
        if hasattr(self, "total_ops"):
            raise ArithmeticError("the operator broke")
        return forward(self, *inputs)

    monkeypatch.setattr(DCNv4Core, "forward", fail)
    with pytest.raises(RuntimeError, match=rf"{BACKBONE}: GFLOPs cannot be counted: .*the operator broke") as caught:
        yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, verbose=False)
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_missing_thop_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "thop", None)
    monkeypatch.setattr("ultralytics.utils.torch_utils.thop", None, raising=False)
    with pytest.raises(RuntimeError, match=rf"{PLAIN}: GFLOPs cannot be counted: .*thop"):
        yolo_dcnv4.compare([PLAIN], imgsz=64, verbose=False)


def test_model_that_cannot_be_built_is_named(tmp_path: Path):
    text = (data_folder("model_yamls") / "yolov8-dcnv4-neck.yaml").read_text(encoding="utf-8")
    model = yaml.safe_load(text.replace("SPPF", "NoSuchModule"))
    path = tmp_path / "yolov8n-broken.yaml"
    path.write_text(yaml.safe_dump(model), encoding="utf-8")
    with pytest.raises(
        RuntimeError, match=r"yolov8n-broken\.yaml: the model cannot be built: KeyError: .*NoSuchModule"
    ):
        yolo_dcnv4.compare([path], verbose=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"models": []}, ValueError, "at least one model"),
        ({"models": PLAIN}, TypeError, "models must be a list of names or paths, got 'yolov8n.yaml'"),
        ({"models": [3]}, TypeError, r"models must be a list of names or paths, got \[3\]"),
        ({"models": ["yolov8n.onnx"]}, ValueError, "models must end in .yaml, .yml, .pt, got 'yolov8n.onnx'"),
        ({"models": ["yolov8n-nowhere.yaml"]}, FileNotFoundError, "yolov8n-nowhere.yaml: no such model"),
        ({"models": [PLAIN], "imgsz": 0}, ValueError, "imgsz must be a positive integer or a pair .*, got 0"),
        ({"models": [PLAIN], "imgsz": (64, 64, 3)}, ValueError, r"imgsz must be .*, got \(64, 64, 3\)"),
        ({"models": [PLAIN], "format": "xml"}, ValueError, "format must be one of md, csv, json, got 'xml'"),
        ({"models": [PLAIN], "out": "table.xls"}, ValueError, "out must end in one of md, csv, json, .*'table.xls'"),
    ],
    ids=["no-model", "string", "number", "suffix", "nowhere", "zero", "triple", "format", "out"],
)
def test_wrong_arguments_are_refused(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        yolo_dcnv4.compare(**arguments, verbose=False)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved; latency takes no time."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, file: (figures.append(self), save(self, file))[1])
    monkeypatch.setattr(figure, "run_seconds", lambda fn, device, seconds: fn() and [0.012])
    return figures


def bars(figure: Figure) -> dict[str, list[float]]:
    return {axis.get_title(): [bar.get_width() for bar in axis.patches] for axis in figure.axes}


def write_results(folder: Path, header: str, *rows: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("\n".join((header, *rows, "")), encoding="utf-8")
    return folder / "results.csv"


def test_figure_shows_the_figures(drawn: list[Figure], costs: list[ModelCost], tmp_path: Path):
    # as older releases write it
    padded = write_results(
        tmp_path / "run", "  epoch,  metrics/mAP50(B),  metrics/mAP50-95(B)", "1, 0.9, 0.25", "2, 1, 0.5"
    )
    file = tmp_path / "deep" / "figure.png"
    yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, verbose=False, plot=file, results=[None, padded.parent])
    assert file.read_bytes().startswith(b"\x89PNG")
    shown = bars(drawn[0])
    assert shown["parameters, millions"] == [cost.parameters / 1e6 for cost in costs]
    assert shown["GFLOPs at 64 x 64"] == [cost.gflops for cost in costs]
    (latency,) = [values for title, values in shown.items() if title.startswith("latency, ms")]
    assert latency == pytest.approx([12, 12])
    assert shown["mAP50-95, best epoch"] == [0, 0.5]
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == [PLAIN, BACKBONE]


def test_figure_finds_the_results_beside_a_checkpoint(drawn: list[Figure], tmp_path: Path):
    checkpoint = tmp_path / "train" / "weights" / "best.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"model": YOLO(BACKBONE).model}, checkpoint)
    yolo_dcnv4.compare([PLAIN, checkpoint], imgsz=64, verbose=False, plot=tmp_path / "without.png")
    write_results(tmp_path / "train", "epoch,metrics/mAP50-95(B)", "1,0.125", "2,0.0625")
    yolo_dcnv4.compare([PLAIN, checkpoint], imgsz=64, verbose=False, plot=tmp_path / "with.png")
    assert "mAP50-95, best epoch" not in bars(drawn[0])
    assert bars(drawn[1])["mAP50-95, best epoch"] == [0, 0.125]


def test_figure_tells_models_of_one_name_apart(drawn: list[Figure], tmp_path: Path):
    paths = [tmp_path / folder / "yolov8n-mine.yaml" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes((data_folder("model_yamls") / "yolov8-dcnv4-neck.yaml").read_bytes())
    yolo_dcnv4.compare(paths, imgsz=64, verbose=False, plot=tmp_path / "figure.png")
    assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == [str(path) for path in paths]


def test_command_draws_a_figure(
    drawn: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    results = write_results(tmp_path, "epoch,metrics/mAP50-95(B)", "1,0.75")
    words = ["compare", f"models={PLAIN},{BACKBONE}", "imgsz=64"]
    assert main([*words, "plot=1", f"results=,{results}"]) == 0
    assert "drawn to compare.png" in capsys.readouterr().out and (tmp_path / "compare.png").is_file()
    assert bars(drawn[0])["mAP50-95, best epoch"] == [0, 0.75]
    assert main([*words, "plot=False"]) == 0
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (["a.csv"], r"results must be a list with an entry for each of the 2 models, got \['a\.csv'\]"),
        ("a.csv", "results must be a list with an entry for each"),
        (["nowhere.csv", None], "results: nowhere.csv does not exist"),
        (["{empty}", None], "holds no metrics/mAP50-95 of any epoch"),
    ],
    ids=["too few", "text", "missing", "empty"],
)
def test_results_that_do_not_fit(results, message: str, drawn: list[Figure], tmp_path: Path):
    empty = write_results(tmp_path, "epoch,metrics/mAP50-95(B)")
    if isinstance(results, list):
        results = [entry and entry.format(empty=empty) for entry in results]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        yolo_dcnv4.compare([PLAIN, BACKBONE], imgsz=64, verbose=False, plot=tmp_path / "x.png", results=results)
    assert not drawn
