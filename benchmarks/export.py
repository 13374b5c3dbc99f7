"""How fast are exported models in ONNX Runtime and OpenVINO on a CPU, beside the plain YOLO?

Exports each model, checks the outputs against PyTorch, and times them turn by turn. The fastest of the rounds counts:
other work on the machine only ever adds. `python docs/scripts/measurements.py`
puts the figures into the README:

    python benchmarks/export.py imgsz=320,640 threads=1 rounds=30 out=docs/results/2026-11-21-cpu-export.json
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from report import save, table

PLACES = ("backbone", "neck", "full", "conv")


@dataclass
class Settings:
    """What the command line may change."""

    models: str = ",".join(f"yolov8n{place}.yaml" for place in ("", *(f"-dcnv4-{p}" for p in PLACES)))
    imgsz: str = "320,640"
    threads: int = 1
    rounds: int = 30
    out: str = "latency.json"


def parse_settings(words: list[str]) -> Settings:
    settings = Settings()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in asdict(settings):
            raise SystemExit(f"unknown argument {word!r}; known: {', '.join(f'{k}=' for k in asdict(settings))}")
        setattr(settings, key, type(getattr(settings, key))(value))
    return settings


def versions() -> dict[str, str]:
    """Return the versions of what exports and runs, and what else the machine had to do."""
    found = {"cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"}
    for package in ("ultralytics", "onnx", "onnxruntime", "onnxslim", "openvino", "yolo_dcnv4"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def runtimes(name: str, imgsz: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Export a model and return, per runtime, a call that runs it once."""
    import numpy as np
    import torch
    from ultralytics import YOLO

    x = torch.rand(1, 3, imgsz, imgsz)
    torch.manual_seed(0)
    yolo = YOLO(name)
    for parameter_name, parameter in yolo.model.named_parameters():
        # at the start nothing is displaced, and what is in the cache depends on it
        if parameter_name.endswith("offset_mask.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    exported = yolo.export(format="onnx", imgsz=imgsz, verbose=False)
    model = yolo.model.float().eval().fuse(verbose=False)

    def run_torch() -> np.ndarray:
        with torch.inference_mode():
            return model(x)[0].numpy()

    calls: dict[str, Callable[[], Any]] = {"PyTorch": run_torch}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    calls["ONNX Runtime"] = lambda: session.run(None, {"images": x.numpy()})[0]
    try:
        import openvino
    except ImportError:
        pass
    else:
        hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(exported, "CPU", hints)
        calls["OpenVINO"] = lambda: compiled([x.numpy()])[0]
    expected = run_torch()
    for runtime, call in calls.items():
        error = float(np.abs(call() - expected).max())
        if error > 1:
            raise SystemExit(f"{name} in {runtime} is off by {error:.2f} pixels: nothing to time")
    return calls


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Return a row with the latency in milliseconds per size, model and runtime."""
    import torch

    torch.set_num_threads(settings.threads)
    calls: dict[tuple[int, str, str], Callable[[], Any]] = {}
    for imgsz in map(int, settings.imgsz.split(",")):
        for name in settings.models.split(","):
            for runtime, call in runtimes(name, imgsz, settings.threads).items():
                calls[imgsz, name, runtime] = call
    times: dict[tuple[int, str, str], list[float]] = {key: [] for key in calls}
    for number in range(settings.rounds + 2):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                times[key].append((time.perf_counter() - start) * 1e3)
    return [
        {
            "imgsz": imgsz,
            "model": name,
            "runtime": runtime,
            "fastest": round(min(values), 2),
            "median": round(statistics.median(values), 2),
        }
        for (imgsz, name, runtime), values in times.items()
    ]


def main() -> int:
    settings = parse_settings(sys.argv[1:])
    out = Path(settings.out).resolve()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        # exports of a model without a checkpoint land in the working directory
        os.chdir(folder)
        try:
            rows = measure(settings)
        finally:
            os.chdir(before)
    method = "float32, batch 1, rounds taken in turns, milliseconds"
    save(out, rows, settings=asdict(settings), versions=versions(), method=method)
    print(table(rows, ("imgsz", "model", "runtime", "fastest", "median")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
