"""What does DCNv4 cost a whole YOLO? Inference and training of yolov8 and its DCNv4 variants on this GPU.

    python benchmarks/model.py --json docs/results/model.json --plot docs/pictures/model.png

Inference in float16 at batch 1 and 16, fused, as PyTorch runs it, as a CUDA graph and compiled; a training step
(forward, loss, backward, optimizer) with AMP at batch 16, deterministic and not, and its peak memory. Milliseconds,
medians. The models of a scale take turns, so that a CPU that is busier for a while slows all of them.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from report import plot, save, table
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

import yolo_dcnv4
from yolo_dcnv4.ops import backend

VARIANTS = {"plain": "yolov8{}.yaml", "backbone": "yolov8{}-dcnv4-backbone.yaml", "neck": "yolov8{}-dcnv4-neck.yaml"}


Step = Callable[[], Any]


def milliseconds(steps: dict[str, Step], repetitions: int) -> dict[str, float]:
    """Return each step's median time between two events around it, all steps called in turns, after a warm-up."""
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(measured) for name, measured in times.items()}


def build(name: str) -> DetectionModel:
    """Return a model with 80 classes and ultralytics' default settings, on the GPU."""
    torch.manual_seed(0)
    model = DetectionModel(name, verbose=False).cuda()
    model.args = get_cfg()
    return model


def graphed(function: Step) -> Step:
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


def inference(model: DetectionModel, batch: int, imgsz: int, compiled: bool) -> dict[str, Step]:
    """Return the ways to run a forward pass in float16, without those that do not work here."""
    model.eval().fuse(verbose=False)
    model = model.half().to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, imgsz, imgsz, device="cuda").half().to(memory_format=torch.channels_last)

    def forward(run: Callable[[Any], Any] = model) -> None:
        # as ultralytics predicts; tensors then do not pass the autograd rule, a Python function
        with torch.inference_mode():
            run(images)

    ways: dict[str, Callable[[], Step]] = {"inference": lambda: forward, "graph": lambda: graphed(forward)}
    if compiled:
        # without dynamic=False the second batch size would be compiled for every one
        ways["compile"] = lambda: functools.partial(forward, torch.compile(model, dynamic=False))
    working = {}
    for name, prepare in ways.items():
        try:
            step = prepare()
            step()
        except RuntimeError as error:
            print(f"    {name} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            working[f"{name} b{batch}"] = step
    return working


def training_step(model: DetectionModel, batch: int, imgsz: int) -> Step:
    """Return an AMP training step."""
    model.train()
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

    return step


def peak_gigabytes(prepare: Callable[[], Step]) -> tuple[Step, float]:
    """Return the step that `prepare` makes, and the memory that it and what it keeps need."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = prepare()
    for _ in range(3):
        step()
    return step, (torch.cuda.max_memory_allocated() - before) / 1e9


def measure_scale(scale: str, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each model of a scale."""
    # past a limit of compiled models in a process, more would silently be run as they are
    torch.compiler.reset()
    names = [pattern.format(scale) for pattern in VARIANTS.values()]
    rows: dict[str, dict[str, Any]] = {name: {"model": name} for name in names}
    forwards: dict[str, dict[str, Step]] = {}
    trainings: dict[str, Step] = {}
    peaks: dict[str, float] = {}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        for batch in (1, settings.batch):
            for way, step in inference(build(name), batch, settings.imgsz, not settings.no_compile).items():
                forwards.setdefault(way, {})[name] = step
        trainings[name], peaks[name] = peak_gigabytes(
            lambda name=name: training_step(build(name), settings.batch, settings.imgsz)
        )

    def enter(way: str, steps: dict[str, Step]) -> None:
        print(f"    {way}", file=sys.stderr, flush=True)
        for name, time in milliseconds(steps, settings.repetitions).items():
            rows[name][way] = time

    for way, steps in forwards.items():
        enter(way, steps)
    enter("training", trainings)
    for name, peak in peaks.items():
        rows[name]["peak GB"] = peak
    torch.use_deterministic_algorithms(True, warn_only=True)
    enter("training, deterministic", trainings)
    torch.use_deterministic_algorithms(False)

    plain, *variants = rows.values()
    for row in variants:
        row["times plain"] = {key: row[key] / plain[key] for key in plain if key != "model" and key in row}
    return list(rows.values())


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
        rows += measure_scale(scale, settings)
        # a run that is cut off keeps what it has measured
        if settings.json:
            save(settings.json, rows, imgsz=settings.imgsz)
        torch.cuda.empty_cache()
    columns = [key for key in rows[0] if key not in ("model", "times plain")]
    print(table(rows, ["model", *columns]))
    print("Times the plain model's:")
    relative = [{"model": row["model"], **row["times plain"]} for row in rows if "times plain" in row]
    print(table(relative, ["model", *columns]))
    if settings.plot:
        draw(settings.plot, rows)


if __name__ == "__main__":
    main()
