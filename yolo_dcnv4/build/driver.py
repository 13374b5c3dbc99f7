"""What the CUDA driver of this machine says, asked without loading torch."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Driver:
    """An installed CUDA driver.

    Attributes:
        cuda: The newest CUDA version that it serves, (major, minor).
        capabilities: Compute capability of each visible GPU, without repetition, ascending.
    """

    cuda: tuple[int, int]
    capabilities: tuple[tuple[int, int], ...]


def installed_driver() -> Driver | None:
    """Ask the CUDA driver for its version and GPUs; `None` where there is no driver.

    Only the driver's own library is asked: it is there in containers without nvidia-smi, it honours
    CUDA_VISIBLE_DEVICES, and no CUDA context is created.
    """
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    served = (version.value // 1000, version.value % 1000 // 10)
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return Driver(served, ())
    return Driver(served, tuple(sorted({_capability(cuda, index) for index in range(count.value)})))


def driver_release() -> str | None:
    """Return the release of the NVIDIA driver, such as `580.65.06`; `None` where it does not tell."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None
    release = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        known = nvml.nvmlSystemGetDriverVersion(release, len(release)) == 0
    finally:
        nvml.nvmlShutdown()
    return release.value.decode() if known else None


def _capability(cuda: ctypes.CDLL, index: int) -> tuple[int, int]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    return major.value, minor.value
