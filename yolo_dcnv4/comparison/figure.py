"""Draws a comparison of models: parameters, GFLOPs, latency, and mAP where training results are there."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yolo_dcnv4.comparison.cost import ModelCost
from yolo_dcnv4.devices import find_device
from yolo_dcnv4.loading import fused_for_inference, input_channels, load_model
from yolo_dcnv4.timing import run_seconds

MAP_COLUMN = "metrics/mAP50-95"
FIRST_COLOR, COLOR = "#8c8c8c", "#1f77b4"
DPI = 110
TURNS = 3
SECONDS = 1.0


def save_comparison_figure(
    file: Path, costs: Sequence[ModelCost], size: Sequence[int], results: Sequence[str | Path | None] | None
) -> None:
    """Write a figure with a bar per model and a panel per measure.

    Latency is the median of one picture in float32, fused as for inference, on the first CUDA device, else the CPU.

    Args:
        file: The picture; its suffix decides the format.
        costs: What the models cost.
        size: (height, width) of the picture in pixels.
        results: A results.csv, or the folder that holds it, per model, `None` where there is none; `None` for those
            that lie beside the checkpoints.

    Raises:
        FileNotFoundError: A file of `results` does not exist.
        ValueError: One holds no mAP.
    """
    names = [cost.model for cost in costs]
    found = (
        [_results_beside(name) for name in names] if results is None else [_results_file(entry) for entry in results]
    )
    maps = [None if entry is None else best_map(entry) for entry in found]
    device = find_device()
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    panels: list[tuple[str, list[float | None], str]] = [
        ("parameters, millions", [cost.parameters / 1e6 for cost in costs], ".2f"),
        (f"GFLOPs at {size[0]} x {size[1]}", [cost.gflops for cost in costs], ".1f"),
        (f"latency, ms ({place})", [*_latencies_ms(names, size, device)], ".1f"),
    ]
    if any(value is not None for value in maps):
        panels.append(("mAP50-95, best epoch", maps, ".3f"))
    figure = Figure(figsize=(2.0 + 2.8 * len(panels), 1.0 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, values, form) in zip(axes, panels, strict=True):
        _draw_bars(axis, title, values, form)
    short = [Path(name).name for name in names]
    axes[0].set_yticks(range(len(names)), short if len(set(short)) == len(short) else names)
    axes[0].invert_yaxis()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def best_map(file: Path) -> float:
    """Return the best mAP50-95 of a training.

    Args:
        file: Its results.csv.

    Raises:
        ValueError: The file holds no such column, or no epoch.
    """
    with file.open(encoding="utf-8", newline="") as stream:
        # older releases pad names and values with spaces
        rows = [{str(key).strip(): value for key, value in row.items()} for row in csv.DictReader(stream)]
    columns = [name for name in (rows[0] if rows else ()) if name.startswith(MAP_COLUMN)]
    if not columns:
        raise ValueError(f"results: {file} holds no {MAP_COLUMN} of any epoch")
    return max(float(row[columns[0]]) for row in rows)


def _draw_bars(axis: Axes, title: str, values: Sequence[float | None], form: str) -> None:
    lengths = [value or 0.0 for value in values]
    bars = axis.barh(range(len(values)), lengths, color=[FIRST_COLOR, *[COLOR] * (len(values) - 1)])
    axis.bar_label(bars, [" -" if value is None else f" {value:{form}}" for value in values], fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.margins(x=0.22)
    axis.set_xticks([])
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _latencies_ms(names: Sequence[str], size: Sequence[int], device: torch.device) -> list[float]:
    nets = [fused_for_inference(load_model(name), device, torch.float32) for name in names]
    times: list[list[float]] = [[] for _ in nets]
    with torch.inference_mode():
        # in turns, so that a machine that slows down slows all
        for _ in range(TURNS):
            for net, collected in zip(nets, times, strict=True):
                picture = torch.rand(1, input_channels(net), *size, device=device)
                collected += run_seconds(partial(net, picture), device, SECONDS / TURNS)
    return [1e3 * median(collected) for collected in times]


def _results_file(entry: str | Path | None) -> Path | None:
    if entry is None:
        return None
    path = Path(entry).expanduser()
    file = path / "results.csv" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"results: {file} does not exist")
    return file


def _results_beside(model: str) -> Path | None:
    file = Path(model).resolve().parents[1] / "results.csv"
    return file if Path(model).suffix == ".pt" and file.is_file() else None
