"""The CPU kernels of each instruction set that this machine has; torch's own variable chooses among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolo_dcnv4.ops import backend

CAPABILITIES = ("default", "avx2", "avx512")
TESTS = Path(__file__).parent
# both ways through the kernels: points at once and one by one
CASES = (
    "default or everything-odd or kernel7x7 or kernel9x9 or remove-center-3x3 or softmax or stride2x3 or one-pixel or "
    "width1 or far-offsets or depth1- or depth6 or depth12 or depth16 or depth17 or depth24 or depth48 or crop or "
    "misaligned"
)
EDGES = "test_on_the_grid or test_border_positions or test_points_outside or test_nan_pixel or test_points_nowhere"


def _with_capability(capability: str, *command: str) -> str:
    if capability != "default" and capability not in _supported():
        pytest.skip(f"this processor has no {capability}")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


def _supported() -> tuple[str, ...]:
    # asked of a process of its own: the variable may be set for this one
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    widest = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    widest = widest.strip().lower()
    return CAPABILITIES[: CAPABILITIES.index(widest) + 1] if widest in CAPABILITIES else ("default",)


@pytest.fixture(autouse=True)
def compiled_for_cpu():
    if backend("cpu").name != "cpu":
        pytest.skip(backend("cpu").reason)


def test_backend_names_the_capability():
    assert backend("cpu").reason.endswith(f"kernels for CPU capability {torch.ops.yolo_dcnv4.cpu_capability()}")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_variable_chooses(capability):
    code = "import torch, yolo_dcnv4.ops; print(torch.ops.yolo_dcnv4.cpu_capability())"
    assert _with_capability(capability, "-c", code).strip() == capability


@pytest.mark.parametrize("capability", CAPABILITIES[:-1])
@pytest.mark.parametrize(
    "selection",
    [
        f"test_agrees_with_torchvision and cpu and op- and ({CASES})",
        f"cpu and op- and ({EDGES})",
        pytest.param("cpu and not reference", marks=pytest.mark.slow),
    ],
    ids=["cases", "edges", "all"],
)
def test_narrower_capability_agrees_with_the_oracles(capability, selection):
    if capability == torch.ops.yolo_dcnv4.cpu_capability():
        pytest.skip("the other tests run with it")
    options = ("-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow", "-k", selection)
    report = _with_capability(capability, "-m", "pytest", *options, str(TESTS / "test_dcnv4.py"))
    assert " passed" in report.splitlines()[-1]
