from __future__ import annotations

import os
import tempfile

import pytest
import torch

# ultralytics and matplotlib read these when they are imported, which only test modules do; subprocesses inherit them
_SETTINGS = tempfile.TemporaryDirectory(prefix="yolo_dcnv4-settings-")
os.environ["YOLO_CONFIG_DIR"] = _SETTINGS.name
os.environ["MPLBACKEND"] = "Agg"


def pytest_report_header() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"torch {torch.__version__}, GPU: {gpu}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
