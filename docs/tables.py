"""Write the tables of README.md anew, from the models themselves: `python docs/tables.py [check=1]`.

With check=1 nothing is written, and the exit status is 1 where a table is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from yolo_dcnv4 import compare

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- models begin: python docs/tables.py -->", "<!-- models end -->"
SCALES = "nsmlx"
MODELS = {
    "yolov8{}.yaml": "for comparison",
    "yolov8{}-dcnv4-backbone.yaml": "the backbone's C2f from P3 on (layers 4, 6, 8)",
    "yolov8{}-dcnv4-neck.yaml": "the neck's C2f (layers 12, 15, 18, 21)",
    "yolov8{}-dcnv4-full.yaml": "all eight C2f",
    "yolov8{}-dcnv4-conv.yaml": "the strided Conv before P3, P4, P5 (layers 3, 5, 7)",
}


def cells(scale: str, models: Sequence[str] = tuple(MODELS)) -> list[str]:
    """Return one column of the table: parameters in millions and GFLOPs at 640 px, per model.

    Args:
        scale: One of n, s, m, l, x.
        models: Names with a place for the scale.
    """
    costs = compare([model.format(scale) for model in models], verbose=False)
    return [f"{cost.parameters / 1e6:.2f} M, {cost.gflops:.1f}" for cost in costs]


def models_table() -> str:
    """Return the table of models by scales."""
    columns = [cells(scale) for scale in SCALES]
    lines = [
        f"| model YAML (n to x in place of {{}}) | DCNv4 in | {' | '.join(SCALES)} |",
        f"| --- | --- |{' ---: |' * len(SCALES)}",
    ]
    for row, (name, place) in enumerate(MODELS.items()):
        lines.append(f"| `{name}` | {place} | {' | '.join(column[row] for column in columns)} |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """Return the README's text with the table between its markers.

    Raises:
        ValueError: The markers are missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{README.name} must hold the lines {BEGIN!r} and {END!r} once each")
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Write or check the README."""
    if list(arguments) not in ([], ["check=1"]):
        print(f"expected no argument or check=1, got {' '.join(arguments)!r}", file=sys.stderr)
        return 2
    text = README.read_text(encoding="utf-8")
    fresh = with_table(text, models_table())
    if not arguments:
        README.write_text(fresh, encoding="utf-8")
    elif text != fresh:
        print("the table of README.md is stale; run python docs/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
