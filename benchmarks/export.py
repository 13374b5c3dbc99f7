"""How fast are exported models in ONNX Runtime and OpenVINO on a CPU, beside the plain YOLO?

Exports each model, checks the outputs against PyTorch, and times them turn by turn, so that a machine that slows down
slows all of them down; the median counts:

    python benchmarks/export.py models=yolov8n.yaml,yolov8n-dcnv4-backbone.yaml imgsz=640 threads=2 out=latency.json
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("backbone", "neck", "full", "conv")


@dataclass
class Settings:
    """What the command line may change."""

    models: str = ",".join(f"yolov8n{place}.yaml" for place in ("", *(f"-dcnv4-{p}" for p in PLACES)))
    imgsz: int = 640
    threads: int = 2
    rounds: int = 15
    out: str = "latency.json"


def parse_settings(words: list[str]) -> Settings:
    settings = Settings()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in asdict(settings):
            raise SystemExit(f"unknown argument {word!r}; known: {', '.join(f'{k}=' for k in asdict(settings))}")
        setattr(settings, key, type(getattr(settings, key))(value))
    return settings


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to repeat the run."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    versions = {}
    for package in ("torch", "ultralytics", "onnx", "onnxruntime", "onnxslim", "openvino", "yolo_dcnv4"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **versions,
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def runtimes(name: str, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Export a model and return, per runtime, a call that runs it once."""
    import numpy as np
    import torch
    from ultralytics import YOLO

    x = torch.rand(1, 3, settings.imgsz, settings.imgsz)
    torch.manual_seed(0)
    yolo = YOLO(name)
    for parameter_name, parameter in yolo.model.named_parameters():
        # at the start nothing is displaced, and what is in the cache depends on it
        if parameter_name.endswith("offset_mask.weight"):
            torch.nn.init.normal_(parameter, std=0.05)
    exported = yolo.export(format="onnx", imgsz=settings.imgsz, verbose=False)
    model = yolo.model.float().eval().fuse(verbose=False)

    def run_torch() -> np.ndarray:
        with torch.inference_mode():
            return model(x)[0].numpy()

    calls: dict[str, Callable[[], Any]] = {"PyTorch": run_torch}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    calls["ONNX Runtime"] = lambda: session.run(None, {"images": x.numpy()})[0]
    try:
        import openvino
    except ImportError:
        pass
    else:
        hints = {"INFERENCE_NUM_THREADS": settings.threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(exported, "CPU", hints)
        calls["OpenVINO"] = lambda: compiled([x.numpy()])[0]
    expected = run_torch()
    for runtime, call in calls.items():
        error = float(np.abs(call() - expected).max())
        if error > 1:
            raise SystemExit(f"{name} in {runtime} is off by {error:.2f} pixels: nothing to time")
    return calls


def measure(settings: Settings) -> dict[str, Any]:
    """Return the median latency in milliseconds per model and runtime."""
    import torch

    torch.set_num_threads(settings.threads)
    models = settings.models.split(",")
    calls = {(name, runtime): call for name in models for runtime, call in runtimes(name, settings).items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in range(settings.rounds + 2):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                times[key].append((time.perf_counter() - start) * 1e3)
    return {
        "machine": describe_machine(),
        "settings": asdict(settings),
        "method": "float32, batch 1, interleaved rounds, milliseconds",
        "latency": [
            {
                "model": name,
                "runtime": runtime,
                "median": round(statistics.median(values), 2),
                "fastest": round(min(values), 2),
            }
            for (name, runtime), values in times.items()
        ],
    }


def render(report: dict[str, Any]) -> str:
    """Return the table of median latencies and their ratio to the first model."""
    rows: dict[str, dict[str, float]] = {}
    for entry in report["latency"]:
        rows.setdefault(entry["model"], {})[entry["runtime"]] = entry["median"]
    first = next(iter(rows.values()))
    lines = [f"| model | {' | '.join(first)} |", f"| --- |{' ---: |' * len(first)}"]
    for name, row in rows.items():
        cells = [f"{row[runtime]:.0f} ms ({row[runtime] / first[runtime]:.2f})" for runtime in first]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    settings = parse_settings(sys.argv[1:])
    out = Path(settings.out).resolve()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        # exports of a model without a checkpoint land in the working directory
        os.chdir(folder)
        try:
            report = measure(settings)
        finally:
            os.chdir(before)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
