from __future__ import annotations

from pathlib import Path

import pictures
import pytest
import torch
from PIL import Image
from ultralytics import YOLO

from yolo_dcnv4.demo_data import write_demo_data

NAMES = {"sampling-before-training.png", "sampling-after-training.png"}


def test_pictures_are_drawn_from_what_the_demo_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    demo = tmp_path / "demo"
    write_demo_data(demo / "shapes", train=1, val=3)
    weights = demo / "train" / "weights"
    weights.mkdir(parents=True)
    model = YOLO(pictures.MODEL).model
    model.get_submodule(pictures.LAYER).offset_mask.bias.detach()[0] = 9.0
    torch.save({"model": model, "train_args": {}}, weights / "best.pt")
    monkeypatch.setattr(pictures, "PICTURES", tmp_path / "pictures")
    assert pictures.main([f"demo={demo}"]) == 0
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == NAMES
    # one of 2 x 9 points is moved by 9 pixels of stride 8
    assert capsys.readouterr().out == "before training: mean offset 0.00 px\nafter training: mean offset 4.00 px\n"


def test_committed_pictures_are_small_and_whole():
    files = list(pictures.PICTURES.iterdir())
    assert NAMES <= {file.name for file in files}
    for file in files:
        assert file.stat().st_size <= 200_000
        Image.open(file).verify()


def test_wrong_argument(capsys: pytest.CaptureFixture[str]):
    assert pictures.main(["size=3"]) == 2
    assert "unknown argument 'size=3'" in capsys.readouterr().err
