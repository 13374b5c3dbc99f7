from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from yolo_dcnv4.visualization.figures import seen_box
from yolo_dcnv4.visualization.layers import LayerSampling, choose_layers, record_sampling

BACKBONE, CONV = "yolov8n-dcnv4-backbone.yaml", "yolov8n-dcnv4-conv.yaml"
LAYERS = [f"model.{index}.m.{block}.cv2.dcn" for index, block in ((4, 0), (4, 1), (6, 0), (6, 1), (8, 0))]


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    return YOLO(BACKBONE).model.eval()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, LAYERS),
        (4, LAYERS[:2]),
        ("6", LAYERS[2:4]),
        ([8, "model.4.m.1"], [LAYERS[1], LAYERS[4]]),
        (LAYERS[3], [LAYERS[3]]),
    ],
    ids=str,
)
def test_choice_of_layers(chosen, expected: list[str], backbone: torch.nn.Module):
    assert choose_layers(backbone, chosen) == expected


@pytest.mark.parametrize("chosen", [5, "model.4.m.2", "model.4.m.0.cv", [4, 99]], ids=str)
def test_layer_that_is_not_there(chosen, backbone: torch.nn.Module):
    with pytest.raises(ValueError, match=r"layer=.* holds no DCNv4 layer; there are model\.4\.m\.0\.cv2\.dcn, "):
        choose_layers(backbone, chosen)


def test_untrained_layers_sample_the_regular_grid(backbone: torch.nn.Module):
    layers = record_sampling(backbone, torch.rand(1, 3, 64, 96), LAYERS)
    assert [layer.path for layer in layers] == LAYERS
    assert [layer.map_size for layer in layers] == [(8, 12), (8, 12), (4, 6), (4, 6), (2, 3)]
    assert [layer.groups for layer in layers] == [2, 2, 4, 4, 8]
    for layer in layers:
        rows, columns = np.indices(layer.out_size)
        for k, (i, j) in enumerate((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            assert np.array_equal(layer.x[..., k], np.repeat(columns[..., None] + i, layer.groups, 2))
            assert np.array_equal(layer.y[..., k], np.repeat(rows[..., None] + j, layer.groups, 2))
        assert layer.weights == pytest.approx(1 / 9)
        assert not layer.mean_offset_lengths.any()


def test_fused_model_samples_where_it_did_before():
    torch.manual_seed(0)
    net, picture = YOLO(BACKBONE).model.eval(), torch.rand(1, 3, 64, 96)
    for path in LAYERS:
        torch.nn.init.normal_(net.get_submodule(path).offset_mask.bias)
    before = record_sampling(net, picture, LAYERS)
    net.fuse(verbose=False)
    for layer, fused in zip(before, record_sampling(net, picture, LAYERS), strict=True):
        assert layer.mean_offset_lengths.max() > 0.1
        for name in ("x", "y", "dx", "dy", "weights"):
            assert getattr(fused, name) == pytest.approx(getattr(layer, name), abs=1e-3)


def test_hooks_are_taken_back(backbone: torch.nn.Module):
    record_sampling(backbone, torch.rand(1, 3, 64, 64), LAYERS)
    assert not any(module._forward_pre_hooks for module in backbone.modules())


def test_strided_layer_samples_the_larger_map():
    (layer,) = record_sampling(YOLO(CONV).model.eval(), torch.rand(1, 3, 64, 96), ["model.5.dcn"])
    assert (layer.map_size, layer.out_size) == ((8, 12), (4, 6))
    # the window's centre
    assert np.array_equal(layer.x[:, :, 0, 4], np.tile(2 * np.arange(6), (4, 1)))
    assert np.array_equal(layer.y[:, :, 0, 4], np.tile(2 * np.arange(4), (6, 1)).T)


def sampling(x: list[float], y: list[float], **others: list[float]) -> LayerSampling:
    """Points of one output pixel and one group on a map of 10 x 20."""

    def array(values: list[float]) -> np.ndarray:
        return np.array(values, dtype=float).reshape(1, 1, 1, -1)

    zeros = [0.0] * len(x)
    parts = {name: array(others.get(name, zeros)) for name in ("dx", "dy", "weights")}
    return LayerSampling("layer", (10, 20), array(x), array(y), **parts)


def test_what_an_output_pixel_sees_are_the_pixels_that_bilinear_sampling_reads():
    # x reads columns 3 to 7, y rows 2 to 3
    assert seen_box(sampling([3.2, 6.9], [2.0, 2.5]), 0, 0) == (2.5, 1.5, 7.5, 3.5)
    # on the centres of pixels nothing beyond them is read
    assert seen_box(sampling([3.0, 6.0], [2.0, 2.0]), 0, 0) == (2.5, 1.5, 6.5, 2.5)
    # what is off the map is not seen
    assert seen_box(sampling([-5.0, 30.0], [8.7, 12.0]), 0, 0) == (-0.5, 7.5, 19.5, 9.5)


def test_statistics():
    layer = sampling([0.0, -1.0, 19.9, 20.0], [0.0, 5.0, 9.9, 5.0], dx=[3, 0, 0, 6], dy=[4, 0, 0, 8])
    assert layer.outside == 0.5
    assert layer.mean_offset_lengths == pytest.approx(np.array([[(5 + 10) / 4]]))


def test_constant_offsets_are_recorded_as_they_are(backbone: torch.nn.Module):
    linear = backbone.get_submodule(LAYERS[2]).offset_mask
    records = linear.bias.detach()[: 3 * 4 * 9].view(4, 27)
    kept = linear.bias.detach().clone()
    try:
        records[:, 0:18:2], records[:, 1:18:2] = 2.0, -1.0
        layer = record_sampling(backbone, torch.rand(1, 3, 64, 96), LAYERS[2:3])[0]
    finally:
        linear.bias.detach().copy_(kept)
    assert (layer.dx == 2).all() and (layer.dy == -1).all()
    assert layer.x[1, 3, 0, 4] == 3 + 2 and layer.y[1, 3, 0, 4] == 1 - 1
    assert layer.mean_offset_lengths == pytest.approx(math.sqrt(5))
    assert layer.of_group(3).groups == 1 and (layer.of_group(3).dx == 2).all()
