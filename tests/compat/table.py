"""The table of docs/compatibility.md, from the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.compat.runner import RESULTS, number_of

PAGE = RESULTS.parents[1] / "compatibility.md"
BEGIN, END = "<!-- matrix begin: python -m tests.compat -->", "<!-- matrix end -->"
STEPS = ("train", "val", "predict", "reload", "export")
HEADER = ("ultralytics", "torch", "plain YOLO", "register", "YAMLs built", *STEPS, "patched fork")


def passes(cell: dict[str, Any]) -> bool:
    """Tell whether everything went well in a cell that needed no variable set."""
    return not cell["environment"] and not any(_errors(cell))


def oldest_that_passes(cells: list[dict[str, Any]]) -> str:
    """Return the oldest ultralytics that passes with every torch it was run with."""
    unaided = [cell for cell in cells if not cell["environment"]]
    failed = {cell["ultralytics"] for cell in unaided if not passes(cell)}
    good = {cell["ultralytics"] for cell in unaided} - failed
    return min(good, key=number_of)


def row(cell: dict[str, Any]) -> list[str]:
    """Return the cells of one line."""
    plain = {step: _first_error(cell["plain"], step) for step in STEPS}
    broken = [step for step, error in plain.items() if error]
    words = [
        cell["ultralytics"] + " (1)" * bool(cell["environment"]),
        cell["torch"],
        f"fails in {broken[0]}" if broken else "ok",
        "fails" if cell["register"]["error"] else "ok",
        _built(cell["build"]),
    ]
    for step in STEPS:
        error = _first_error(cell["dcnv4"], step)
        words.append("ok" if not error else "as plain" if plain[step] else "fails")
    fork = cell["fork"]["error"]
    return [*words, "ok" if not fork else "as plain" if plain["train"] else "fails"]


def _built(build: dict[str, Any]) -> str:
    if "built" not in build:
        return "fails"
    built, errors, upstream = (len(build[name]) for name in ("built", "errors", "upstream"))
    words = f"{built} of {built + errors + upstream}"
    return words + f", {upstream} as plain" * bool(upstream)


def _first_error(models: dict[str, Any], step: str) -> str | None:
    """Return the error of a step over the models; a step that was not reached fails with the one before it."""
    for results in models.values():
        error = results[step]["error"] if step in results else "not reached"
        if error:
            return str(error)
    return None


def _errors(cell: dict[str, Any]) -> list[str]:
    """Return what went wrong with this package's models, whosever fault it is."""
    phases = ("register", "build", "fork")
    errors = [f"{phase}: {cell[phase]['error']}" for phase in phases if cell[phase]["error"]]
    return errors + _own(cell["dcnv4"], "DCNv4 ")


def _own(models: dict[str, Any], what: str = "") -> list[str]:
    return [
        f"{what}{family}, {step}: {results[step]['error']}"
        for family, results in models.items()
        for step in STEPS
        if step in results and results[step]["error"]
    ]


def reasons(cells: list[dict[str, Any]]) -> list[str]:
    """Return one line per reason for something that failed, with the cells it holds for."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for reason in (*_own(cell["plain"], "plain "), *_errors(cell)):
            found.setdefault(reason, []).append(f"{cell['ultralytics']} with torch {cell['torch']}")
    return [f"- {', '.join(where)}: {_escaped(reason)}" for reason, where in found.items()]


def _escaped(reason: str) -> str:
    return f"`{reason.replace('`', chr(39))}`"


def matrix(results: dict[str, Any]) -> str:
    """Return the table, with the reasons of what failed below it."""
    cells = results["cells"]
    lines = [f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}"]
    lines += [f"| {' | '.join(row(cell))} |" for cell in cells]
    variables = {f"{name}={value}" for cell in cells for name, value in cell["environment"].items()}
    if variables:
        lines += ["", f"(1) with {', '.join(sorted(variables))} set."]
    if why := reasons(cells):
        lines += ["", "What failed:", "", *why]
    dates = sorted({cell["date"] for cell in cells})
    pythons = sorted({cell["python"] for cell in cells})
    trees = sorted({cell["tree"] for cell in cells})
    lines += [
        "",
        f"Run on {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with Python {', '.join(pythons)} on a CPU, "
        f"tree {', '.join(trees)} of yolo_dcnv4/ (`git rev-parse HEAD:yolo_dcnv4`); every version and reason stands in "
        f"[results/{RESULTS.name}](results/{RESULTS.name}).",
    ]
    return "\n".join(lines)


def between(text: str, begin: str, end: str, content: str) -> str:
    """Return the page's text with the content between two markers.

    Raises:
        ValueError: The markers are missing.
    """
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{PAGE.name} must hold the lines {begin!r} and {end!r} once each")
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    return re.sub(pattern, lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL)


def write(page: Path = PAGE) -> None:
    """Write the table into the page anew."""
    text, content = page.read_text(encoding="utf-8"), matrix(json.loads(RESULTS.read_text(encoding="utf-8")))
    page.write_text(between(text, BEGIN, END, content), encoding="utf-8")
