"""What does DCNv4 cost a whole YOLO? Inference and training of yolov8 and its DCNv4 variants on this GPU.

    python benchmarks/model.py --json docs/results/model.json --plot docs/pictures/model.png

Inference in float16 at batch 1 and 16, fused, as PyTorch runs it, as a CUDA graph and compiled; a training step
(forward, loss, backward, optimizer) with AMP at batch 16, deterministic and not, and its peak memory. Milliseconds,
medians.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from report import plot, save, table
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import yolo_dcnv4
from yolo_dcnv4.ops import backend

VARIANTS = {"plain": "yolov8{}.yaml", "backbone": "yolov8{}-dcnv4-backbone.yaml", "neck": "yolov8{}-dcnv4-neck.yaml"}


def milliseconds(function: Callable[[], Any], repetitions: int) -> float:
    """Return the median time between two events around the function, after a warm-up."""
    for _ in range(3):
        function()
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def build(name: str) -> DetectionModel:
    """Return a model with 80 classes and ultralytics' default settings, on the GPU."""
    model = DetectionModel(name, verbose=False).cuda()
    model.args = get_cfg()
    return model


def graphed(function: Callable[[], Any]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of the function."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def inference(model: nn.Module, batch: int, imgsz: int, repetitions: int, compiled: bool) -> dict[str, float]:
    """Return milliseconds of a forward pass in float16, without what does not run here."""
    model = copy.deepcopy(model).eval()
    model.fuse(verbose=False)
    model = model.half().to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, imgsz, imgsz, device="cuda").half().to(memory_format=torch.channels_last)
    with torch.no_grad():
        ways = {"inference": lambda: lambda: model(images), "graph": lambda: graphed(lambda: model(images))}
        if compiled:
            ways["compile"] = lambda: functools.partial(torch.compile(model), images)
        found = {}
        for name, prepare in ways.items():
            try:
                found[f"{name} b{batch}"] = milliseconds(prepare(), repetitions)
            except RuntimeError as error:
                print(f"    {name} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


def training(model: DetectionModel, batch: int, imgsz: int, repetitions: int) -> dict[str, float]:
    """Return milliseconds of an AMP training step, deterministic and not, and its peak memory in GB."""
    model = copy.deepcopy(model).train()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda")
    labels = 8 * batch
    data = {
        "img": torch.rand(batch, 3, imgsz, imgsz, device="cuda"),
        "cls": torch.randint(80, (labels, 1), device="cuda").float(),
        "bboxes": torch.rand(labels, 4, device="cuda") * 0.4 + 0.3,
        "batch_idx": torch.arange(batch, device="cuda").repeat_interleave(8).float(),
    }

    def step() -> None:
        with torch.autocast("cuda"):
            loss = model.loss(data)[0].sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    torch.cuda.reset_peak_memory_stats()
    found = {"training": milliseconds(step, repetitions), "peak GB": torch.cuda.max_memory_allocated() / 1e9}
    torch.use_deterministic_algorithms(True, warn_only=True)
    found["training, deterministic"] = milliseconds(step, repetitions)
    torch.use_deterministic_algorithms(False)
    return found


def draw(target: str, rows: list[dict[str, Any]]) -> None:
    """Draw the times of all models."""
    shown = [key for key in rows[0] if key not in ("model", "peak GB")]
    plot(target, shown, {row["model"]: [row.get(key) for key in shown] for row in rows}, "milliseconds")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--plot", help="PNG to draw")
    parser.add_argument("--scales", default="n,s,m", help="comma-separated (default: %(default)s)")
    parser.add_argument("--imgsz", type=int, default=640, help="pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images of the larger batch (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=20, help="timed runs (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    settings = parser.parse_args(arguments)

    if not torch.cuda.is_available() or backend("cuda").name != "cuda":
        raise SystemExit(f"no compiled CUDA kernels to measure: {backend('cuda').reason}")
    yolo_dcnv4.register()
    torch.backends.cudnn.benchmark = True
    rows: list[dict[str, Any]] = []
    for scale in settings.scales.split(","):
        plain: dict[str, Any] = {}
        for variant, pattern in VARIANTS.items():
            name = pattern.format(scale)
            print(name, file=sys.stderr, flush=True)
            torch.manual_seed(0)
            model = build(name)
            row: dict[str, Any] = {"model": name}
            for batch in (1, settings.batch):
                row |= inference(model, batch, settings.imgsz, settings.repetitions, not settings.no_compile)
            row |= training(model, settings.batch, settings.imgsz, settings.repetitions)
            if variant == "plain":
                plain = row
            else:
                row["times plain"] = {key: row[key] / plain[key] for key in plain if key != "model" and key in row}
            rows.append(row)
            # a run that is cut off keeps what it has measured
            if settings.json:
                save(settings.json, rows, imgsz=settings.imgsz)
            del model
            torch.cuda.empty_cache()
    columns = [key for key in rows[0] if key != "model"]
    print(table(rows, ["model", *columns]))
    print("Times the plain model's:")
    relative = [{"model": row["model"], **row["times plain"]} for row in rows if "times plain" in row]
    print(table(relative, ["model", *columns]))
    if settings.plot:
        draw(settings.plot, rows)


if __name__ == "__main__":
    main()
