"""What can be told of an environment without importing torch or ultralytics."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_dcnv4.build.driver import driver_release, installed_driver
from yolo_dcnv4.build.errors import BuildError
from yolo_dcnv4.build.folders import is_checkout, library_path
from yolo_dcnv4.build.installed_torch import InstalledTorch, find_torch
from yolo_dcnv4.build.plan import Plan
from yolo_dcnv4.build.toolchain import find_host_compiler, find_ninja, find_nvcc
from yolo_dcnv4.locate import data_folder
from yolo_dcnv4.registry.autoload import is_switched_off

DISTRIBUTIONS = ("yolo_dcnv4", "torch", "torchvision", "ultralytics", "ultralytics-thop")
SETTINGS = ("YOLO_DCNV4_BACKEND", "YOLO_DCNV4_LIBRARY", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CXX")

TORCH_AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"


@dataclass(frozen=True)
class Machine:
    """An environment from outside.

    Attributes:
        python: Version and executable of Python.
        platform: System and processor.
        versions: Version of each distribution; `None` where it is not installed.
        torch_is_old: Whether torch is older than the package needs.
        torch_cuda: CUDA version that torch is built for.
        driver: Release of the NVIDIA driver, such as `580.65.06`.
        driver_cuda: The newest CUDA version that the driver serves.
        capabilities: Compute capability of each kind of GPU that the driver shows.
        nvcc: Version and path of the CUDA compiler that a build would take.
        nvcc_passed_over: Why others are not taken.
        compiler: The C++ compiler that a build would take, or why there is none.
        can_build: Whether there is a C++ compiler, ninja, and a platform that the build supports.
        library: Path of the compiled library; it need not be there.
        library_built: What build.json beside it says.
        library_is_stale: Whether that tells of other sources, another compiler or torch than a build would take now;
            of a checkout only, since a wheel's library was built elsewhere.
        has_entry_point: Whether the entry point for registration in every process is installed.
        autoload_off: The variable that switches it off.
        settings: Variables of the environment that matter.
    """

    python: tuple[str, str]
    platform: str
    versions: dict[str, str | None]
    torch_is_old: bool
    torch_cuda: str | None
    driver: str | None
    driver_cuda: str | None
    capabilities: tuple[str, ...]
    nvcc: tuple[str, str] | None
    nvcc_passed_over: tuple[str, ...]
    compiler: str
    can_build: bool
    library: str
    library_built: dict[str, Any] | None
    library_is_stale: bool
    has_entry_point: bool
    autoload_off: str | None
    settings: dict[str, str]


def look_at_machine() -> Machine:
    """Return what can be told without importing anything that may be broken."""
    driver = installed_driver()
    nvcc, passed_over = find_nvcc(driver)
    compiler, can_build = _compiler()
    torch = _torch()
    library = library_path()
    built = _description(library)
    return Machine(
        python=(platform.python_version(), sys.executable),
        platform=f"{platform.system()} {platform.machine()}",
        # metadata leave out which build of torch it is
        versions={name: _version(name) for name in DISTRIBUTIONS} | ({"torch": torch.version} if torch else {}),
        torch_is_old=torch is not None and torch.is_old,
        torch_cuda=torch.cuda if torch else None,
        driver=driver_release(),
        driver_cuda="{}.{}".format(*driver.cuda) if driver else None,
        capabilities=tuple("{}.{}".format(*capability) for capability in driver.capabilities) if driver else (),
        nvcc=(nvcc.version, str(nvcc.path)) if nvcc else None,
        nvcc_passed_over=tuple(passed_over),
        compiler=compiler,
        can_build=can_build,
        library=str(library),
        library_built=built,
        library_is_stale=torch is not None and built is not None and _is_stale(built, torch),
        has_entry_point=bool(importlib.metadata.entry_points(group="torch.backends", name="yolo_dcnv4")),
        autoload_off=_autoload_off(),
        settings={name: os.environ[name] for name in SETTINGS if os.environ.get(name)},
    )


def _autoload_off() -> str | None:
    if is_switched_off():
        return "YOLO_DCNV4_AUTOLOAD"
    # torch takes anything but 1 for a no
    return None if os.environ.get(TORCH_AUTOLOAD, "1") == "1" else TORCH_AUTOLOAD


def _compiler() -> tuple[str, bool]:
    try:
        compiler = find_host_compiler()
        find_ninja()
    except BuildError as error:
        return str(error), False
    return compiler.version, sys.platform.startswith("linux")


def _torch() -> InstalledTorch | None:
    try:
        return find_torch()
    except Exception:
        # half-installed: importing it will tell more
        return None


def _is_stale(built: dict[str, Any], torch: InstalledTorch) -> bool:
    if not is_checkout():
        return False
    try:
        plan = Plan(data_folder("cuda_src"), torch, find_host_compiler(), None, ())
    except BuildError:
        return False
    return built.get("fingerprint") != plan.fingerprint()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _description(library: Path) -> dict[str, Any] | None:
    try:
        described = json.loads(library.with_name("build.json").read_text())
    except (OSError, ValueError):
        return None
    return described if library.is_file() and isinstance(described, dict) else None
