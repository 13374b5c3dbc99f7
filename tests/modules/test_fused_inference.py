"""The short way through a fused layer: when it is taken, and that it changes nothing."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from yolo_dcnv4.modules import DCNv4, DCNv4Conv, dcnv4


def _layer(**options) -> DCNv4:
    torch.manual_seed(0)
    layer = DCNv4(32, group=2, **options).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    layer.fuse_dcnv4()
    return layer


def _taken(layer: DCNv4) -> bool:
    return layer.infer(torch.randn(1, 32, 4, 4)) is not None


def _the_long_way(module: nn.Module, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the module does where a hook waits for a call of one of its parts."""
    calls = []
    with part.register_forward_hook(lambda *arguments: calls.append(1)):
        out = module(x)
    assert len(calls) == 1
    return out


def _ignore(*arguments) -> None:
    pass


def _replace(layer: DCNv4, name: str) -> contextlib.AbstractContextManager:
    """Put a module in another's place whose class may do something of its own."""
    module = getattr(layer, name)
    module.__class__ = type("Adapted", (type(module),), {})
    return contextlib.nullcontext()


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 9, 8), (1, 32, 1, 1), (3, 32, 1, 5), (0, 32, 4, 4)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"output_bias": False}, {"kernel_size": 5, "pad": 2, "out_channels": 7}], ids=str
)
def test_changes_nothing(options, shape, memory_format, convolution, monkeypatch):
    layer, x = _layer(**options), torch.randn(shape).to(memory_format=memory_format)
    with torch.no_grad():
        expected = _the_long_way(layer, layer.core, x)
        monkeypatch.setattr(dcnv4, "parses", lambda x: convolution and x.numel() > 0)
        monkeypatch.setattr(dcnv4.DCNv4, "_forward_nhwc", None)
        out = layer(x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(
    "prevent",
    [
        lambda layer: torch.enable_grad(),
        lambda layer: layer.core.register_forward_hook(_ignore),
        lambda layer: layer.packed_proj.register_forward_pre_hook(_ignore),
        lambda layer: layer.output_proj.register_forward_hook(_ignore),
        lambda layer: register_module_forward_hook(_ignore),
        lambda layer: _replace(layer, "core"),
        lambda layer: _replace(layer, "output_proj"),
    ],
    ids=[
        "gradients",
        "hook on core",
        "hook on packed_proj",
        "hook on output_proj",
        "hook on all",
        "another core",
        "another output_proj",
    ],
)
def test_taken_where_nobody_looks(prevent):
    layer = _layer()
    with torch.no_grad():
        assert _taken(layer)
        with prevent(layer):
            assert not _taken(layer)


@pytest.mark.parametrize(
    "options",
    [{"center_feature_scale": True}, {"without_pointwise": True}, {"stride": 2}, {"dw_kernel_size": 3}],
    ids=str,
)
def test_not_taken_by_other_layers(options):
    layer = _layer(**options)
    with torch.no_grad():
        assert not _taken(layer)
        layer(torch.randn(1, 32, 6, 6))


def test_not_taken_before_fusing():
    with torch.no_grad():
        assert not _taken(DCNv4(32, group=2))


def test_checks_its_input():
    with torch.no_grad(), pytest.raises(ValueError, match=r"32 channels .* got shape \(1, 16, 4, 4\)"):
        _layer()(torch.randn(1, 16, 4, 4))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_fused_convolution_passes_the_layers_call(memory_format, monkeypatch):
    torch.manual_seed(0)
    convolution = DCNv4Conv(32, 48).eval()
    nn.init.normal_(convolution.dcn.offset_mask.weight, std=0.1)
    convolution.fuse_dcnv4()
    convolution.dcn.fuse_dcnv4()
    x = torch.randn(2, 32, 9, 8).to(memory_format=memory_format)
    with torch.inference_mode():
        expected = _the_long_way(convolution, convolution.dcn, x)
        monkeypatch.setattr(DCNv4, "forward", None)
        out = convolution(x)
    torch.testing.assert_close(out, expected)
    assert out.is_contiguous(memory_format=memory_format)
