from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.modules import C2f
from ultralytics.utils import LOGGER

from tests.task_data import write_task_data
from yolo_dcnv4.registry import register_module, unregister


class OwnC2f(C2f):
    """Somebody's block with a tensor that C2f has not."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = nn.Conv2d(1, 1, 1)


@pytest.fixture
def log(hook, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda message, *args: lines.append(str(message)))
    return lines


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("Starting fresh")]


def transferred(lines: list[str]) -> tuple[int, int]:
    (line,) = (line for line in lines if line.startswith("Transferred"))
    number, total = map(int, re.search(r"(\d+)/(\d+)", line).groups())
    return number, total


def model(hook, name: str, **changes) -> nn.Module:
    return hook.DetectionModel(hook.yaml_model_load(name) | changes, verbose=False)


def test_training_from_plain_weights(hook, log: list[str], tmp_path: Path):
    """`pretrained=` takes over every tensor that fits, and names the layers of the others."""
    torch.manual_seed(0)
    plain = YOLO("yolov8n.yaml")
    torch.save({"model": plain.model}, tmp_path / "plain.pt")
    log.clear()
    options = {
        "model": "yolov8n-dcnv4-backbone.yaml",
        "pretrained": str(tmp_path / "plain.pt"),
        "data": str(write_task_data(tmp_path / "data", "detect")),
        "project": str(tmp_path),
        "device": "cpu",
        "workers": 0,
    }
    trainer = DetectionTrainer(overrides=options)
    trainer.setup_model()
    theirs, ours = plain.model.state_dict(), trainer.model.state_dict()
    # the data set has two classes, the weights have 80
    fits = {name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape}
    assert all(torch.equal(ours[name], theirs[name]) for name in fits)
    number, total = transferred(log)
    assert (number, total) == (len(fits), len(ours)) and number > 0.8 * total
    (line,) = said(log)
    fresh = ours.keys() - fits
    assert line.startswith(f"Starting fresh: {len(fresh)}/{len(ours)} items, in layers 4 C2f_DCNv4 (")
    assert {name.split(".")[1] for name in fresh} == {"4", "6", "8", "22"} == set(re.findall(r"(\d+) [A-Z]", line))
    assert all(".cv2.dcn." in name for name in fresh if not name.startswith("model.22."))
    counted = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+) of (\d+)\)", line)]
    assert sum(n for n, _ in counted) == len(fresh)
    assert [n for _, n in counted] == [sum(name.startswith(f"model.{i}.") for name in ours) for i in (4, 6, 8, 22)]


def test_the_plain_command_says_both(python: Callable[..., str], tmp_path: Path):
    torch.save({"model": YOLO("yolov8n.yaml").model}, tmp_path / "plain.pt")
    data = write_task_data(tmp_path / "data", "detect")
    words = [f"data={data}", "epochs=1", "imgsz=64", "device=cpu", "workers=0", "plots=False", f"project={tmp_path}"]
    command = ("-c", "import sys; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()")
    model = ["model=yolov8n-dcnv4-backbone.yaml", "pretrained=plain.pt"]
    out = python(*command, "train", *model, *words, cwd=tmp_path)
    assert re.search(r"Transferred \d+/\d+ items from pretrained weights", out)
    assert re.search(r"Starting fresh: \d+/\d+ items, in layers 4 C2f_DCNv4 \(\d+ of \d+\), 6 C2f_DCNv4 ", out)


def test_fresh_tensors_are_as_they_were(hook, log: list[str]):
    source, target = model(hook, "yolov8n.yaml"), model(hook, "yolov8n-dcnv4-conv.yaml")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    target.load(source)
    assert "in layers 3 DCNv4Conv (" in said(log)[0]
    for layer in (3, 5, 7):
        assert any(f" {layer} DCNv4Conv (" in part for part in said(log))
    dcn = [name for name in before if ".dcn." in name]
    assert dcn and all(torch.equal(before[name], target.state_dict()[name]) for name in dcn)


def test_what_was_fresh_stays_fresh_in_the_model_of_the_trainer(hook, log: list[str]):
    """The command loads the weights into a model, and the trainer that model into its own."""
    first, second = (model(hook, "yolov8n-dcnv4-backbone.yaml") for _ in range(2))
    first.load(model(hook, "yolov8n.yaml"), verbose=False)
    second.load(first)
    first.load(model(hook, "yolov8n-dcnv4-backbone.yaml"))
    second.load(first)
    (line,) = said(log)
    layers = r"4 C2f_DCNv4 \(10 of 44\), 6 C2f_DCNv4 \(10 of 44\), 8 C2f_DCNv4 \(5 of 28\)"
    assert re.fullmatch(rf"Starting fresh: 25/\d+ items, in layers {layers}", line)


def test_weights_of_the_same_model_leave_nothing_fresh(hook, log: list[str]):
    target = model(hook, "yolov8n-dcnv4-backbone.yaml")
    target.load(model(hook, "yolov8n-dcnv4-backbone.yaml"))
    number, total = transferred(log)
    assert number == total and not said(log)


def test_models_without_registered_modules_load_as_before(hook, log: list[str], monkeypatch: pytest.MonkeyPatch):
    target, source = model(hook, "yolov8n.yaml"), model(hook, "yolov8s.yaml")
    target.load(source)
    with_hook = log.copy()
    log.clear()
    unregister()
    target.load(source)
    assert with_hook == log and not said(log)


@pytest.mark.parametrize("wrap", [lambda source: {"model": source}, lambda source: {"ema": source, "model": source}])
def test_checkpoints(hook, log: list[str], wrap: Callable):
    model(hook, "yolov8n-dcnv4-backbone.yaml").load(wrap(model(hook, "yolov8n.yaml")))
    assert len(said(log)) == 1 and "22 Detect" not in said(log)[0]


def test_silent_where_ultralytics_is(hook, log: list[str]):
    target, source = model(hook, "yolov8n-dcnv4-backbone.yaml"), model(hook, "yolov8n.yaml")
    target.load(source, False)
    target.load(source, verbose=False)
    assert not log


def test_tensors_that_ultralytics_fills_in_part_are_not_fresh(hook, log: list[str]):
    """A picture of one channel: newer releases sum the filters of the first convolution."""
    target = hook.DetectionModel(hook.yaml_model_load("yolov8n-dcnv4-backbone.yaml"), ch=1, verbose=False)
    before = target.model[0].conv.weight.clone()
    target.load(model(hook, "yolov8n.yaml"))
    filled = not torch.equal(before, target.model[0].conv.weight)
    assert (" 0 Conv (" in said(log)[0]) != filled


def test_modules_of_others_are_named_too(hook, log: list[str]):
    register_module(OwnC2f, like="C2f")
    config = hook.yaml_model_load("yolov8n.yaml")
    config["backbone"][4][2] = "OwnC2f"
    hook.DetectionModel(config, verbose=False).load(model(hook, "yolov8n.yaml"))
    (line,) = said(log)
    assert re.fullmatch(r"Starting fresh: 2/\d+ items, in layers 4 OwnC2f \(2 of \d+\)", line)


def test_tensors_outside_of_the_layers_are_named(hook, log: list[str]):
    target = model(hook, "yolov8n-dcnv4-conv.yaml")
    target.register_buffer("scale", torch.ones(1))
    target.load(model(hook, "yolov8n.yaml"))
    assert re.search(r"in layers scale, 3 DCNv4Conv \(", said(log)[0])


def test_weights_that_are_no_model_keep_the_error_of_ultralytics(hook, log: list[str]):
    target, errors = model(hook, "yolov8n-dcnv4-backbone.yaml"), []
    for _ in range(2):
        with pytest.raises(AttributeError) as error:
            target.load({"model": 3})
        errors.append((type(error.value), str(error.value)))
        unregister()
    assert errors[0] == errors[1]
