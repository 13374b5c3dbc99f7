"""Draw where a layer samples before and after training: `./make.sh demo && python docs/scripts/pictures.py`.

Arguments: demo=DIR (where `./make.sh demo` put its results) picture=N (which validation picture).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from yolo_dcnv4.cli import Option, UsageError, parse_options
from yolo_dcnv4.visualization import visualize

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
MODEL = "yolov8n-dcnv4-backbone.yaml"
LAYER = "model.4.m.0.cv2.dcn"
POINTS = 2
# of the demo's pictures
SIDE = 128


def main(arguments: Sequence[str]) -> int:
    """Draw the pictures and return the exit status."""
    try:
        options = parse_options(arguments, {"demo": Option(str), "picture": Option(int)})
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    demo = Path(options.get("demo", ROOT / "demo"))
    source = demo / "shapes" / "images" / "val" / f"{options.get('picture', 2):05d}.jpg"
    labels = (demo / "shapes" / "labels" / "val" / source.with_suffix(".txt").name).read_text().splitlines()
    # centres of labelled shapes, so that the pictures before and after training show the same points
    points = [[SIDE * float(text) for text in label.split()[1:3]] for label in labels[:POINTS]]
    PICTURES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    for name, model in (("before", MODEL), ("after", demo / "train" / "weights" / "best.pt")):
        with tempfile.TemporaryDirectory() as folder:
            (drawn,) = visualize(model, source, LAYER, points, imgsz=SIDE, out=folder, device="cpu", verbose=False)
            shutil.copy(drawn.file, PICTURES / f"sampling-{name}-training.png")
        print(f"{name} training: mean offset {drawn.mean_offset:.2f} px")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
