"""Scripts and the workers that they start."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TRAIN = """
def train(model, data, folder):
    from ultralytics import YOLO
    model = YOLO(model)
    model.train(
        data=data, epochs=1, imgsz=64, batch=4, workers=0, plots=False, device="cpu", project=folder, name="train"
    )
    print("trained", *[type(m).__name__ for m in YOLO(model.trainer.best).model.model], flush=True)
"""
SPAWN = """
import multiprocessing
import sys
sys.path.insert(0, sys.argv[3])
from work import train
if __name__ == "__main__":
    import own_blocks  # in the parent alone
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(train, sys.argv[1:])
"""
SWITCHED_OFF = """
import sys
sys.path.insert(0, sys.argv[3])
import yolo_dcnv4
from work import train
if __name__ == "__main__":
    from ultralytics.nn import tasks
    assert not hasattr(tasks, "C2f_DCNv4")
    yolo_dcnv4.register()
    train(*sys.argv[1:])
"""


def test_spawned_worker_trains_with_what_its_parent_registered(run, data: Path, own_model: Path, tmp_path: Path):
    (tmp_path / "work.py").write_text(TRAIN)
    (tmp_path / "spawn.py").write_text(SPAWN)
    out = run(str(tmp_path / "spawn.py"), str(own_model), str(data), str(tmp_path))
    (line,) = [line for line in out.splitlines() if line.startswith("trained")]
    assert line.split().count("C2f_DCNv4") == 3 and line.split().count("OwnC2f") == 4


def test_script_registers_where_autoload_is_switched_off(run, data: Path, tmp_path: Path):
    (tmp_path / "work.py").write_text(TRAIN)
    (tmp_path / "train.py").write_text(SWITCHED_OFF)
    model = "yolov8n-dcnv4-backbone.yaml"
    out = run(str(tmp_path / "train.py"), model, str(data), str(tmp_path), YOLO_DCNV4_AUTOLOAD="0")
    (line,) = [line for line in out.splitlines() if line.startswith("trained")]
    assert line.split().count("C2f_DCNv4") == 3
