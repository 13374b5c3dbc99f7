from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from yolo_dcnv4 import DCNv4
from yolo_dcnv4.modules import projection
from yolo_dcnv4.modules.projection import convolve, numbers, project


def test_calls_the_layer_on_a_cpu():
    layer, x = nn.Linear(8, 5), torch.randn(2, 3, 4, 8)
    assert torch.equal(project(layer, x), layer(x))


@pytest.mark.parametrize("bias", [False, True])
def test_without_the_call(bias):
    layer, x = nn.Linear(8, 5, bias=bias), torch.randn(2, 3, 4, 8)
    # as nn.DataParallel copies a module
    replica = layer._replicate_for_data_parallel()
    replica.weight = layer.weight.clone()
    if bias:
        replica.bias = layer.bias.clone()
    else:
        replica._parameters["bias"] = None
    for module in (layer, replica):
        assert torch.equal(F.linear(x, *numbers(module)), layer(x))
        convolved = convolve(module, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(convolved, layer(x))


@pytest.fixture
def parsed(monkeypatch):
    """The variable that torch before 2.13 parses in every product, as `ultralytics.YOLO` sets it."""
    monkeypatch.setattr(projection, "PARSES_EACH_TIME", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _kernels(call):
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return {event.key for event in profile.key_averages()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 24), (2, 5, 7, 16), (1, 80, 80, 32), (3, 4, 1, 20)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_is_the_product(dtype, shape, bias, parsed):
    layer = nn.Linear(shape[-1], 40, bias=bias, device="cuda", dtype=dtype)
    x = torch.randn(shape, device="cuda").to(dtype)
    with torch.no_grad():
        out = project(layer, x)
        expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert out.shape == expected.shape and out.dtype == dtype
    assert (out - expected).norm() < (2e-3 if dtype == torch.float16 else 1e-2) * expected.norm()


@pytest.mark.gpu
def test_hooks_run(parsed):
    """FLOP counters look on through hooks."""
    layer, x = nn.Linear(16, 16, device="cuda", dtype=torch.float16), torch.randn(1, 4, 4, 16, device="cuda").half()
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        project(layer, x)
        assert seen == [(1, 4, 4, 16)]
        handle.remove()
        project(layer, x)
    assert len(seen) == 1


@pytest.mark.gpu
def test_convolves_where_products_parse(parsed, monkeypatch):
    layer, x = nn.Linear(16, 16, device="cuda", dtype=torch.float16), torch.randn(1, 4, 4, 16, device="cuda").half()
    assert "aten::conv2d" in _kernels(lambda: project(layer, x))
    assert "aten::conv2d" not in _kernels(lambda: project(layer.float(), x.float()))
    layer.half()
    with monkeypatch.context() as newer:
        newer.setattr(projection, "PARSES_EACH_TIME", False)
        assert "aten::conv2d" not in _kernels(lambda: project(layer, x))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert "aten::conv2d" not in _kernels(lambda: project(layer, x))


def test_newer_versions_parse_once():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert projection.PARSES_EACH_TIME == (version < (2, 13))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_half_precision_layer(memory_format, fused):
    torch.manual_seed(0)
    layer = DCNv4(32, group=2).cuda()
    nn.init.normal_(layer.offset_mask.weight, std=0.05)
    x = torch.randn(2, 32, 11, 13, device="cuda").to(memory_format=memory_format)
    with torch.no_grad():
        expected = layer(x)
        layer.half()
        if fused:
            layer.fuse_dcnv4()
        out = layer(x.half())
    assert out.is_contiguous(memory_format=memory_format)
    assert (out - expected).norm() < 5e-3 * expected.norm()
