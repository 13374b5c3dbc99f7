from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import C2f

from yolo_dcnv4.registry import register_module, stride_probe, unregister


class CudaOnlyC2f(C2f):
    """Stands for a module whose kernel exists for CUDA only."""

    def forward(self, x):
        if not x.is_cuda:
            raise NotImplementedError("Not implemented on the CPU")
        return super().forward(x)


class FakeCudaOnlyC2f(C2f):
    """The same where there is no GPU: runs after its model was 'moved'."""

    moved = False

    def forward(self, x):
        if not FakeCudaOnlyC2f.moved:
            raise NotImplementedError("Not implemented on the CPU")
        return super().forward(x)


def config_with(tasks, name: str):
    config = copy.deepcopy(tasks.yaml_model_load("yolov8n.yaml"))
    config["backbone"][4][2] = name
    return config


@pytest.fixture
def cuda(monkeypatch):
    """A pretended CUDA device; returns the moves that models and inputs made."""
    moves = []
    module_to, tensor_to = nn.Module.to, torch.Tensor.to

    def to(self, device):
        moves.append(str(device))
        FakeCudaOnlyC2f.moved = str(device).startswith("cuda")
        return module_to(self, "cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: self if a == ("cuda",) else tensor_to(self, *a, **k))
    yield moves
    FakeCudaOnlyC2f.moved = False


def test_probe_is_repeated_on_cuda(hook, cuda):
    register_module(FakeCudaOnlyC2f)
    stock = hook.DetectionModel("yolov8n.yaml", verbose=False)
    assert cuda == []
    model = hook.DetectionModel(config_with(hook, "FakeCudaOnlyC2f"), verbose=False)
    assert cuda == ["cuda", "cpu"]
    assert torch.equal(model.stride, stock.stride)
    assert [m.training for m in model.modules()] == [m.training for m in stock.modules()]
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert "forward" not in vars(model)
    # what the probe leaves in batch statistics is what one pass leaves
    for (name, ours), theirs in zip(model.named_buffers(), stock.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_failed_pass_leaves_no_trace_in_batch_statistics(cuda):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.BatchNorm2d(3), FakeCudaOnlyC2f(3, 4))
            self.forward(torch.rand(2, 3, 8, 8))

        def forward(self, x):
            return self.model(x)

    Model.__init__ = stride_probe.with_cuda_probe(Model.__init__)
    assert Model().model[0].num_batches_tracked == 1


def test_every_model_class_that_probes_is_covered(hook, cuda):
    register_module(FakeCudaOnlyC2f)
    tasks = [("SegmentationModel", "yolov8n-seg.yaml"), ("PoseModel", "yolov8n-pose.yaml")]
    if hasattr(hook, "SemanticSegmentationModel"):
        tasks.append(("SemanticSegmentationModel", "yolo26n-sem.yaml"))
    for number, (cls, name) in enumerate(tasks, 1):
        config = copy.deepcopy(hook.yaml_model_load(name))
        stock = getattr(hook, cls)(copy.deepcopy(config), verbose=False)
        config["backbone"].insert(1, [-1, 1, "FakeCudaOnlyC2f", [64]])
        for row in config["backbone"] + config["head"]:
            sources = row[0] if isinstance(row[0], list) else [row[0]]
            shifted = [s + (s > 0) for s in sources]
            row[0] = shifted if isinstance(row[0], list) else shifted[0]
        model = getattr(hook, cls)(config, verbose=False)
        assert torch.equal(model.stride, stock.stride), cls
        assert len(cuda) == 2 * number, cls


def test_without_cuda_the_error_says_what_to_do(hook):
    register_module(FakeCudaOnlyC2f)
    with pytest.raises(NotImplementedError, match="Not implemented on the CPU") as error:
        hook.DetectionModel(config_with(hook, "FakeCudaOnlyC2f"), verbose=False)
    assert stride_probe.HELP in str(error.value)


def test_an_error_that_cuda_does_not_cure_stays(hook, cuda):
    class Broken(C2f):
        def forward(self, x):
            raise RuntimeError(f"broken, moved: {FakeCudaOnlyC2f.moved}")

    register_module(Broken)
    with pytest.raises(RuntimeError, match="broken, moved: False") as error:
        hook.DetectionModel(config_with(hook, "Broken"), verbose=False)
    assert str(error.value.__cause__) == "broken, moved: True"
    assert cuda == ["cuda", "cpu"]


def test_a_finished_model_is_left_alone(hook, cuda):
    register_module(FakeCudaOnlyC2f)
    model = hook.DetectionModel(config_with(hook, "FakeCudaOnlyC2f"), verbose=False)
    with pytest.raises(NotImplementedError):
        model(torch.zeros(1, 3, 64, 64))
    assert cuda == ["cuda", "cpu"]


def test_unregistered_models_are_not_wrapped(hook):
    assert hook.DetectionModel.__init__.__wrapped__
    unregister()
    assert not hasattr(hook.DetectionModel.__init__, "__wrapped__")


@pytest.mark.gpu
def test_probe_of_a_cuda_only_module_on_a_gpu(hook):
    register_module(CudaOnlyC2f)
    stock = hook.DetectionModel("yolov8n.yaml", verbose=False)
    model = hook.DetectionModel(config_with(hook, "CudaOnlyC2f"), verbose=False)
    assert torch.equal(model.stride, stock.stride)
    assert {t.device.type for t in (*model.parameters(), *model.buffers(), model.stride)} == {"cpu"}
    assert model.training
    assert model.cuda()(torch.zeros(1, 3, 64, 64, device="cuda"))
