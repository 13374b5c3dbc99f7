"""The smallest data set that each task of ultralytics trains on."""

from __future__ import annotations

from pathlib import Path

import yaml
from PIL import Image

IMGSZ = 64
CLASSES = ("dark", "light")
BOX = "0.5 0.5 0.5 0.4"
CORNERS = "0.25 0.3 0.75 0.3 0.75 0.7 0.25 0.7"
LABELS = {
    "detect": BOX,
    "segment": CORNERS,
    "obb": CORNERS,
    "pose": " ".join([BOX, *["0.4 0.5 2"] * 17]),
}


def write_task_data(folder: Path, task: str, pictures: int = 2) -> Path:
    """Write a data set with one object in each picture, and return what `data=` takes for it.

    Args:
        folder: Folder to write.
        task: A task of ultralytics: detect, segment, pose, obb or classify.
        pictures: Number of pictures of each part.
    """
    for part in ("train", "val"):
        for index in range(pictures):
            label = index % len(CLASSES)
            images = folder / part / (CLASSES[label] if task == "classify" else "images")
            images.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (IMGSZ, IMGSZ), (128, 128, 128))
            picture.paste((255 * label,) * 3, (IMGSZ // 4, IMGSZ // 3, IMGSZ * 3 // 4, IMGSZ * 2 // 3))
            picture.save(images / f"{index}.png")
            if task != "classify":
                text = folder / part / "labels" / f"{index}.txt"
                text.parent.mkdir(exist_ok=True)
                text.write_text(f"{label} {LABELS[task]}\n", encoding="utf-8")
    if task == "classify":
        return folder
    description = {"path": str(folder), "train": "train/images", "val": "val/images", "names": dict(enumerate(CLASSES))}
    if task == "pose":
        description |= {"kpt_shape": [17, 3], "flip_idx": list(range(17))}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump(description), encoding="utf-8")
    return file
