from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolo_dcnv4.build.errors import BuildError
from yolo_dcnv4.build.installed_torch import InstalledTorch, find_torch, pinned_toolkit, require_torch


def put_torch(site: Path, version: str, cuda: str | None) -> None:
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def test_the_torch_here():
    found = find_torch()
    assert found == InstalledTorch(torch.__version__, torch.version.cuda, Path(torch.__file__).parent)
    assert require_torch() == found


def test_version_is_read_without_importing(tmp_path: Path):
    put_torch(tmp_path, "2.13.0+cpu", None)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from yolo_dcnv4.build.installed_torch import require_torch\n"
        "found = require_torch()\n"
        "print(found.version, found.cuda, found.release, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
    )
    assert done.stdout.split("\n")[0] == "2.13.0+cpu None (2, 13) False"


@pytest.mark.parametrize(
    ("version", "old"), [("2.9.1", True), ("1.13.0+cu117", True), ("2.10.0", False), ("3.0.0a0+git1", False)]
)
def test_oldest_version(version: str, old: bool):
    assert InstalledTorch(version, None, Path()).is_old is old


def test_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("yolo_dcnv4.build.installed_torch.find_torch", lambda: InstalledTorch("2.9.1", None, Path()))
    with pytest.raises(BuildError, match=r"torch 2\.9\.1 is too old; expected torch >= 2\.10"):
        require_torch()


@pytest.mark.parametrize(
    ("requirements", "version"),
    [
        (['cuda-toolkit[cublas,cudart]==13.2.2; platform_system == "Linux"', "filelock"], "13.2.2"),
        (["cuda-toolkit==13.0.1"], "13.0.1"),
        (['nvidia-cuda-runtime-cu12==12.8.90; platform_system == "Linux"'], None),
        (["filelock"], None),
        (None, None),
    ],
)
def test_pinned_toolkit(requirements: list[str] | None, version: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    assert pinned_toolkit() == version
