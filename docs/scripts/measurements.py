"""Write the tables of measured figures anew, from docs/results: `python docs/scripts/measurements.py [check=1]`.

With check=1 nothing is written, and the exit status is 1 where a table is stale.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from generated import ROOT, markdown, with_parts, write_or_check

RESULTS = ROOT / "docs" / "results"
OPERATOR = RESULTS / "2026-11-28-h200-torch2.11-op.json"
MODEL = RESULTS / "2026-11-28-h200-torch2.11-model.json"
COMPILED = RESULTS / "2026-11-28-h200-torch2.11-compile.json"
LAUNCH = RESULTS / "2026-11-28-h200-torch2.11-launch.json"
CPU = RESULTS / "2026-11-26-cpu-torch2.14.json"
EXPORT = RESULTS / "2026-11-21-cpu-export.json"
TWO_GPUS = RESULTS / "2026-11-21-2xh200-torch2.11-ddp.json"
MODEL_COLUMNS = {
    "inference b1": "inference, batch 1",
    "graph b1": "as a CUDA graph",
    "inference b16": "inference, batch 16",
    "graph b16": "as a CUDA graph",
    "training": "training step",
    "training, deterministic": "deterministic",
    "peak GB": "peak memory, GB",
}
COMPILED_WAYS = {"inference": "run eagerly", "compile": "compiled"}


def microseconds(value: float | None) -> str:
    """Show a time with three digits."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def origin(document: dict[str, Any], path: Path, folder: str = "") -> str:
    """Say where figures come from; `folder` leads from the page to docs."""
    machine = document["machine"]
    hardware = f"{machine['gpu']}, driver {machine['driver']}" if "gpu" in machine else machine["cpu"]
    return (
        f"{hardware}, torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['date']}: [results/{path.name}]({folder}results/{path.name})."
    )


def operator_table() -> str:
    """Return the operator's times next to the published kernels'."""
    document = json.loads(OPERATOR.read_text(encoding="utf-8"))
    found = {(row["map"], row["dtype"], row["pass"]): row for row in document["rows"]}
    header = ["map (N x H x W, G, D)", "float16 floor"]
    for dtype in ("float16", "float32"):
        header += [f"{dtype} forward", "published", "backward", "published", "deterministic"]
    rows = []
    for name in dict.fromkeys(row["map"] for row in document["rows"]):
        cells = [name, microseconds(found[name, "float16", "forward"]["floor"])]
        for dtype in ("float16", "float32"):
            forward, backward = (found[name, dtype, direction] for direction in ("forward", "backward"))
            times = [forward["ours"], forward["published"], backward["ours"], backward["published"]]
            cells += map(microseconds, [*times, backward["ours, deterministic"]])
        rows.append(cells)
    return f"{markdown(header, rows)}\n\n{origin(document, OPERATOR)}"


def means_table() -> str:
    """Return geometric means over the maps."""
    document = json.loads(OPERATOR.read_text(encoding="utf-8"))
    means = document["geometric_means"]
    ratios = [key for key in means[0] if key not in ("dtype", "pass")]
    rows = [
        [f"{mean['dtype']} {mean['pass']}", *("-" if mean[key] is None else f"{mean[key]:.2f}" for key in ratios)]
        for mean in means
    ]
    return f"{markdown(['geometric mean', *ratios], rows)}\n\n{origin(document, OPERATOR)}"


def model_rows(document: dict[str, Any], columns: Sequence[str]) -> list[list[str]]:
    """Return a row of times for each model, in brackets times the plain model's."""
    rows = []
    for row in document["rows"]:
        relative = row.get("times plain", {})
        times = [f"{row[key]:.2f}" + (f" ({relative[key]:.2f})" if relative else "") for key in columns]
        rows.append([f"`{row['model']}`", *times])
    return rows


def model_table() -> str:
    """Return the times of whole models."""
    document = json.loads(MODEL.read_text(encoding="utf-8"))
    rows = model_rows(document, list(MODEL_COLUMNS))
    return f"{markdown(['model', *MODEL_COLUMNS.values()], rows)}\n\n{origin(document, MODEL)}"


def compiled_table() -> str:
    """Return the times of whole models with torch.compile, next to those without it."""
    document = json.loads(COMPILED.read_text(encoding="utf-8"))
    columns = {f"{way} b{batch}": f"{name}, batch {batch}" for batch in (1, 16) for way, name in COMPILED_WAYS.items()}
    rows = model_rows(document, list(columns))
    return f"{markdown(['milliseconds', *columns.values()], rows)}\n\n{origin(document, COMPILED)}"


