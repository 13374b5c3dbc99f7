from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from ultralytics import YOLO
from ultralytics.engine.results import Results

from yolo_dcnv4.cli import main
from yolo_dcnv4.visualization import figures, visualize
from yolo_dcnv4.visualization.layers import record_sampling
from yolo_dcnv4.visualization.letterbox import Letterbox

BACKBONE = "yolov8n-dcnv4-backbone.yaml"
LAYER = "model.6.m.0.cv2.dcn"
DX, DY = 2.0, -1.0


@pytest.fixture(scope="module")
def shifted() -> torch.nn.Module:
    """A model whose layer 6 moves each point two pixels of its map to the right and one up."""
    net = YOLO(BACKBONE).model.eval()
    core = net.get_submodule(LAYER).core
    records = net.get_submodule(LAYER).offset_mask.bias.detach()[: 27 * core.group].view(core.group, 27)
    records[:, 0:18:2], records[:, 1:18:2] = DX, DY
    return net


@pytest.fixture(scope="module")
def checkpoint(shifted: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "shifted.pt"
    torch.save({"model": shifted, "train_args": {}}, path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "with spaces é.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)).save(path)
    return path


# a picture of the input's size, one of twice that, and one that is padded
@pytest.mark.parametrize(
    ("size", "imgsz", "scale"),
    [((64, 96), (64, 96), 1), ((128, 192), (64, 96), 2), ((60, 64), (96, 96), 64 / 96)],
    ids=["as large", "twice as large", "smaller, padded"],
)
def test_constant_offset_shifts_every_drawn_point_by_that_many_strides(
    size: tuple[int, int], imgsz: tuple[int, int], scale: float, shifted: torch.nn.Module
):
    box = Letterbox.fit(size, imgsz, 32)
    tensor = torch.rand(1, 3, *box.size)
    axis, moved_axis = Figure().subplots(1, 2)
    points = [(10.0, 20.0), (50.0, 33.0)]
    (regular,) = record_sampling(YOLO(BACKBONE).model.eval(), tensor, [LAYER])
    (moved,) = record_sampling(shifted, tensor, [LAYER])
    norm = figures._weight_scale(regular, box, points)
    figures._draw_samples(axis, regular, box, points, norm)
    figures._draw_samples(moved_axis, moved, box, points, norm)
    for index, (x, y) in enumerate(points):
        drawn, drawn_moved = (each.collections[2 * index + 1].get_offsets().data for each in (axis, moved_axis))
        assert len(drawn) == 4 * 9
        assert drawn_moved - drawn == pytest.approx(np.tile((16 * scale * DX, 16 * scale * DY), (36, 1)))
        # the rings stay where they are
        rings = moved_axis.collections[2 * index].get_offsets().data
        assert rings == pytest.approx(drawn)
        # and lie around the point: the window's centre is the pixel of the map in which it is
        assert np.abs(drawn.mean(0) - (x, y)).max() <= 8 * scale
        assert np.ptp(drawn, axis=0) == pytest.approx((32 * scale, 32 * scale))


def test_offset_map_covers_the_picture_and_its_padding(shifted: torch.nn.Module):
    box = Letterbox.fit((60, 64), (96, 96), 32)
    assert box.top == 3 and box.size == (96, 96)
    (layer,) = record_sampling(shifted, torch.rand(1, 3, 96, 96), [LAYER])
    axis = Figure().subplots()
    heat = figures._draw_offsets(axis, layer, box)
    assert heat.get_array().data == pytest.approx(np.full((6, 6), math.sqrt(5) * 16 / 1.5))
    assert heat.get_extent() == pytest.approx([-0.5, 63.5, 61.5, -2.5])


def test_writes_a_picture_per_layer_and_an_overview(checkpoint: Path, picture: Path, tmp_path: Path):
    out = tmp_path / "deep" / "pictures"
    pictures = visualize(checkpoint, picture, layer=[4, 6], imgsz=96, device="cpu", out=out, verbose=False)
    paths = [f"model.{index}.m.{block}.cv2.dcn" for index in (4, 6) for block in (0, 1)]
    assert [shown.layer.path for shown in pictures] == paths
    assert {file.name for file in out.iterdir()} == {"overview.png", *(f"{path}.png" for path in paths)}
    # 160 pixels of the picture are 96 of the input
    means = [0, 0, math.sqrt(5) * 16 * 160 / 96, 0]
    assert [shown.mean_offset for shown in pictures] == pytest.approx(means, abs=1e-5)
    sides = []
    for shown in pictures:
        drawn = cv2.imread(str(shown.file))
        # something is drawn over the picture: the regular window here and the shifted one there differ
        assert drawn.shape[1] > drawn.shape[0] > 200
        sides.append(drawn)
    assert not np.array_equal(sides[0], sides[2])


def test_points_are_those_of_the_surest_detections(
    checkpoint: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    corners = [[10, 10, 30, 20], [40, 40, 60, 50], [0, 0, 8, 8], [100, 60, 120, 90]]
    boxes = torch.tensor([[*box, conf, 0] for box, conf in zip(corners, (0.3, 0.9, 0.1, 0.6), strict=True)])
    result = Results(np.zeros((100, 160, 3), np.uint8), path="", names={0: "thing"}, boxes=boxes)
    monkeypatch.setattr(YOLO, "predict", lambda *_, **__: [result])
    words = [f"model={checkpoint}", f"source={picture}", "layer=8", "imgsz=64", "device=cpu", f"out={tmp_path}"]
    assert main(["visualize", *words]) == 0
    shown = capsys.readouterr().out
    assert "points: (50, 45), (110, 75), (20, 15)\n" in shown
    assert "| model.8.m.0.cv2.dcn |" in shown and "0.00" in shown


def test_without_detections_the_centre_is_shown(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    visualize(checkpoint, picture, layer=8, imgsz=64, device="cpu", out=tmp_path)
    assert "points: (80, 50)\n" in capsys.readouterr().out


def test_one_group_alone(checkpoint: Path, picture: Path, tmp_path: Path):
    words = [f"model={checkpoint}", f"source={picture}", "layer=6", "group=2", "points=5,6,100,50", "imgsz=64"]
    assert main(["visualize", *words, "device=cpu", f"out={tmp_path}"]) == 0
    (shown, _) = visualize(checkpoint, picture, 6, [[5, 6]], 2, 64, "cpu", tmp_path, verbose=False)
    assert shown.layer.groups == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source={picture}", "layer=5"], "layer=5 holds no DCNv4 layer; there are model.4.m.0.cv2.dcn"),
        (["source={picture}", "group=2", "layer=4"], "group=2: model.4.m.0.cv2.dcn has the groups 0 to 1"),
        (["source={picture}", "points=5,200"], "point (5, 200) lies outside the picture of 160 x 100 pixels"),
        (["source={picture}", "points=5,6,7"], "points must be pairs x, y, got (5, 6, 7)"),
        (["source={picture}", "points=a,b"], "points must be"),
        (["source=nowhere.jpg"], "source=nowhere.jpg: no such file"),
        (["source={checkpoint}"], "is no picture that OpenCV can read"),
        ([], "missing source="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told(
    words: list[str], message: str, checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [word.format(picture=picture, checkpoint=checkpoint) for word in words]
    assert main(["visualize", f"model={checkpoint}", *words, "imgsz=64", "device=cpu", f"out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_model_without_dcnv4(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["visualize", "model=yolov8n.yaml", f"source={picture}", f"out={tmp_path}", "device=cpu"]) == 2
    assert "the model holds no DCNv4 layer" in capsys.readouterr().err
