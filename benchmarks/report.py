"""What every benchmark prints and writes: the machine it ran on, a table, JSON, and a plot."""

from __future__ import annotations

import datetime
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from yolo_dcnv4.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[1]


def machine() -> dict[str, str]:
    """Return GPU, driver, CPU, versions, commit and date, as every JSON names them."""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty") or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        found["cuda"] = str(torch.version.cuda)
    return found


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def geometric_mean(ratios: Iterable[float]) -> float | None:
    """Return the geometric mean; None of nothing."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return a Markdown table; numbers with three or four digits, a dash for what is missing."""
    return markdown_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows]).rstrip("\n")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def save(path: str | Path, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Write machine, rows and whatever else belongs to them as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), **more, "rows": list(rows)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def plot(path: str | Path, groups: Sequence[str], series: dict[str, Sequence[float | None]], unit: str) -> None:
    """Draw one bar a group and series.

    Args:
        path: PNG to write.
        groups: Names along the axis.
        series: Values of each series, one a group; `None` leaves a gap.
        unit: Label of the value axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(8, 1.2 * len(groups)), 5), layout="constrained")
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [group + (i - (len(series) - 1) / 2) * width for group in range(len(groups))]
        axes.bar(places, [math.nan if v is None else v for v in values], width, label=name)
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set_ylabel(unit)
    axes.set_yscale("log")
    figure.legend(loc="outside upper center", ncols=min(3, len(series)), fontsize=8, frameon=False)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
