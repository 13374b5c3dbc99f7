"""Draws where layers sample, over the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from ultralytics.utils.plotting import colors

from yolo_dcnv4.visualization.layers import LayerSampling
from yolo_dcnv4.visualization.letterbox import Letterbox

PANEL_INCHES = 5.0
COLUMNS = 4
DPI = 110
WEIGHTS, OFFSETS = "coolwarm", "magma"


def save_layer_figure(
    file: Path,
    pixels: np.ndarray,
    box: Letterbox,
    layer: LayerSampling,
    points: Sequence[tuple[float, float]],
) -> None:
    """Write a picture with two panels: the sampling points of chosen points, and the mean offset length of all.

    Args:
        file: PNG to write.
        pixels: The picture, (H, W, 3) in RGB.
        box: How it lies in the network's input.
        layer: Where the layer samples.
        points: Points (x, y) of the picture whose samples are drawn.
    """
    height, width = box.picture
    figure = Figure(figsize=(2.35 * PANEL_INCHES, 0.4 + PANEL_INCHES * height / width), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    stride = box.size[1] // layer.map_size[1]
    groups = f"{layer.groups} group{'s' if layer.groups > 1 else ''}"
    figure.suptitle(
        f"{layer.path}: map of {layer.map_size[0]} x {layer.map_size[1]}, stride {stride}, {groups}", fontsize=10
    )
    _show(left, pixels, box)
    scale = _weight_scale(layer, box, points)
    _draw_samples(left, layer, box, points, scale)
    left.set_title("dots: samples of +, rings: without offsets, box: seen", fontsize=9)
    figure.colorbar(ScalarMappable(scale, WEIGHTS), ax=left, label="weight", shrink=0.8)
    _show(right, _grey(pixels), box)
    heat = _draw_offsets(right, layer, box)
    right.set_title("mean offset length", fontsize=9)
    figure.colorbar(heat, ax=right, label="pixels of the picture", shrink=0.8)
    figure.savefig(file)


def save_overview(
    file: Path,
    pixels: np.ndarray,
    box: Letterbox,
    layers: Sequence[LayerSampling],
    points: Sequence[tuple[float, float]],
) -> None:
    """Write a picture with a panel per layer: the mean offset length, and the sampling points of chosen points.

    Args:
        file: PNG to write.
        pixels: The picture, (H, W, 3) in RGB.
        box: How it lies in the network's input.
        layers: Where the layers sample.
        points: Points (x, y) of the picture whose samples are drawn.
    """
    columns = min(COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    height, width = box.picture
    panel = 0.6 * PANEL_INCHES
    size = (columns * 1.2 * panel, rows * (0.3 + panel * height / width))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, layer in zip(axes, layers, strict=False):
        _show(axis, _grey(pixels), box)
        heat = _draw_offsets(axis, layer, box)
        _draw_samples(axis, layer, box, points, _weight_scale(layer, box, points))
        axis.set_title(layer.path, fontsize=8)
        figure.colorbar(heat, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    for axis in axes[len(layers) :]:
        axis.set_axis_off()
    figure.suptitle("mean offset length in pixels of the picture, and the samples of the marked points", fontsize=9)
    figure.savefig(file)


def seen_box(layer: LayerSampling, row: int, column: int) -> tuple[float, float, float, float]:
    """Return what an output pixel sees of the sampled map: (left, top, right, bottom) of the pixels it reads.

    Bilinear sampling reads the pixels around a point; a pixel reaches half a pixel from its centre.

    Args:
        layer: Where the layer samples.
        row: Row of the output pixel.
        column: Its column.
    """
    x, y = layer.x[row, column], layer.y[row, column]
    height, width = layer.map_size
    left, right = np.clip((np.floor(x.min()), np.ceil(x.max())), 0, width - 1)
    top, bottom = np.clip((np.floor(y.min()), np.ceil(y.max())), 0, height - 1)
    return float(left) - 0.5, float(top) - 0.5, float(right) + 0.5, float(bottom) + 0.5


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return a picture without colours, which would mix with those of a heat map."""
    luminance = pixels @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luminance.astype(np.uint8)[..., None], 3, axis=2)


def _show(axis: Axes, pixels: np.ndarray, box: Letterbox) -> None:
    height, width = box.picture
    axis.imshow(pixels)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_offsets(axis: Axes, layer: LayerSampling, box: Letterbox) -> Any:
    rows, columns = layer.out_size
    (left, right), (top, bottom) = box.map_to_picture([-0.5, columns - 0.5], [-0.5, rows - 0.5], layer.out_size)
    lengths = layer.mean_offset_lengths * box.length_in_picture(layer.map_size)
    # offsets that hardly move a point shall not look large
    scale = Normalize(0, max(float(lengths.max()), 1.0))
    return axis.imshow(lengths, OFFSETS, scale, alpha=0.6, extent=(left, right, bottom, top), interpolation="nearest")


def _draw_samples(
    axis: Axes, layer: LayerSampling, box: Letterbox, points: Sequence[tuple[float, float]], scale: Normalize
) -> None:
    for index, point in enumerate(points):
        color = tuple(channel / 255 for channel in colors(index))
        row, column = box.picture_to_map(*point, layer.out_size)
        regular_x, regular_y = layer.x - layer.dx, layer.y - layer.dy
        grid = box.map_to_picture(regular_x[row, column], regular_y[row, column], layer.map_size)
        axis.scatter(*grid, s=6, facecolors="none", edgecolors="white", linewidths=0.5)
        x, y = box.map_to_picture(layer.x[row, column], layer.y[row, column], layer.map_size)
        weights = layer.weights[row, column]
        axis.scatter(x, y, s=16, c=weights, cmap=WEIGHTS, norm=scale, edgecolors="black", linewidths=0.4)
        left, top, right, bottom = seen_box(layer, row, column)
        (x0, x1), (y0, y1) = box.map_to_picture([left, right], [top, bottom], layer.map_size)
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.2))
        axis.plot(*point, marker="+", color=color, markersize=9, markeredgewidth=1.8)


def _weight_scale(layer: LayerSampling, box: Letterbox, points: Sequence[tuple[float, float]]) -> Normalize:
    drawn = [layer.weights[box.picture_to_map(*point, layer.out_size)] for point in points]
    largest = max(float(np.abs(weights).max()) for weights in drawn)
    # weights have no bounds and either sign: zero stands in the middle
    return Normalize(-largest, largest) if largest else Normalize(-1, 1)
