"""FLOPs: thop's count against a count by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from ultralytics.utils.torch_utils import get_flops

from yolo_dcnv4.modules import DCNv4, DCNv4Conv

thop = pytest.importorskip("thop")


def _count(module: nn.Module, *shape: int) -> float:
    return thop.profile(copy.deepcopy(module), inputs=[torch.randn(*shape)], verbose=False)[0]


@pytest.mark.parametrize(
    ("options", "points", "out_pixels"),
    [
        ({"channels": 16, "group": 2}, 9, 8 * 10),
        ({"channels": 16, "group": 1, "remove_center": True}, 8, 8 * 10),
        ({"channels": 16, "group": 4, "kernel_size": 5, "pad": 2}, 25, 8 * 10),
        ({"channels": 16, "group": 1, "stride": 2}, 9, 4 * 5),
    ],
    ids=str,
)
def test_layer_by_hand(options, points, out_pixels):
    """5*K*C a pixel for the operator, in * out a pixel for each linear layer, in multiply-adds."""
    layer, channels = DCNv4(**options), options["channels"]
    linear = 8 * 10 * channels * channels
    linear += out_pixels * channels * layer.offset_mask.out_features
    linear += out_pixels * channels * channels
    assert _count(layer, 1, channels, 8, 10) == 5 * points * channels * out_pixels + linear


def test_only_the_core_without_projections():
    layer = DCNv4(16, group=2, without_pointwise=True)
    offsets = 8 * 8 * 16 * layer.offset_mask.out_features
    assert _count(layer, 1, 16, 8, 8) - offsets == 5 * 9 * 16 * 64


def test_count_grows_with_the_batch():
    layer = DCNv4(16, group=2)
    assert _count(layer, 3, 16, 8, 8) == 3 * _count(layer, 1, 16, 8, 8)


def test_profiling_leaves_the_module_alone():
    layer = DCNv4(16, group=2)
    thop.profile(layer, inputs=[torch.randn(1, 16, 8, 8)], verbose=False)
    assert not [name for name, _ in layer.named_buffers()]
    assert not any(m._forward_hooks for m in layer.modules())


def test_ultralytics_counts_it():
    """get_flops swallows errors and returns 0: the figure itself is asked for."""
    model = nn.Sequential(DCNv4Conv(3, 16, 3, 2), nn.Identity())
    model.stride = torch.tensor([8.0])
    expected = 2 * _count(model, 1, 3, 64, 64) / 1e9
    assert expected > 0
    assert get_flops(model, 64) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"remove_center": True}], ids=str)
def test_fused_or_not(options):
    layer = DCNv4(16, group=2, **options)
    expected = _count(layer, 1, 16, 8, 8)
    layer.fuse_dcnv4()
    assert _count(layer, 1, 16, 8, 8) == expected
