"""DCNv4Conv in the place of ultralytics' Conv."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from ultralytics.nn.modules.conv import Conv

from yolo_dcnv4.modules import DCNv4, DCNv4Conv
from yolo_dcnv4.modules.dcnv4 import default_groups


@pytest.mark.parametrize(("c1", "c2"), [(16, 16), (16, 48), (24, 7), (3, 32), (1, 1)])
@pytest.mark.parametrize(
    ("k", "s", "p", "d"),
    [(1, 1, None, 1), (3, 1, None, 1), (3, 2, None, 1), (5, 2, None, 1), (3, 1, None, 2), (3, 2, 0, 1), (4, 2, 1, 1)],
)
def test_shapes_of_conv(c1, c2, k, s, p, d):
    x = torch.randn(2, c1, 13, 16)
    ours, theirs = DCNv4Conv(c1, c2, k, s, p, None, d).eval(), Conv(c1, c2, k, s, p, 1, d).eval()
    assert ours(x).shape == theirs(x).shape


def test_groups():
    assert DCNv4Conv(48, 32).dcn.core.group == default_groups(48) == 3
    assert DCNv4Conv(48, 32, g=4).dcn.core.group == 4
    assert DCNv4Conv(48, 32, 3, 1, None, 6).dcn.core.group == 6
    with pytest.raises(ValueError, match=r"group.*48.*5"):
        DCNv4Conv(48, 32, g=5)


def test_activation():
    assert DCNv4Conv(8, 8).act is Conv.default_act
    assert isinstance(DCNv4Conv(8, 8, act=False).act, nn.Identity)
    relu = nn.ReLU()
    assert DCNv4Conv(8, 8, act=relu).act is relu
    x = torch.randn(2, 8, 6, 6)
    linear = DCNv4Conv(8, 8, act=False)
    rectified = DCNv4Conv(8, 8, act=nn.ReLU())
    rectified.load_state_dict(linear.state_dict())
    torch.testing.assert_close(rectified.eval()(x), linear.eval()(x).relu())


def test_activation_set_in_a_yaml(monkeypatch):
    """parse_model sets Conv.default_act from the YAML's `activation`."""
    monkeypatch.setattr(Conv, "default_act", nn.LeakyReLU())
    assert isinstance(DCNv4Conv(8, 8).act, nn.LeakyReLU)


def test_is_no_conv():
    """BaseModel.fuse looks for a Conv2d in every Conv."""
    module = DCNv4Conv(8, 8)
    assert not isinstance(module, Conv)
    assert isinstance(module.dcn, DCNv4)
    assert module.dcn.output_proj.bias is None


def test_layer_norm_activation_by_hand():
    module = DCNv4Conv(16, 24, 3, 2).eval()
    with torch.no_grad():
        module.bn.running_mean.normal_()
        module.bn.running_var.uniform_(0.5, 2)
        module.bn.weight.normal_()
        module.bn.bias.normal_()
    x = torch.randn(2, 16, 9, 9)
    bn = module.bn
    column = (slice(None), None, None)
    out = module.dcn(x)
    out = (out - bn.running_mean[column]) / (bn.running_var[column] + bn.eps).sqrt() * bn.weight[column] + bn.bias[
        column
    ]
    torch.testing.assert_close(module(x), out * torch.sigmoid(out), rtol=1e-4, atol=1e-5)


def test_output_is_alive_at_the_start():
    """A block without shortcut must pass something on before the first update."""
    out = DCNv4Conv(16, 16)(torch.randn(2, 16, 12, 12))
    assert out.std() > 0.1


@pytest.mark.parametrize("s", [1, 2])
def test_fuse_folds_the_normalisation(s):
    torch.manual_seed(0)
    block = DCNv4Conv(8, 12, 3, s).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    block(torch.randn(4, 8, 6, 6, dtype=torch.float64))  # running statistics of its own
    block.eval()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        for _ in range(2):
            block.fuse_dcnv4()
            torch.testing.assert_close(block(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    assert not any(p.requires_grad for p in block.dcn.output_proj.parameters())


def test_fused_block_is_copied_and_saved_whole():
    block = DCNv4Conv(8, 12).eval()
    x = torch.randn(2, 8, 7, 6)
    with torch.no_grad():
        block.fuse_dcnv4()
        expected = block(x)
        nn.init.zeros_(block.dcn.output_proj.weight)
        copied = copy.deepcopy(block)
        nn.init.xavier_uniform_(block.dcn.output_proj.weight)
        saved = io.BytesIO()
        torch.save(block, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        # each computes with its own weights
        torch.testing.assert_close(loaded(x), block(x))
        assert not torch.equal(copied(x), block(x))
        assert not torch.equal(copied(x), expected)
