from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils import ASSETS
from ultralytics.utils.torch_utils import ModelEMA

from yolo_dcnv4.demo_data import write_demo_data
from yolo_dcnv4.modules import Bottleneck_DCNv4, C3k_DCNv4, DCNv4

# yolo11's blocks, with and without C3k inside, in a model of two scales
C3K2_YAML = """\
nc: 3
scales:
  n: [0.50, 0.25, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 2, C3k2_DCNv4, [256, False, 0.25]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 2, C3k2_DCNv4, [256, True]]
head:
  - [[3, 5], 1, Detect, [nc]]
"""
FAMILIES = {
    "C2f_DCNv4": "yolov8n-dcnv4-backbone.yaml",
    "DCNv4Conv": "yolov8n-dcnv4-conv.yaml",
    "C3k2_DCNv4": "yolo11n-dcnv4-tiny.yaml",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data") / "shapes", train=16, val=4, imgsz=64)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    (tmp_path / FAMILIES["C3k2_DCNv4"]).write_text(C3K2_YAML)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = YOLO(FAMILIES[request.param]).model.train()
    # batch statistics, and offsets that are not zero
    for layer in model.modules():
        if isinstance(layer, DCNv4):
            nn.init.normal_(layer.offset_mask.weight, std=0.05)
    model(torch.rand(4, 3, 64, 64))
    return model.eval()


def yolo(*words: str, folder: Path, **environment: str) -> str:
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    run = subprocess.run(
        [shutil.which("yolo", path=search), *words],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert run.returncode == 0, f"yolo {' '.join(words)}\n{run.stdout}"
    return run.stdout


def train_validate_predict_resume(model: str, data: Path, folder: Path) -> None:
    common = ("imgsz=64", "device=cpu", "workers=0", "plots=False", f"project={folder}", "exist_ok=True")
    schedule = ("epochs=2", "batch=8", "save_period=1", "optimizer=AdamW", "lr0=0.001")
    yolo("train", f"model={model}", f"data={data}", *schedule, *common, "name=train", folder=folder)
    weights = folder / "train" / "weights"
    assert epochs_in(folder) == [1, 2]

    # processes of their own, so the checkpoint finds its classes by itself
    assert "all" in yolo("val", f"model={weights / 'best.pt'}", f"data={data}", *common, "name=val", folder=folder)
    words = (f"source={ASSETS / 'bus.jpg'}", "imgsz=64", "device=cpu", f"project={folder}", "name=predict")
    yolo("predict", f"model={weights / 'best.pt'}", *words, folder=folder, ULTRALYTICS_SAFE_LOAD="1")
    assert (folder / "predict" / "bus.jpg").is_file()

    # last.pt as a run that was stopped after its first epoch leaves it
    shutil.copy(weights / "epoch0.pt", weights / "last.pt")
    told = yolo("train", "resume=True", f"model={weights / 'last.pt'}", folder=folder)
    assert "from epoch 2 to 2 total epochs" in told
    assert epochs_in(folder)[-1] == 2
    finished = torch.load(weights / "last.pt", weights_only=False)
    assert finished["epoch"] == -1 and finished["optimizer"] is None


def epochs_in(folder: Path) -> list[int]:
    with (folder / "train" / "results.csv").open(encoding="utf-8") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file, skipinitialspace=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_yolo_command_trains_each_block_family(family: str, data: Path, tmp_path: Path):
    if family == "C3k2_DCNv4":
        (tmp_path / FAMILIES[family]).write_text(C3K2_YAML)
    train_validate_predict_resume(FAMILIES[family], data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["neck", "full"])
def test_plain_yolo_command_trains_the_other_yamls(variant: str, data: Path, tmp_path: Path):
    train_validate_predict_resume(f"yolov8n-dcnv4-{variant}.yaml", data, tmp_path)


def test_tiny_model_holds_both_forms_of_the_block(tmp_path: Path):
    path = tmp_path / FAMILIES["C3k2_DCNv4"]
    path.write_text(C3K2_YAML)
    layers = YOLO(path).model.model
    assert [type(block) for block in layers[3].m] == [Bottleneck_DCNv4]
    assert [type(block) for block in layers[5].m] == [C3k_DCNv4]


def predictions(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        return model(torch.rand(2, 3, 64, 96, generator=generator).to(dtype))[0]


def test_fused_model_predicts_the_same(model: nn.Module):
    expected = predictions(model)
    fused = deepcopy(model).fuse(verbose=False)
    torch.testing.assert_close(predictions(fused), expected, rtol=1e-4, atol=1e-3)
    assert sum(1 for _ in fused.modules()) < sum(1 for _ in model.modules())


def test_half_precision_model_predicts_nearly_the_same(model: nn.Module):
    expected = predictions(model)
    halved = predictions(deepcopy(model).half(), torch.float16)
    assert halved.dtype == torch.float16
    assert (halved.float() - expected).norm() / expected.norm() < 5e-3


def test_deep_copy_predicts_the_same_and_shares_nothing(model: nn.Module):
    expected = predictions(model)
    copy = deepcopy(model)
    torch.testing.assert_close(predictions(copy), expected, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    torch.testing.assert_close(predictions(model), expected, rtol=0, atol=0)


def test_moving_average_follows_the_layer(model: nn.Module):
    before = {name: value.clone() for name, value in model.state_dict().items() if ".dcn." in name}
    assert before
    average = ModelEMA(model, decay=0.5, tau=1e-9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    average.update(model)
    after = average.ema.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value + 0.005)
    assert predictions(average.ema).isfinite().all()
