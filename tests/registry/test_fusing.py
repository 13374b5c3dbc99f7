from __future__ import annotations

import copy

import pytest
import torch
from ultralytics.nn.modules import C2f

from yolo_dcnv4.registry import register_module


class FusingC2f(C2f):
    """Counts calls, and notes whether ultralytics had fused its convolutions before."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def fuse_dcnv4(self):
        self.calls.append(hasattr(self.cv1, "bn"))


@pytest.fixture
def model(hook):
    register_module(FusingC2f)
    config = copy.deepcopy(hook.yaml_model_load("yolov8n.yaml"))
    config["backbone"][4][2] = config["backbone"][6][2] = "FusingC2f"
    return hook.DetectionModel(config, verbose=False).eval()


def test_fuse_calls_every_module_that_takes_part(model):
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)[0]
        assert model.fuse(verbose=False) is model
        torch.testing.assert_close(model(x)[0], before, rtol=1e-3, atol=1e-3)
    assert [m.calls for m in model.modules() if isinstance(m, FusingC2f)] == [[False], [False]]


def test_every_fuse_calls_again(model):
    model.fuse(verbose=False)
    model.fuse(verbose=False)
    assert [m.calls for m in model.modules() if isinstance(m, FusingC2f)] == [[False, False]] * 2
