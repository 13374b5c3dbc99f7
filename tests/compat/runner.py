"""Runs the matrix, cell by cell: plain YOLO first, then the same with DCNv4, each phase in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.compat.cells import CELLS, NEWEST, TORCHES, Cell
from tests.compat.environments import CHECKOUT, Environments

RESULTS = CHECKOUT / "docs" / "results" / "compatibility.json"
STEPS = Path(__file__).with_name("steps.py")
PHASE_SECONDS = 900
FAMILIES = ("yolov8", "yolo11", "yolo26")
PLAIN, OURS = "{}n.yaml", "{}n-dcnv4-backbone.yaml"


def run_matrix(cache: Path, ultralytics: Sequence[str] = (), torches: Sequence[str] = ()) -> None:
    """Run cells and write their results into `RESULTS`, where those of other cells stay.

    Args:
        cache: Folder for environments, kept for the next time.
        ultralytics: Versions to run; none for all.
        torches: Versions of torch to run; none for all.
    """
    environments = Environments(cache)
    newest_torch, newest = environments.newest("torch"), environments.newest("ultralytics")
    wanted = [newest_torch if version == NEWEST else version for version in torches or TORCHES]
    cells = list(_select(newest, ultralytics))
    wanted = list(dict.fromkeys(wanted))
    environments.install_package(environments.torch(wanted[0]))
    package = tree()
    for version in wanted:
        python = environments.torch(version)
        for cell in cells:
            print(f"torch {version}, ultralytics {cell.ultralytics} {_words(cell.environment)}", flush=True)
            site = environments.ultralytics(cell, python)
            if not environments.data.is_file():
                environments.write_data(python, site)
            start = time.monotonic()
            result = _run_cell(cell, version, environments, python, site)
            result["seconds"] = round(time.monotonic() - start)
            _store(result | {"tree": package})
            print(f"  {result['seconds']} s: {_summary(result)}", flush=True)


def _select(newest: str, wanted: Sequence[str]) -> Iterable[Cell]:
    listed = {cell.ultralytics for cell in CELLS}
    for cell in CELLS:
        if cell.ultralytics == NEWEST:
            if newest in listed:
                continue
            cell = replace(cell, ultralytics=newest)
        if not wanted or cell.ultralytics in wanted:
            yield cell


def _run_cell(cell: Cell, torch: str, environments: Environments, python: Path, site: Path) -> dict[str, Any]:
    home = environments.cache / "runs" / f"{cell.ultralytics}-torch{torch}{'-env' * bool(cell.environment)}"
    shutil.rmtree(home, ignore_errors=True)
    variables = {
        # the package lies before ultralytics, and is told to stay still in the plain phases
        "PYTHONPATH": os.pathsep.join((str(environments.package), str(site))),
        "YOLO_CONFIG_DIR": str(home / "settings"),
        "YOLO_AUTOINSTALL": "false",
        "YOLO_OFFLINE": "true",
        "MPLBACKEND": "Agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        **cell.environment,
    }

    def phase(name: str, folder: str, model: str = "", **more: str) -> dict[str, Any]:
        target = home / folder
        target.mkdir(parents=True, exist_ok=True)
        words = [str(python), str(STEPS), name, str(target), str(environments.data), *([model] if model else [])]
        with (target / f"{name}.log").open("w") as log:
            try:
                subprocess.run(
                    words,
                    cwd=target,
                    env=os.environ | variables | more,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=PHASE_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                print(f"  {name} of {folder} took more than {PHASE_SECONDS} s", flush=True)
        file = target / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else {name: {"error": _last_line(target / f"{name}.log")}}

    def lifetime(folder: str, model: str, **more: str) -> dict[str, Any]:
        results = phase("train", folder, model, **more)
        if results["train"]["error"] is None:
            results |= phase("reload", folder, model, **more)
        results["train"].pop("output", None)
        return results

    off = {"YOLO_DCNV4_AUTOLOAD": "0"}
    # the oldest family, and the newest that this release knows
    known = [family for family in FAMILIES if list((site / "ultralytics" / "cfg").glob(f"models/*/{family}.yaml"))]
    tried = list(dict.fromkeys((known[0], known[-1])))
    plain = {family: lifetime(f"plain-{family}", PLAIN.format(family), **off) for family in tried}
    result = {
        "ultralytics": cell.ultralytics,
        "torch": torch,
        "environment": cell.environment,
        "pins": list(cell.pins),
        "plain": plain,
    }
    result |= phase("register", "register") | phase("build", "build")
    copy = home / "fork"
    shutil.copytree(site / "ultralytics", copy / "ultralytics")
    patch = [str(python), "-m", "yolo_dcnv4.cli", "patch", str(copy)]
    done = subprocess.run(patch, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        result["fork"] = {"error": done.stderr.strip()}
    else:
        result |= phase("fork", "fork", PYTHONPATH=os.pathsep.join((str(copy), variables["PYTHONPATH"])), **off)
    result["dcnv4"] = {family: lifetime(f"dcnv4-{family}", OURS.format(family)) for family in tried}
    return result


def _store(result: dict[str, Any]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cells": []}
    result |= {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    order = [(cell.ultralytics, cell.environment) for cell in CELLS]

    def key(cell: dict[str, Any]) -> tuple[Any, ...]:
        known = (cell["ultralytics"], cell["environment"])
        return order.index(known) if known in order else len(order), cell["ultralytics"], number_of(cell["torch"])

    def same(cell: dict[str, Any]) -> bool:
        return all(cell[name] == result[name] for name in ("ultralytics", "torch", "environment"))

    cells = [cell for cell in results["cells"] if not same(cell)]
    results["cells"] = sorted([*cells, result], key=key)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def number_of(version: str) -> tuple[int, ...]:
    """Return a version as numbers, to sort by."""
    return tuple(int(part) for part in version.split("."))


def tree() -> str:
    """Return git's hash of the package's content, which a rebase leaves as it is."""
    git = ("git", "-C", str(CHECKOUT))
    done = subprocess.run([*git, "rev-parse", "HEAD:yolo_dcnv4"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "yolo_dcnv4"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] + " with changes" * bool(changed.stdout.strip())


def _summary(result: dict[str, Any]) -> str:
    from tests.compat.table import row

    return ", ".join(row(result))


def _words(environment: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in environment.items())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return lines[-1][:200]
