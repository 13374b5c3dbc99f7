"""Train a YOLO with DCNv4 from a script, on generated pictures.

python examples/train_from_script.py [model=yolov8n-dcnv4-neck.yaml] [epochs=10] [imgsz=128] [train=160] [out=runs]
"""

from __future__ import annotations

import sys
from pathlib import Path

from ultralytics import YOLO

from yolo_dcnv4.cli import Option, parse_options
from yolo_dcnv4.demo_data import write_demo_data


def main() -> None:
    """Train and print the result."""
    options = {"model": "yolov8n-dcnv4-neck.yaml", "epochs": 10, "imgsz": 128, "train": 160, "out": "runs/script"}
    options |= parse_options(sys.argv[1:], {key: Option(type(value)) for key, value in options.items()})
    out = Path(options["out"]).resolve()
    data = write_demo_data(out / "shapes", train=options["train"], imgsz=options["imgsz"])

    # nothing to import or to register: an installed yolo_dcnv4 is known to ultralytics
    model = YOLO(options["model"])
    metrics = model.train(
        data=data,
        epochs=options["epochs"],
        imgsz=options["imgsz"],
        project=str(out),
        name="train",
        exist_ok=True,
        workers=0,
        amp=False,
    )
    print(f"mAP50 {metrics.box.map50:.3f}, weights in {model.trainer.best}")


if __name__ == "__main__":
    main()
