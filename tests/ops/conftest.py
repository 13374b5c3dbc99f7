"""Fixtures of the operator tests; they import neither ultralytics nor the layers."""

from __future__ import annotations

import os

import pytest
import torch

from yolo_dcnv4.ops import backend


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


def pytest_report_header(config):
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    lines = [f"dcnv4 backend of {device}: {' - '.join(backend(device))}" for device in devices]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"torch {torch.__version__}, GPUs: {', '.join(gpus) or 'none'}", *lines]


@pytest.fixture
def compiled():
    """For tests of the CUDA kernels: PyTorch must not stand in for them."""
    if backend("cuda").name != "cuda":
        pytest.skip(f"no compiled CUDA kernel: {backend('cuda').reason}")


@pytest.fixture
def caching_allocator():
    """For tests of what PyTorch's caching allocator gives or counts; it is off where a sanitizer watches."""
    if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1":
        pytest.skip("needs PyTorch's caching allocator")


@pytest.fixture
def deterministic():
    """Deterministic algorithms as `yolo train` asks for them; torch.empty then comes filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(params=[False, True], ids=["default", "deterministic"])
def both_ways(request):
    """With and without deterministic algorithms."""
    if request.param:
        request.getfixturevalue("deterministic")
