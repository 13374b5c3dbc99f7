"""The DCNv4 layer: published interface, input forms, formulas, initialisation, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from yolo_dcnv4.modules import DCNv4
from yolo_dcnv4.modules.dcnv4 import default_groups


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Random parameters and statistics: at the published initialisation most of the layer is multiplied by zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
            if name.endswith("bn.weight"):
                parameter.abs_().add_(0.5)
    return module.eval()


def _deform_conv(layer: DCNv4, value: torch.Tensor, offset_mask: torch.Tensor) -> torch.Tensor:
    """The core operator of a square 3x3 layer at offset_scale 1, from torchvision; NHWC in and out."""
    n, out_h, out_w, _ = offset_mask.shape
    core = layer.core
    records = offset_mask[..., : 27 * core.group].reshape(n, out_h, out_w, core.group, 27)
    offset = records[..., :18].reshape(n, out_h, out_w, core.group, 3, 3, 2).permute(0, 3, 5, 4, 6, 1, 2).flip(4)
    mask = records[..., 18:].reshape(n, out_h, out_w, core.group, 3, 3).permute(0, 3, 5, 4, 1, 2)
    out = torchvision.ops.deform_conv2d(
        value.permute(0, 3, 1, 2).contiguous(),
        offset.reshape(n, -1, out_h, out_w),
        value.new_ones(layer.channels, 1, 3, 3),
        stride=core.stride,
        padding=core.pad,
        dilation=core.dilation,
        mask=mask.reshape(n, -1, out_h, out_w),
    )
    return out.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        (
            {},
            {
                "offset_mask.weight": (112, 64),
                "offset_mask.bias": (112,),
                "value_proj.weight": (64, 64),
                "value_proj.bias": (64,),
                "output_proj.weight": (64, 64),
                "output_proj.bias": (64,),
            },
        ),
        (
            {"channels": 48, "kernel_size": 5, "group": 3, "remove_center": True, "dw_kernel_size": 3, "pad": 2},
            {
                "offset_mask_dw.weight": (48, 1, 3, 3),
                "offset_mask_dw.bias": (48,),
                "offset_mask.weight": (216, 48),
                "offset_mask.bias": (216,),
                "value_proj.weight": (48, 48),
                "value_proj.bias": (48,),
                "output_proj.weight": (48, 48),
                "output_proj.bias": (48,),
            },
        ),
        (
            {"channels": 32, "group": 2, "center_feature_scale": True, "output_bias": False},
            {
                "center_feature_scale_proj_weight": (2, 32),
                "center_feature_scale_proj_bias": (2,),
                "offset_mask.weight": (56, 32),
                "offset_mask.bias": (56,),
                "value_proj.weight": (32, 32),
                "value_proj.bias": (32,),
                "output_proj.weight": (32, 32),
            },
        ),
        (
            {"channels": 16, "group": 1, "without_pointwise": True},
            {"offset_mask.weight": (32, 16), "offset_mask.bias": (32,)},
        ),
    ],
    ids=["default", "depthwise", "center-feature-scale", "without-pointwise"],
)
def test_state_dict_as_published(options, shapes):
    layer = DCNv4(**options)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == shapes
    checkpoint = {name: torch.randn(shape) for name, shape in shapes.items()}
    layer.load_state_dict(checkpoint)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, checkpoint[name])
    other = DCNv4(**options)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, layer.channels, 6, 7)
    assert torch.equal(layer(x), other(x))


def test_published_positional_constructor():
    layer = DCNv4(32, 3, 1, 1, 1, 2, 0.5, 3, False, True, True, False)
    core = layer.core
    assert (core.kernel_size, core.stride, core.pad, core.dilation, core.group) == (3, 1, 1, 1, 2)
    assert (core.offset_scale, core.remove_center) == (0.5, True)
    assert layer.offset_mask_dw.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("stride", "pad", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 0, 1), (3, 1, 1), (2, 0, 2)]
)
def test_forward_by_hand(stride, pad, dilation):
    """Projection, offsets of the pixel at the window's centre, torchvision's kernel, projection."""
    layer = _randomise(DCNv4(16, 3, stride, pad, dilation, group=2)).double()
    x = torch.randn(2, 16, 9, 10, dtype=torch.float64)
    nhwc = x.permute(0, 2, 3, 1)
    value = nhwc @ layer.value_proj.weight.T + layer.value_proj.bias
    offset_mask = nhwc @ layer.offset_mask.weight.T + layer.offset_mask.bias
    out_h, out_w = ((size + 2 * pad - 2 * dilation - 1) // stride + 1 for size in (9, 10))
    rows = [min(max(y * stride + dilation - pad, 0), 8) for y in range(out_h)]
    columns = [min(max(c * stride + dilation - pad, 0), 9) for c in range(out_w)]
    offset_mask = offset_mask[:, rows][:, :, columns]
    expected = _deform_conv(layer, value, offset_mask) @ layer.output_proj.weight.T + layer.output_proj.bias
    out = layer(x)
    assert out.shape == (2, 16, out_h, out_w)
    torch.testing.assert_close(out, expected.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


def test_depthwise_convolution_feeds_the_offsets_only():
    layer = _randomise(DCNv4(16, group=2, dw_kernel_size=5)).double()
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    features = F.conv2d(x, layer.offset_mask_dw.weight, layer.offset_mask_dw.bias, padding=2, groups=16)
    offset_mask = F.linear(features.permute(0, 2, 3, 1), layer.offset_mask.weight, layer.offset_mask.bias)
    value = F.linear(x.permute(0, 2, 3, 1), layer.value_proj.weight, layer.value_proj.bias)
    expected = F.linear(_deform_conv(layer, value, offset_mask), layer.output_proj.weight, layer.output_proj.bias)
    torch.testing.assert_close(layer(x), expected.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


def test_center_feature_scale_by_hand():
    """s = sigmoid(out Wc^T + bc) for each group; out * (1 - s) + value * s."""
    layer = _randomise(DCNv4(16, group=2, center_feature_scale=True)).double()
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    nhwc = x.permute(0, 2, 3, 1)
    value = F.linear(nhwc, layer.value_proj.weight, layer.value_proj.bias)
    out = _deform_conv(layer, value, F.linear(nhwc, layer.offset_mask.weight, layer.offset_mask.bias))
    logits = out @ layer.center_feature_scale_proj_weight.T + layer.center_feature_scale_proj_bias
    blended = torch.empty_like(out)
    for channel in range(16):
        s = 1 / (1 + torch.exp(-logits[..., channel // 8]))
        blended[..., channel] = out[..., channel] * (1 - s) + value[..., channel] * s
    expected = F.linear(blended, layer.output_proj.weight, layer.output_proj.bias)
    torch.testing.assert_close(layer(x), expected.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


def test_without_pointwise_by_hand():
    layer = _randomise(DCNv4(16, group=2, without_pointwise=True)).double()
    x = torch.randn(2, 16, 6, 7, dtype=torch.float64)
    nhwc = x.permute(0, 2, 3, 1)
    expected = _deform_conv(layer, nhwc, F.linear(nhwc, layer.offset_mask.weight, layer.offset_mask.bias))
    torch.testing.assert_close(layer(x), expected.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


def test_remove_center_equals_a_zero_weight_there():
    without, full = DCNv4(8, group=1, remove_center=True), DCNv4(8, group=1)
    _randomise(without)
    full.load_state_dict(
        {
            **without.state_dict(),
            "offset_mask.weight": torch.zeros(32, 8),
            "offset_mask.bias": torch.zeros(32),
        }
    )
    outer = [k for k in range(9) if k != 4]
    places = [2 * k + axis for k in outer for axis in (0, 1)] + [18 + k for k in outer]
    with torch.no_grad():
        full.offset_mask.weight[places] = without.offset_mask.weight[:24]
        full.offset_mask.bias[places] = without.offset_mask.bias[:24]
    x = torch.randn(1, 8, 6, 5)
    torch.testing.assert_close(without(x), full(x))


def test_offset_scale_reaches_the_operator():
    layer = _randomise(DCNv4(8, group=1, offset_scale=2.0))
    plain = DCNv4(8, group=1)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, 7, 7)
    assert not torch.allclose(layer(x), plain(x))
    # twice the offsets on a doubled grid is an undoubled grid dilated by 2
    dilated = DCNv4(8, group=1, dilation=2, pad=2)
    dilated.load_state_dict(layer.state_dict())
    with torch.no_grad():
        dilated.offset_mask.weight[:18] *= 2
        dilated.offset_mask.bias[:18] *= 2
    torch.testing.assert_close(layer(x), dilated(x))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dw_kernel_size": 3}, {"center_feature_scale": True}], ids=str)
def test_sequence_equals_map(options):
    layer = _randomise(DCNv4(16, group=2, **options))
    x = torch.randn(2, 16, 6, 8)
    sequence = x.flatten(2).transpose(1, 2)
    out = layer(sequence, shape=(6, 8))
    torch.testing.assert_close(out, layer(x).flatten(2).transpose(1, 2))
    square = torch.randn(2, 49, 16)
    torch.testing.assert_close(layer(square), layer(square, (7, 7)))


def test_memory_format_comes_back():
    layer = _randomise(DCNv4(16, group=2))
    x = torch.randn(2, 16, 6, 7)
    plain = layer(x)
    last = layer(x.to(memory_format=torch.channels_last))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last)
    view = torch.randn(2, 40, 6, 7)[:, 8:24]
    torch.testing.assert_close(layer(view), layer(view.contiguous()))


def test_published_initialisation_returns_the_bias():
    layer = DCNv4(16, group=2)
    assert layer(torch.randn(1, 16, 5, 5)).count_nonzero() == 0
    with torch.no_grad():
        layer.output_proj.bias.copy_(torch.arange(16.0))
    out = layer(torch.randn(1, 16, 5, 5))
    assert torch.equal(out, torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 5, 5))


def test_initialisation_under_its_published_name():
    layer = DCNv4(16, group=2)
    nn.init.ones_(layer.offset_mask.weight)
    layer._reset_parameters()
    assert layer.offset_mask.weight.count_nonzero() == 0


@pytest.mark.parametrize(("kernel", "remove_center"), [(3, False), (5, False), (3, True)])
def test_average_initialisation_is_a_mean_filter(kernel, remove_center):
    layer = DCNv4(16, kernel, pad=kernel // 2, group=2, remove_center=remove_center, init="average").double()
    x = torch.randn(2, 16, 8, 9, dtype=torch.float64)
    value = F.linear(x.permute(0, 2, 3, 1), layer.value_proj.weight, layer.value_proj.bias).permute(0, 3, 1, 2)
    weight = torch.ones(16, 1, kernel, kernel, dtype=torch.float64)
    if remove_center:
        weight[:, :, kernel // 2, kernel // 2] = 0
    mean = F.conv2d(value, weight / weight[0].sum(), padding=kernel // 2, groups=16)
    expected = F.linear(mean.permute(0, 2, 3, 1), layer.output_proj.weight, layer.output_proj.bias)
    torch.testing.assert_close(layer(x), expected.permute(0, 3, 1, 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", ["published", "average"])
def test_every_parameter_learns(init):
    """At either initialisation, after one step every parameter has had a gradient."""
    layer = DCNv4(16, group=2, dw_kernel_size=3, center_feature_scale=True, init=init)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    seen = {name: False for name, _ in layer.named_parameters()}
    x, target = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    for _ in range(4):
        optimiser.zero_grad()
        F.mse_loss(layer(x), target).backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.isfinite().all()
            seen[name] |= bool(parameter.grad.count_nonzero())
        optimiser.step()
    assert all(seen.values()), seen


def test_default_groups_of_every_width():
    for channels in range(1, 1101):
        groups = default_groups(channels)
        width = channels // groups
        assert groups * width == channels
        assert width <= 16
        assert not any(channels % wider == 0 for wider in range(width + 1, 17)), channels
    assert [default_groups(c) for c in (16, 32, 48, 64, 80, 1024)] == [1, 2, 3, 4, 5, 64]


@pytest.mark.parametrize("channels", [1, 7, 8, 12, 17, 20, 24, 97, 192])
def test_group_none_chooses(channels):
    layer = _randomise(DCNv4(channels, group=None))
    assert layer.core.group == default_groups(channels)
    assert layer(torch.randn(1, channels, 4, 5)).shape == (1, channels, 4, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"center_feature_scale": True, "dw_kernel_size": 3}], ids=["plain", "all"])
def test_half_and_autocast(options, dtype):
    layer = _randomise(DCNv4(16, group=2, **options))
    x = torch.randn(1, 16, 6, 7)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        mixed = layer(x)
    assert mixed.dtype == dtype
    mixed.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters() if p.grad is not None)
    half = layer.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    # offsets are rounded too and the samples move: a sanity bound, the operator has its own tolerance
    for out in (mixed, half):
        assert (out.float() - expected).norm() <= (0.02 if dtype == torch.float16 else 0.15) * expected.norm()


def _input(channels: int = 16) -> torch.Tensor:
    return torch.zeros(1, channels, 6, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DCNv4(16, group=3), r"group.*channels = 16.*3"),
        (lambda: DCNv4(16, group=0), r"group.*16.*0"),
        (lambda: DCNv4(16, group=-4), r"group.*16.*-4"),
        (lambda: DCNv4(64, init="zero"), r"init.*'published' or 'average'.*'zero'"),
        (lambda: DCNv4(16, without_pointwise=True, out_channels=32), r"without_pointwise.*16.*out_channels = 32"),
        (lambda: DCNv4(16, 1, pad=0, remove_center=True), r"remove_center.*odd kernel_size above 1.*got 1"),
        (lambda: DCNv4(16, 2, pad=0, remove_center=True), r"remove_center.*odd kernel_size above 1.*got 2"),
        (lambda: DCNv4(16, dw_kernel_size=2), r"dw_kernel_size.*odd.*got 2"),
        (lambda: DCNv4(16, 0)(_input()), r"kernel_size.*at least 1.*0"),
        (lambda: DCNv4(16, stride=0)(_input()), r"stride.*at least 1.*0"),
        (lambda: DCNv4(16)(_input(8)), r"16 channels.*\(1, 8, 6, 7\)"),
        (lambda: DCNv4(16)(_input()[0, 0]), r"\(N, 16, H, W\).*\(N, L, 16\).*\(6, 7\)"),
        (lambda: DCNv4(16)(torch.zeros(1, 49, 8)), r"\(N, L, 16\).*\(1, 49, 8\)"),
        (lambda: DCNv4(16)(torch.zeros(1, 42, 16)), r"L = 42.*square.*shape=\(H, W\)"),
        (lambda: DCNv4(16)(torch.zeros(1, 42, 16), shape=(6, 8)), r"shape \(6, 8\).*42"),
        (lambda: DCNv4(16, 9, pad=0)(_input()), r"6 x 7.*too small"),
        (lambda: DCNv4(16, stride=2, center_feature_scale=True)(_input()), r"center_feature_scale.*\(3, 4\).*\(6, 7\)"),
        (lambda: DCNv4(16, pad=0, center_feature_scale=True)(_input()), r"center_feature_scale.*\(4, 5\).*\(6, 7\)"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_are_padded_to_a_multiple_of_8():
    for group, kernel, remove_center in ((1, 3, False), (3, 3, True), (5, 1, False), (2, 7, False)):
        layer = DCNv4(30, kernel, pad=kernel // 2, group=group, remove_center=remove_center)
        rows = 3 * group * (kernel * kernel - remove_center)
        assert layer.offset_mask.out_features == math.ceil(rows / 8) * 8


MERGEABLE = [{}, {"kernel_size": 5, "pad": 2}, {"dilation": 2, "pad": 2, "remove_center": True}, {"output_bias": False}]
APART = [{"stride": 2}, {"pad": 0}, {"dw_kernel_size": 3}, {"without_pointwise": True}]
MERGED_BY_FUSE_ALONE = [{"center_feature_scale": True}]


def _random(options: dict, dtype: torch.dtype = torch.float64) -> DCNv4:
    torch.manual_seed(0)
    layer = DCNv4(16, group=2, **options).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize("options", MERGEABLE + APART + MERGED_BY_FUSE_ALONE, ids=str)
def test_training_and_inference_compute_the_same(options):
    """One projection while gradients are recorded, two while not: the same numbers."""
    layer, x = _random(options), torch.randn(2, 16, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("options", MERGEABLE, ids=str)
def test_merged_projections_have_the_gradients_of_two(options, monkeypatch):
    layer, x = _random(options), torch.randn(2, 16, 9, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    calls = []
    layer.core.register_forward_hook(lambda core, inputs, out: calls.append(inputs[1] is None))
    merged = torch.autograd.grad(layer(x).square().sum(), wanted)
    monkeypatch.setattr(layer, "_packed", lambda x: None)
    separate = torch.autograd.grad(layer(x).square().sum(), wanted)
    assert calls == [True, False]
    torch.testing.assert_close(merged, separate)


@pytest.mark.parametrize("options", MERGEABLE + APART + MERGED_BY_FUSE_ALONE, ids=str)
def test_fuse_keeps_the_result(options):
    layer, x = _random(options), torch.randn(2, 16, 9, 8, dtype=torch.float64)
    merges = options not in APART
    with torch.no_grad():
        expected = layer(x)
        for _ in range(2):
            layer.fuse_dcnv4()
            torch.testing.assert_close(layer(x), expected)
    assert (layer.packed_proj is not None) == merges
    assert hasattr(layer, "offset_mask") != merges
    assert not merges or not any(p.requires_grad for p in layer.packed_proj.parameters())


def test_fused_layer_lives_on():
    """Copies, pickles and half precision of a fused layer."""
    layer, x = _random({}, torch.float32), torch.randn(1, 16, 6, 6)
    layer.fuse_dcnv4()
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
        torch.testing.assert_close(layer.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.5)


def test_channels_last_copies_nothing():
    layer = _random({}, torch.float32)
    x = torch.randn(2, 16, 9, 8).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.profiler.profile() as profile:
        layer(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::addmm" in names
    assert not names & {"aten::clone", "aten::contiguous"}
