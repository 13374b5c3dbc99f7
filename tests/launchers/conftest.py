from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from yolo_dcnv4.demo_data import write_demo_data


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, imgsz=64)


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
