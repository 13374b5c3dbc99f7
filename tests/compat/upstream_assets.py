"""Lay out what ultralytics' own tests would download, in the folders that its settings name.

Models of random weights in the place of trained ones, and generated pictures in that of its smallest data sets.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.utils import DATASETS_DIR, WEIGHTS_DIR

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.task_data import write_task_data

DATA = {
    "coco8": "detect",
    "coco8-seg": "segment",
    "coco8-pose": "pose",
    "dota8": "obb",
    "imagenet10": "classify",
}
TASKS = ("", "-cls", "-depth", "-obb", "-pose", "-seg", "-sem")


def write_data(name: str, task: str) -> None:
    """Write a data set in the layout of the one of that name."""
    folder = DATASETS_DIR / name
    write_task_data(folder, task, pictures=4)
    if task == "classify":
        return
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind).mkdir(exist_ok=True)
            shutil.move(folder / part / kind, folder / kind / part)


def write_weights() -> None:
    """Write models of random weights, those of the tests' constants among them."""
    torch.manual_seed(0)
    spaced = WEIGHTS_DIR / "path with spaces"
    spaced.mkdir(parents=True, exist_ok=True)
    names = {f"yolo26n{task}.pt": f"yolo26n{task}.yaml" for task in TASKS} | {"yolo11n.pt": "yolo11n.yaml"}
    for file, model in names.items():
        YOLO(model).save(WEIGHTS_DIR / file)
        shutil.copy(WEIGHTS_DIR / file, spaced)


if __name__ == "__main__":
    for name, task in DATA.items():
        write_data(name, task)
    write_weights()
