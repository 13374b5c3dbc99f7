"""Write the files of model_yamls/ anew, as `yolo-dcnv4 variant` does: `python docs/scripts/model_yamls.py [check=1]`.

With check=1 nothing is written, and the exit status is 1 where a file is stale, missing or not listed here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from yolo_dcnv4 import write_variant
from yolo_dcnv4.variant import variant_stem

FOLDER = Path(__file__).resolve().parents[2] / "model_yamls"
TASKS = ("", "-seg", "-pose", "-obb")


def _shipped() -> dict[str, tuple[str, str]]:
    """Map the name of each shipped file to the model it is made from and the place of DCNv4."""
    models = {
        f"{family}{task}": ("backbone", "neck", "full") for family in ("yolov8", "yolo11", "yolo26") for task in TASKS
    }
    models |= dict.fromkeys(("yolov8-cls", "yolo11-cls", "yolo26-cls"), ("backbone",))
    models |= dict.fromkeys(("yolo12", "yolov5", "yolov8-rtdetr"), ("backbone",))
    # YOLOv10 is another architecture at each scale
    models |= dict.fromkeys((f"yolov10{scale}" for scale in "nsmblx"), ("backbone",))
    files = {
        f"{variant_stem(model, place)}.yaml": (f"{model}.yaml", place) for model in models for place in models[model]
    }
    return files | {"yolov8-dcnv4-conv.yaml": ("yolov8.yaml", "3,5,7")}


SHIPPED = _shipped()


def write_all(folder: Path) -> None:
    """Write every shipped file into a folder."""
    for name, (model, where) in SHIPPED.items():
        write_variant(model, where, folder / name, layout="plain")


def main(arguments: Sequence[str]) -> int:
    """Write or check the files."""
    if list(arguments) not in ([], ["check=1"]):
        print(f"expected no argument or check=1, got {' '.join(arguments)!r}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        write_all(Path(folder))
        fresh = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    there = {file.name: file.read_bytes() for file in FOLDER.iterdir()}
    stale = sorted(name for name in fresh.keys() | there.keys() if fresh.get(name) != there.get(name))
    if not arguments:
        for name in stale:
            if name in fresh:
                (FOLDER / name).write_bytes(fresh[name])
            else:
                (FOLDER / name).unlink()
    elif stale:
        print(f"stale in model_yamls: {', '.join(stale)}; run python docs/scripts/model_yamls.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
