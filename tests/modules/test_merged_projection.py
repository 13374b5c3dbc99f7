"""The projection that writes value and offset_mask side by side, and the numbers that it adds for a GPU."""

from __future__ import annotations

import copy
import pickle

import pytest
import thop
import torch
from torch import nn

from yolo_dcnv4.modules import DCNv4, dcnv4
from yolo_dcnv4.modules.merged_projection import MergedProjection, merged
from yolo_dcnv4.ops.packed import padded_row

# C + R of 4 and 8 groups of 16 channels: with added numbers 192 and 384
CHANNELS = [64, 128]


def _layer(channels: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> DCNv4:
    torch.manual_seed(0)
    layer = DCNv4(channels, group=channels // 16).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer.to(device)


def _input(channels: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, channels, 9, 8, dtype=dtype).to(device)


def _pad(layer: DCNv4) -> None:
    layer.packed_proj = MergedProjection((layer.value_proj, layer.offset_mask), pad=True)
    del layer.value_proj, layer.offset_mask


def _width(layer: DCNv4, x: torch.Tensor) -> int:
    return layer.packed_proj(x.permute(0, 2, 3, 1)).shape[-1]


@pytest.mark.parametrize(
    ("rows", "padded"), [(48, 48), (88, 88), (176, 192), (264, 264), (344, 384), (432, 448), (640, 640), (688, 704)]
)
def test_padded_row(rows, padded):
    """A multiple of 64, unless that is much more."""
    assert padded_row(rows) == padded


def test_added_rows_pass_no_gradient_on():
    layers = [nn.Linear(8, 24), nn.Linear(8, 160)]
    weight, bias = merged(layers, pad=True)
    assert weight.shape == (192, 8)
    assert bias.shape == (192,)
    (weight.sum() + bias.sum()).backward()
    for layer in layers:
        assert (layer.weight.grad == 1).all()
        assert (layer.bias.grad == 1).all()


@pytest.mark.parametrize("channels", CHANNELS)
def test_same_result(channels):
    layer, x = _layer(channels), _input(channels)
    with torch.no_grad():
        expected = layer(x)
        _pad(layer)
        assert _width(layer, x) == padded_row(layer.packed_proj.out_features) > layer.packed_proj.out_features
        torch.testing.assert_close(layer(x), expected)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_same_gradients(channels, monkeypatch):
    layer, x = _layer(channels), _input(channels).requires_grad_()
    wanted = [x, *layer.parameters()]
    widths = []
    layer.core.register_forward_hook(lambda core, inputs, out: widths.append(inputs[0].shape[-1]))
    expected = torch.autograd.grad(layer(x).square().sum(), wanted)
    monkeypatch.setattr(dcnv4, "merged", lambda projections, pad: merged(projections, pad=True))
    padded = torch.autograd.grad(layer(x).square().sum(), wanted)
    assert widths[1] == padded_row(widths[0]) > widths[0]
    torch.testing.assert_close(padded, expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_same_count(channels):
    layer, x = _layer(channels, torch.float32), _input(channels, torch.float32)
    with torch.no_grad():
        expected = thop.profile(copy.deepcopy(layer), inputs=[x], verbose=False)[0]
        _pad(layer)
        assert thop.profile(layer, inputs=[x], verbose=False)[0] == expected


@pytest.mark.parametrize("channels", CHANNELS)
def test_as_a_convolution(channels, monkeypatch):
    """A GPU multiplies small maps by a 1 x 1 convolution."""
    layer, x = _layer(channels), _input(channels)
    with torch.no_grad():
        expected = layer(x)
        _pad(layer)
        monkeypatch.setattr(dcnv4, "parses", lambda x: True)
        torch.testing.assert_close(layer(x), expected)


def test_added_rows_are_no_parameters():
    layer = _layer(64)
    expected = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    numbers = sum(p.numel() for p in layer.parameters())
    _pad(layer)
    assert sum(p.numel() for p in layer.parameters()) == numbers
    shapes = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    rows = expected.pop("value_proj.weight")[0] + expected.pop("offset_mask.weight")[0]
    del expected["value_proj.bias"], expected["offset_mask.bias"]
    assert shapes == expected | {"packed_proj.weight": (rows, 64), "packed_proj.bias": (rows,)}


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer,
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: layer.float(),
        lambda layer: copy.deepcopy(layer.half()).double(),
    ],
    ids=["itself", "copy", "pickle", "float32", "half and back"],
)
def test_loaded_parameters_count(change):
    """Whatever has happened to the layer, what is loaded into its parameters is what it multiplies with."""
    layer, other = _layer(64), _layer(64)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    _pad(layer), _pad(other)
    layer = change(layer)
    layer.load_state_dict(other.state_dict())
    dtype = layer.packed_proj.weight.dtype
    assert layer.packed_proj.all_weight.dtype == dtype
    x = _input(64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.to(dtype)), other.to(dtype)(x.to(dtype)))


@pytest.mark.parametrize("channels", CHANNELS)
def test_sampling_points(channels):
    """Found behind C, whatever comes after them."""
    layer = _layer(channels)
    told = []
    layer.core.register_forward_hook(lambda core, inputs, out: told.append(core.sampling_points(*inputs)))
    with torch.no_grad():
        layer(_input(channels))
        _pad(layer)
        layer(_input(channels))
    for ours, expected in zip(*told, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", CHANNELS)
def test_training_in_half_precision(channels, monkeypatch):
    """Under autocast numbers are added; the gradients are those without them."""
    layer, x = _layer(channels, torch.float32, "cuda"), _input(channels, torch.float32, "cuda").requires_grad_()
    wanted = [x, *layer.parameters()]
    widths = []
    layer.core.register_forward_hook(lambda core, inputs, out: widths.append(inputs[0].shape[-1]))

    def gradients():
        with torch.autocast("cuda"):
            out = layer(x)
        return torch.autograd.grad(out.float().square().sum(), wanted)

    padded = gradients()
    monkeypatch.setattr(dcnv4, "merged", lambda projections, pad: merged(projections, pad=False))
    expected = gradients()
    assert widths[0] == padded_row(widths[1]) > widths[1]
    for ours, theirs in zip(padded, expected, strict=True):
        assert (ours - theirs).norm() <= 5e-3 * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_fused_on_a_gpu(channels, dtype):
    layer, x = _layer(channels, torch.float32, "cuda"), _input(channels, torch.float32, "cuda")
    with torch.no_grad():
        expected = layer(x)
        layer.fuse_dcnv4()
        assert _width(layer, x) == padded_row(layer.packed_proj.out_features)
        out = layer.to(dtype)(x.to(dtype)).float()
        assert (out - expected).norm() <= {torch.float32: 1e-4}.get(dtype, 5e-2) * expected.norm()
        on_cpu = layer.float().cpu()(x.cpu())
    assert (on_cpu - expected.cpu()).norm() <= 5e-2 * expected.cpu().norm()
