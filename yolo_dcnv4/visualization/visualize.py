"""Draws where the DCNv4 layers of a model sample on a picture: a file a layer, and an overview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from yolo_dcnv4.devices import find_device
from yolo_dcnv4.loading import image_size, load_yolo
from yolo_dcnv4.markdown import markdown_table
from yolo_dcnv4.visualization.figures import save_layer_figure, save_overview
from yolo_dcnv4.visualization.layers import LayerSampling, choose_layers, record_sampling
from yolo_dcnv4.visualization.letterbox import Letterbox

DETECTED_POINTS = 3

Points = Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class LayerPicture:
    """A layer's picture, and what it shows.

    Attributes:
        layer: Where the layer samples.
        mean_offset: Mean length of its offsets, in pixels of the picture.
        file: The PNG.
    """

    layer: LayerSampling
    mean_offset: float
    file: Path


def visualize(
    model: str | Path,
    source: str | Path,
    layer: int | str | Sequence[int | str] | None = None,
    points: Points | None = None,
    group: int | None = None,
    imgsz: int | Sequence[int] = 640,
    device: str | int | None = None,
    out: str | Path = "visualize",
    verbose: bool = True,
) -> list[LayerPicture]:
    """Draw over a picture where DCNv4 layers sample for some of its points, and how long their offsets are.

    Args:
        model: A checkpoint or model YAML with DCNv4 blocks.
        source: A picture.
        layer: Index of a layer of the YAML, path of a module, or a list of these; `None` for all DCNv4 layers.
        points: Points of the picture, x1, y1, x2, y2, ... or pairs, in its pixels; `None` for the centres of the
            three surest detections, or the picture's centre where nothing is detected.
        group: The group whose samples are drawn; `None` for all.
        imgsz: Size of the network's input in pixels: a side, or (height, width).
        device: `"cpu"`, `"cuda"` or the index of a CUDA device; `None` chooses.
        out: Folder for `overview.png` and a PNG per layer, named by its path in the model.
        verbose: Print a table of the layers.

    Returns:
        One entry per layer, in the model's order.

    Raises:
        ValueError: There is no such layer or group, or a point lies outside the picture.
        FileNotFoundError: The model or the picture does not exist.
        RuntimeError: The model cannot be built.
    """
    size = image_size(imgsz)
    target = find_device(device)
    pixels = _read(source)
    yolo = load_yolo(str(model))
    net = yolo.model.to(target).float().eval()
    paths = choose_layers(net, layer)
    box = _letterbox(yolo, (pixels.shape[0], pixels.shape[1]), size)
    chosen = None if points is None else _pairs(points, box.picture)
    tensor = torch.from_numpy(np.ascontiguousarray(box.apply(pixels)[..., ::-1].transpose(2, 0, 1)))
    layers = record_sampling(net, tensor[None].to(target).float() / 255, paths)
    if group is not None:
        layers = [_of_group(sampled, group) for sampled in layers]
    if chosen is None:
        chosen = _detected(yolo, pixels, size, target) or [((box.picture[1] - 1) / 2, (box.picture[0] - 1) / 2)]

    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    shown = np.ascontiguousarray(pixels[..., ::-1])
    pictures = []
    for sampled in layers:
        file = folder / f"{sampled.path}.png"
        save_layer_figure(file, shown, box, sampled, chosen)
        mean = float(sampled.mean_offset_lengths.mean()) * box.length_in_picture(sampled.map_size)
        pictures.append(LayerPicture(sampled, mean, file))
    save_overview(folder / "overview.png", shown, box, layers, chosen)
    if verbose:
        print(_table(pictures), end="")
        print("points: " + ", ".join(f"({x:.0f}, {y:.0f})" for x, y in chosen))
        print(f"pictures: {folder}")
    return pictures


def _read(source: str | Path) -> np.ndarray:
    """Return a picture (H, W, 3) in BGR."""
    file = Path(source).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"source={source}: no such file; it must be one picture")
    # not cv2.imread, which cannot open every path on Windows
    pixels = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError(f"source={source} is no picture that OpenCV can read")
    return pixels


def _letterbox(yolo: Any, picture: tuple[int, int], size: Sequence[int]) -> Letterbox:
    stride = max(int(yolo.model.stride.max()), 32)
    # ultralytics rounds the size up to whole strides, too
    height, width = (-(-side // stride) * stride for side in size)
    if type(yolo).__name__ == "RTDETR":
        return Letterbox.stretch(picture, (height, width))
    return Letterbox.fit(picture, (height, width), stride)


def _pairs(points: Points, picture: tuple[int, int]) -> list[tuple[float, float]]:
    try:
        flat = np.asarray(points, dtype=float).flatten()
    except (TypeError, ValueError) as error:
        raise ValueError(f"points must be pairs of numbers x, y, got {points!r}") from error
    if not flat.size or flat.size % 2:
        raise ValueError(f"points must be pairs x, y, got {points!r}")
    height, width = picture
    pairs = [(float(x), float(y)) for x, y in flat.reshape(-1, 2)]
    for x, y in pairs:
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            raise ValueError(f"point ({x:g}, {y:g}) lies outside the picture of {width} x {height} pixels")
    return pairs


def _of_group(layer: LayerSampling, group: int) -> LayerSampling:
    if not 0 <= group < layer.groups:
        raise ValueError(f"group={group}: {layer.path} has the groups 0 to {layer.groups - 1}")
    return layer.of_group(group)


def _detected(yolo: Any, pixels: np.ndarray, size: Sequence[int], device: torch.device) -> list[tuple[float, float]]:
    """Return the centres of the surest detections; none for a model that finds no boxes."""
    (result,) = yolo.predict(pixels, imgsz=list(size), device=str(device), verbose=False)
    if result.boxes is None:
        return []
    best = result.boxes.conf.argsort(descending=True)[:DETECTED_POINTS]
    return [(float(x), float(y)) for x, y in result.boxes.xywh[best, :2]]


def _table(pictures: Sequence[LayerPicture]) -> str:
    header = ("layer", "map", "groups", "mean offset, px", "outside, %", "picture")
    rows = [
        (
            shown.layer.path,
            "x".join(map(str, shown.layer.map_size)),
            str(shown.layer.groups),
            f"{shown.mean_offset:.2f}",
            f"{100 * shown.layer.outside:.1f}",
            shown.file.name,
        )
        for shown in pictures
    ]
    return markdown_table(header, rows)
