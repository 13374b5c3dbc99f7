from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ultralytics.nn.tasks as tasks

from yolo_dcnv4.registry import register, unregister


@pytest.fixture
def hook():
    """The package's own registration, and nothing else, before and after."""
    unregister()
    register()
    yield tasks
    unregister()
    register()


@pytest.fixture(scope="session")
def python():
    """Run a fresh interpreter in the given folder; returns its output."""

    def run(*arguments: str, cwd: Path, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=os.environ | {"YOLO_AUTOINSTALL": "false"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