def launch_table() -> str:
    """Return what calls of the operator cost the CPU, next to a trivial operator's."""
    document = json.loads(LAUNCH.read_text(encoding="utf-8"))
    rows = [
        [
            f"{row['dtype']}, gradients {'recorded' if row['gradients'] == 'recorded' else 'not recorded'}",
            f"{row['trivial']:.1f}",
            *(f"{row[name]:.1f} ({row[f'{name} / trivial']:.2f})" for name in ("dcnv4", "packed")),
        ]
        for row in document["rows"]
    ]
    packed = "on packed features and records, as the layer calls it"
    header = ["microseconds a call", "trivial operator", "`dcnv4`", packed]
    return f"{markdown(header, rows)}\n\n{origin(document, LAUNCH)}"


def cpu_table() -> str:
    """Return the CPU operator's times next to torchvision's and the reference's."""
    document = json.loads(CPU.read_text(encoding="utf-8"))
    keys = ["ours ms", "torchvision ms", "reference ms", "torchvision / ours", "reference / ours"]
    rows = []
    for row in document["rows"]:
        setting = f"{row['map']}, {row['dtype']}, {row['threads']} threads, {row['pass']}"
        rows.append([setting, *("-" if row.get(key) is None else f"{row[key]:.3g}" for key in keys)])
    header = ["milliseconds", *(key.removesuffix(" ms") for key in keys)]
    capability = f"CPU capability {document['capability']}"
    return f"{markdown(header, rows)}\n\n{capability}; {origin(document, CPU)}"


def speed_table() -> str:
    """Return the part of it that the README shows."""
    document = json.loads(MODEL.read_text(encoding="utf-8"))
    columns = ["inference b16", "graph b16", "training", "training, deterministic"]
    rows = [row for row in model_rows(document, columns) if "neck" not in row[0]]
    header = ["milliseconds", *(MODEL_COLUMNS[key] for key in columns)]
    return f"{markdown(header, rows)}\n\n{origin(document, MODEL, 'docs/')}"


def export_table() -> str:
    """Return latencies of exported models, and their ratios to those of the plain one."""
    document = json.loads(EXPORT.read_text(encoding="utf-8"))
    latency: dict[str, dict[tuple[int, str], float]] = {}
    for row in document["rows"]:
        latency.setdefault(row["model"], {})[row["imgsz"], row["runtime"]] = row["fastest"]
    plain = next(iter(latency.values()))
    header = ["milliseconds", *(f"{runtime}, {imgsz} px" for imgsz, runtime in plain)]
    rows = []
    for model, times in latency.items():
        ratios = (f" ({time / plain[column]:.2f})" if times is not plain else "" for column, time in times.items())
        cells = (f"{time:.0f}{ratio}" for time, ratio in zip(times.values(), ratios, strict=True))
        rows.append([f"`{model}`", *cells])
    machine, versions, settings = document["machine"], document["versions"], document["settings"]
    return (
        f"{markdown(header, rows)}\n\n"
        f"{machine['cpu']}, {versions['cores']} cores (load {versions['load']}), "
        f"{settings['threads']} thread, fastest of {settings['rounds']} runs taken in turns; torch {machine['torch']}, "
        f"ONNX Runtime {versions['onnxruntime']}, OpenVINO {versions['openvino']}, commit {machine['commit']}, "
        f"{machine['date']}: [results/{EXPORT.name}](docs/results/{EXPORT.name})."
    )


def training_loss(run: dict[str, Any]) -> list[float]:
    """Return the sum of a training's three losses after each epoch."""
    return [
        sum(parts)
        for parts in zip(*(run["curves"][f"train/{part}_loss"] for part in ("box", "cls", "dfl")), strict=True)
    ]


def two_gpus_table() -> str:
    """Return the loss of trainings on one GPU and on two after some epochs, and the last validation."""
    document = json.loads(TWO_GPUS.read_text(encoding="utf-8"))
    epochs = (1, 5, 10, 15, 20)
    rows = []
    for run in document["runs"]:
        loss, curves = training_loss(run), run["curves"]
        seconds = (curves["time"][-1] - curves["time"][0]) / (len(loss) - 1)
        name = run["name"] if run["log"] is None else f"[{run['name']}](results/{run['log']})"
        last = f"{curves['metrics/mAP50-95(B)'][-1]:.2f}"
        rows.append([name, *(f"{loss[epoch - 1]:.2f}" for epoch in epochs), last, f"{seconds:.2f}"])
    header = ["training loss after epoch", *map(str, epochs), "mAP50-95", "seconds an epoch"]
    return f"{markdown(header, rows)}\n\n{origin(document, TWO_GPUS)}"


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"speed": speed_table, "export": export_table},
    "docs/performance.md": {
        "operator": operator_table,
        "means": means_table,
        "launch": launch_table,
        "cpu": cpu_table,
        "model": model_table,
        "compiled": compiled_table,
    },
    "docs/multi-gpu.md": {"two-gpus": two_gpus_table},
}


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages."""
    pages = {
        name: functools.partial(with_parts, parts=parts, script="measurements.py") for name, parts in PAGES.items()
    }
    return write_or_check(pages, "measurements.py", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
