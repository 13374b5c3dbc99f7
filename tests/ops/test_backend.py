"""Which backend serves, and why; a process of its own for each setting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolo_dcnv4.ops import Backend, backend
from yolo_dcnv4.ops.library import library_path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys, torch
from yolo_dcnv4.ops import backend, dcnv4, dcnv4_reference
torch.manual_seed(0)
value, offset_mask, grad = torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 56), torch.randn(2, 5, 6, 8)
results = []
for op in (dcnv4, dcnv4_reference):
    v, o = value.clone().requires_grad_(), offset_mask.clone().requires_grad_()
    out = op(v, o, groups=2)
    out.backward(grad)
    results.append((out.detach(), v.grad, o.grad))
errors = [float((a - b).norm() / b.norm()) for a, b in zip(*results)]
print(json.dumps({"cpu": backend("cpu"), "errors": errors, "ultralytics": "ultralytics" in sys.modules}))
"""


def _run(**environment: str) -> dict:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("YOLO_DCNV4_")}
    path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    # torch's own loading of plug-ins is not under test here
    environment = {**inherited, "PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **environment}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    result = json.loads(process.stdout)
    assert max(result["errors"]) < 1e-5
    assert not result["ultralytics"], "the operator must not import ultralytics"
    return result


def test_forced_torch():
    name, reason = _run(YOLO_DCNV4_BACKEND="torch")["cpu"]
    assert name == "torch"
    assert "YOLO_DCNV4_BACKEND=torch" in reason


def test_missing_library(tmp_path):
    name, reason = _run(YOLO_DCNV4_LIBRARY=str(tmp_path / "nowhere.so"))["cpu"]
    assert name == "torch"
    assert str(tmp_path / "nowhere.so") in reason
    assert "build" in reason


@pytest.mark.parametrize("content", [b"", b"no library at all"])
def test_broken_library(tmp_path, content):
    path = tmp_path / "broken.so"
    path.write_bytes(content)
    name, reason = _run(YOLO_DCNV4_LIBRARY=str(path))["cpu"]
    assert name == "torch"
    assert str(path) in reason
    assert "does not load" in reason


def test_folder_in_place_of_the_library(tmp_path):
    name, reason = _run(YOLO_DCNV4_LIBRARY=str(tmp_path))["cpu"]
    assert name == "torch"
    assert str(tmp_path) in reason


def test_override_by_the_library_in_place(tmp_path):
    path = library_path()
    if not path.is_file():
        pytest.skip(f"no compiled library at {path}")
    # loaded from another place under another name
    copy = tmp_path / f"copy{path.suffix}"
    copy.write_bytes(path.read_bytes())
    name, reason = _run(YOLO_DCNV4_LIBRARY=str(copy))["cpu"]
    assert name == "cpu"
    assert str(copy) in reason


def test_names_and_reasons():
    for device in (None, "cpu", torch.device("cpu"), "cuda", "cuda:0", 0, "mps", "xpu", "meta"):
        result = backend(device)
        assert isinstance(result, Backend)
        assert result.name in ("cuda", "cpu", "torch")
        assert result.reason
    assert backend("mps").name == "torch"
    assert "mps" in backend("mps").reason
    assert backend("cpu").name != "cuda"
    if not torch.cuda.is_available():
        assert backend("cuda").name == "torch"
        assert "CUDA" in backend("cuda").reason
        assert backend() == backend("cpu")


@pytest.mark.gpu
def test_default_is_the_current_cuda_device():
    assert backend() == backend("cuda") == backend(torch.cuda.current_device())
    assert backend().name in ("cuda", "torch")
