"""Write the tables of README.md and docs/models.md anew, from the models: `python docs/scripts/tables.py [check=1]`.

With check=1 nothing is written, and the exit status is 1 where a table is stale. Takes a few minutes.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from generated import ROOT, markdown, with_parts, write_or_check

from yolo_dcnv4 import compare, write_variant
from yolo_dcnv4.variant import PLACES, variant_stem

SCALES = "nsmlx"
# what the README shows first, with words
MODELS = {
    "yolov8{}.yaml": "for comparison",
    "yolov8{}-dcnv4-backbone.yaml": "the backbone's C2f from P3 on (layers 4, 6, 8)",
    "yolov8{}-dcnv4-neck.yaml": "the neck's C2f (layers 12, 15, 18, 21)",
    "yolov8{}-dcnv4-full.yaml": "all eight C2f",
    "yolov8{}-dcnv4-conv.yaml": "the strided Conv before P3, P4, P5 (layers 3, 5, 7)",
    "yolo11{}-dcnv4-backbone.yaml": "the backbone's C3k2 from P3 on (layers 4, 6, 8)",
    "yolo26{}-dcnv4-backbone.yaml": "the backbone's C3k2 from P3 on (layers 4, 6, 8)",
    "yolo12{}-dcnv4-backbone.yaml": "the backbone's C3k2 at P3 (layer 4); attention stays",
    "yolov10{}-dcnv4-backbone.yaml": "the backbone's C2f from P3 on (n: layers 4, 6, 8; s, m, l: 4, 6; x: 4)",
    "yolov5{}-dcnv4-backbone.yaml": "the backbone's C3 from P3 on (layers 4, 6, 8)",
    "yolov8{}-rtdetr-dcnv4-backbone.yaml": "the backbone's C2f from P3 on (layers 4, 6, 8)",
}
TASKS = ("", "-seg", "-pose", "-obb", "-cls")
# title -> stems of the plain models, and the scales
FAMILIES = {
    "YOLOv8": ([f"yolov8{{}}{task}" for task in TASKS], SCALES),
    "YOLO11": ([f"yolo11{{}}{task}" for task in TASKS], SCALES),
    "YOLO26": ([f"yolo26{{}}{task}" for task in TASKS], SCALES),
    "YOLO12": (["yolo12{}"], SCALES),
    "YOLOv10": (["yolov10{}"], "nsmblx"),
    "YOLOv5": (["yolov5{}"], SCALES),
    "RT-DETR": (["yolov8{}-rtdetr"], SCALES),
}


@functools.cache
def cell(model: str) -> str:
    """Return parameters in millions and GFLOPs at 640 px of one model."""
    (cost,) = compare([model], verbose=False)
    return f"{cost.parameters / 1e6:.2f} M, {cost.gflops:.1f}"


def cells(scale: str, models: Sequence[str] = tuple(MODELS)) -> list[str]:
    """Return one column of a table.

    Args:
        scale: One of n, s, m, b, l, x.
        models: Names with a place for the scale.
    """
    return [cell(model.format(scale)) for model in models]


def table(places: dict[str, str], scales: str) -> str:
    """Return a table of models by scales.

    Args:
        places: Names with a place for the scale -> where DCNv4 is.
        scales: The scales.
    """
    columns = [cells(scale, tuple(places)) for scale in scales]
    rows = [[f"`{name}`", place, *costs] for (name, place), *costs in zip(places.items(), *columns, strict=True)]
    return markdown(["model YAML (n to x in place of {})", "DCNv4 in", *scales], rows, texts=2)


def shipped_places(stem: str, scales: str) -> dict[str, str]:
    """Map a plain model and the shipped variants of it to where DCNv4 is, as the files say on top."""
    places = {f"{stem}.yaml": "-"}
    for variant in (*PLACES, "conv"):
        name = f"{variant_stem(stem, variant)}.yaml"
        layers: dict[str, list[str]] = {}
        for scale in scales:
            files = (ROOT / "model_yamls" / name.format(letter) for letter in ("", scale))
            if file := next((file for file in files if file.is_file()), None):
                with file.open(encoding="utf-8") as lines:
                    layers.setdefault(next(lines).partition(" with ")[2].strip(), []).append(scale)
        if layers:
            every = len(layers) == 1
            places[name] = "; ".join(text if every else f"{', '.join(at)}: {text}" for text, at in layers.items())
    return places


def shipped_tables() -> str:
    """Return a table per family of all shipped models."""
    parts = []
    for title, (stems, scales) in FAMILIES.items():
        places: dict[str, str] = {}
        for stem in stems:
            places |= shipped_places(stem, scales)
        parts.append(f"### {title}\n\n{table(places, scales)}")
    return "\n\n".join(parts)


def shipped_files() -> str:
    """Return one table of all shipped models."""
    every = sorted({scale for _, scales in FAMILIES.values() for scale in scales}, key="nsmblx".index)
    rows = []
    for stems, scales in FAMILIES.values():
        for stem in stems:
            for name, place in list(shipped_places(stem, scales).items())[1:]:
                costs = (cell(name.format(scale)) if scale in scales else "-" for scale in every)
                rows.append([f"`{name}`", place, *costs])
    return markdown(["model YAML", "DCNv4 in", *every], rows, texts=2)


def ultralytics_table() -> str:
    """Return what `yolo-dcnv4 variant` makes of each model YAML of the installed ultralytics, equal ones together."""
    from ultralytics.nn import tasks

    models = sorted(file.name for file in (Path(tasks.__file__).parents[1] / "cfg" / "models").rglob("*.yaml"))
    rows: dict[tuple[str, ...], list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            row = []
            for where in PLACES:
                try:
                    variant = write_variant(model, where, Path(folder) / f"{where}-{model}")
                    row.append(variant.summary)
                except ValueError as refusal:
                    there = str(refusal).partition(", only ")[2].partition(";")[0]
                    row.append(f"refused, has only {there}")
            if row[-1].startswith("refused"):
                row[:-1] = ["refused"] * len(row[:-1])
            rows.setdefault(tuple(row), []).append(f"`{model}`")
    header = ["model YAML", *PLACES]
    return markdown(header, [[", ".join(names), *row] for row, names in rows.items()], texts=len(header))


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"models": lambda: table(MODELS, SCALES), "files": shipped_files},
    "docs/models.md": {"shipped": shipped_tables, "ultralytics": ultralytics_table},
}


def main(arguments: Sequence[str]) -> int:
    """Write or check the pages."""
    pages = {name: functools.partial(with_parts, parts=parts, script="tables.py") for name, parts in PAGES.items()}
    return write_or_check(pages, "tables.py", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
