"""Finds the C++ compiler, nvcc and ninja; fetches nvcc from PyPI where the machine has none."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolo_dcnv4.build.driver import Driver
from yolo_dcnv4.build.errors import BuildError, NoCompilerError
from yolo_dcnv4.build.installed_torch import InstalledTorch, pinned_toolkit

OLDEST_NVCC = (12, 0)
TOOLKIT_PARTS = "nvcc,nvvm,crt,cccl,cudart"


@dataclass(frozen=True)
class HostCompiler:
    """A C++ compiler: its command, and the first line of its --version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler that runs.

    Attributes:
        path: The executable.
        release: Toolkit version, (major, minor).
        supported: Compute capabilities that it compiles for.
        include_folders: The folder of its toolkit that holds cuda_runtime.h; empty where the compiler knows it.
        library_folders: The folder that holds the static CUDA runtime; empty where the linker knows it.
    """

    path: Path
    release: tuple[int, int]
    supported: tuple[tuple[int, int], ...]
    include_folders: tuple[Path, ...]
    library_folders: tuple[Path, ...]

    @property
    def version(self) -> str:
        """Toolkit version, such as `13.0`."""
        return "{}.{}".format(*self.release)


def find_host_compiler() -> HostCompiler:
    """Return the C++ compiler: $CXX, else g++, clang++ or c++ on PATH.

    Raises:
        NoCompilerError: There is none.
        BuildError: $CXX is set to something that does not run.
    """
    asked = os.environ.get("CXX")
    if asked:
        version = _first_line([*shlex.split(asked), "--version"])
        if version is None:
            raise BuildError(f"CXX={asked} does not run; unset it, or set it to a C++ compiler")
        return HostCompiler(tuple(shlex.split(asked)), version)
    for name in ("g++", "clang++", "c++"):
        path = shutil.which(name)
        version = path and _first_line([path, "--version"])
        if path and version:
            return HostCompiler((path,), version)
    raise NoCompilerError("no C++ compiler found (looked at $CXX, g++, clang++, c++ on PATH)")


def find_ninja() -> str:
    """Return the ninja of this environment, else the one on PATH.

    Raises:
        BuildError: There is none.
    """
    in_environment = shutil.which("ninja", path=sysconfig.get_path("scripts"))
    found = in_environment or shutil.which("ninja")
    if not found:
        raise BuildError("ninja not found; it comes with `pip install ninja`")
    return found


def find_nvcc(driver: Driver | None) -> tuple[Nvcc | None, list[str]]:
    """Look for nvcc in $CUDA_HOME, on PATH and among pip's packages, in this order.

    Args:
        driver: The machine's CUDA driver; a toolkit whose major version it does not serve is passed over.

    Returns:
        The first that runs and fits, or `None`; and why each of the others was passed over.
    """
    passed_over = []
    for place, path in _nvcc_candidates():
        try:
            nvcc = _probe_nvcc(path)
        except BuildError as error:
            passed_over.append(f"{place}: {error}")
            continue
        if nvcc.release < OLDEST_NVCC:
            passed_over.append(f"{place}: nvcc {nvcc.version} is too old, expected 12.0 or newer")
        elif driver and nvcc.release[0] > driver.cuda[0]:
            passed_over.append(f"{place}: nvcc {nvcc.version} is newer than the driver's CUDA {driver.cuda[0]}")
        else:
            return nvcc, passed_over
    return None, passed_over


def _nvcc_candidates() -> Iterator[tuple[str, Path]]:
    home = os.environ.get("CUDA_HOME")
    if home:
        yield f"CUDA_HOME={home}", Path(home) / "bin" / "nvcc"
    on_path = shutil.which("nvcc")
    if on_path:
        yield f"nvcc on PATH ({on_path})", Path(on_path)
    for entry in dict.fromkeys(sys.path):
        packaged = Path(entry) / "nvidia" / "cu13" / "bin" / "nvcc"
        if packaged.is_file():
            yield f"pip's nvcc ({packaged})", packaged


def _probe_nvcc(path: Path) -> Nvcc:
    if not path.is_file():
        raise BuildError("holds no bin/nvcc")
    release = re.search(r"release (\d+)\.(\d+)", _output([str(path), "--version"]) or "")
    listed = _output([str(path), "--list-gpu-arch"])
    if not release or not listed:
        raise BuildError(f"{path} does not run")
    numbers = re.findall(r"compute_(\d+)$", listed, re.MULTILINE)
    supported = tuple((int(number[:-1]), int(number[-1])) for number in numbers)
    return Nvcc(path, (int(release[1]), int(release[2])), supported, *_toolkit_folders(path))


def _toolkit_folders(nvcc: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    # nvcc on PATH may be a wrapper script: only nvcc itself knows where its toolkit lies
    plan = subprocess.run(
        [str(nvcc), "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    root = Path(top[1].strip()).resolve() if top else nvcc.resolve().parent.parent
    include = (root / "include", *sorted(root.glob("targets/*/include")))
    library = (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib")))
    return (
        tuple(folder for folder in include if (folder / "cuda_runtime.h").is_file())[:1],
        tuple(folder for folder in library if (folder / "libcudart_static.a").is_file())[:1],
    )


def require_nvcc(torch: InstalledTorch, driver: Driver | None, log: Path) -> tuple[Nvcc, list[str]]:
    """Find nvcc, or fetch it from PyPI in the version that the installed torch pins.

    Args:
        torch: The installed torch.
        driver: The machine's CUDA driver.
        log: File for pip's output.

    Returns:
        The compiler, and why others were passed over.

    Raises:
        BuildError: There is none to be had.
    """
    nvcc, passed_over = find_nvcc(driver)
    if nvcc:
        return nvcc, passed_over
    nothing = "; ".join(["no nvcc that fits (looked at CUDA_HOME, PATH and pip's packages)", *passed_over])
    if torch.cuda is None:
        raise BuildError(f"{nothing}; torch {torch.version}, built without CUDA, tells no version to fetch")
    version = pinned_toolkit()
    if version is None:
        raise BuildError(f"{nothing}; PyPI has none for torch {torch.version}: install a CUDA toolkit, set CUDA_HOME")
    if driver and int(version.split(".")[0]) > driver.cuda[0]:
        raise BuildError(f"{nothing}; torch {torch.version} wants {torch.cuda}, the driver serves {driver.cuda[0]}")
    print("no nvcc here: fetching the one that this torch names from PyPI (about 300 MB) ...", file=sys.stderr)
    _pip_install(f"cuda-toolkit[{TOOLKIT_PARTS}]=={version}", log)
    nvcc, passed_over = find_nvcc(driver)
    if nvcc is None:
        raise BuildError("; ".join(["the nvcc fetched from PyPI does not serve", *passed_over]))
    return nvcc, passed_over


def _pip_install(requirement: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--no-input", requirement]
    with log.open("w") as stream:
        failed = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if failed:
        raise BuildError(f"`pip install '{requirement}'` failed; its output is in {log}")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _first_line(command: list[str]) -> str | None:
    text = _output(command)
    return text.splitlines()[0].strip() if text else None
