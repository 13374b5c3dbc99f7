from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ultralytics import YOLO

from yolo_dcnv4.demo_data import write_demo_data


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, imgsz=64)


OWN_BLOCKS = """
from ultralytics.nn.modules import C2f
from yolo_dcnv4 import register_module


@register_module
class OwnC2f(C2f):
    pass
"""


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A YAML that names a block of this package and one of `own_blocks.py`, which lies beside it."""
    (tmp_path / "own_blocks.py").write_text(OWN_BLOCKS)
    config = YOLO("yolov8n-dcnv4-backbone.yaml").model.yaml
    rows = {
        "backbone": config["backbone"],
        "head": [[*row[:2], row[2].replace("C2f", "OwnC2f"), row[3]] for row in config["head"]],
    }
    file = tmp_path / "yolov8n-both.yaml"
    file.write_text(yaml.safe_dump({"nc": 3, "scales": config["scales"], **rows}))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Run a fresh interpreter in an empty folder; returns its output."""

    def run(*arguments: str, **environment: str) -> str:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"YOLO_AUTOINSTALL": "false", "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=900,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run
