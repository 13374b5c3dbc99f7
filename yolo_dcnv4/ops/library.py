"""The operator in torch's dispatcher: the compiled library where there is one, the PyTorch reference elsewhere."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from yolo_dcnv4.build.folders import library_path
from yolo_dcnv4.ops import reference

NAMESPACE = "yolo_dcnv4"
SCHEMAS = {
    "dcnv4": (
        "(Tensor value, Tensor offset_mask, int groups, int[] window, float offset_scale, bool remove_center, "
        "bool softmax) -> Tensor"
    ),
    "dcnv4_backward": (
        "(Tensor grad_output, Tensor value, Tensor offset_mask, int groups, int[] window, float offset_scale, "
        "bool remove_center, bool softmax, bool needs_value, bool needs_offset_mask, bool deterministic) "
        "-> (Tensor, Tensor)"
    ),
    "dcnv4_packed": (
        "(Tensor packed, int groups, int[] window, float offset_scale, bool remove_center, bool softmax, "
        "int channels) -> Tensor"
    ),
    "dcnv4_packed_backward": (
        "(Tensor grad_output, Tensor packed, int groups, int[] window, float offset_scale, bool remove_center, "
        "bool softmax, int channels, bool deterministic) -> Tensor"
    ),
}
FALLBACKS = {
    "dcnv4": reference.reference_forward,
    "dcnv4_backward": reference.reference_backward,
    "dcnv4_packed": reference.reference_packed_forward,
    "dcnv4_packed_backward": reference.reference_packed_backward,
}


class Backend(NamedTuple):
    """What serves a device: `'cuda'`, `'cpu'` (both compiled) or `'torch'` (the reference), and why."""

    name: str
    reason: str


def _is_defined() -> bool:
    return torch._C._dispatch_has_kernel(f"{NAMESPACE}::dcnv4")


def _load() -> str:
    """Load the compiled library once and return why it is absent, or an empty string."""
    # a second copy in one process would define the operator twice and abort
    if _is_defined():
        return ""
    if os.environ.get("YOLO_DCNV4_BACKEND") == "torch":
        return "YOLO_DCNV4_BACKEND=torch asks for the PyTorch reference"
    path = library_path()
    if not path.is_file():
        return f"no compiled library at {path}; build it with `yolo-dcnv4 build` (in a checkout: ./make.sh build)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled library {path} does not load: {error}"
    return ""


ABSENT = _load()
# the handle keeps the registrations alive
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    if ABSENT:
        _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, FALLBACKS[_name], "CompositeExplicitAutograd")


def _has_kernel(key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::dcnv4", key)


def _cpu_kernels() -> str:
    # a library that an older version left behind does not tell
    if not torch._C._dispatch_has_kernel(f"{NAMESPACE}::cpu_capability"):
        return ""
    return f", kernels for CPU capability {torch.ops.yolo_dcnv4.cpu_capability()}"


@functools.cache
def cuda_obstacle(index: int) -> str:
    """Return why the compiled kernels cannot run on a CUDA device, or an empty string.

    Args:
        index: Index of the CUDA device.
    """
    if ABSENT:
        return ABSENT
    if not _has_kernel("CUDA"):
        return f"the compiled library {library_path()} was built without CUDA"
    return torch.ops.yolo_dcnv4.cuda_obstacle(index)


def backend(device: torch.device | str | int | None = None) -> Backend:
    """Tell what serves a device now, and why.

    Args:
        device: A torch device; `None` stands for the current CUDA device where there is one, else the CPU.

    Returns:
        `Backend(name, reason)` with name `'cuda'`, `'cpu'` (compiled) or `'torch'` (the PyTorch reference).
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return Backend("torch", "torch sees no CUDA device")
        obstacle = cuda_obstacle(torch.cuda.current_device() if device.index is None else device.index)
        return Backend("torch", obstacle) if obstacle else Backend("cuda", f"compiled library {library_path()}")
    if device.type == "cpu":
        if ABSENT:
            return Backend("torch", ABSENT)
        return Backend("cpu", f"compiled library {library_path()}{_cpu_kernels()}")
    return Backend("torch", f"there is no compiled kernel for device type {device.type!r}")
