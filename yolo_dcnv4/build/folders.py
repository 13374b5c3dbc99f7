"""Where the build works, and where the compiled library lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from yolo_dcnv4._version import __version__
from yolo_dcnv4.locate import PACKAGE

LIBRARY_NAME = "yolo_dcnv4_ops" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def is_writable(folder: Path) -> bool:
    """Return whether `folder`, or the nearest parent of it that exists, can be written."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def cache_folder() -> Path:
    """Return the user's cache folder of this version, for packages installed where the user cannot write."""
    default = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(default or Path.home() / ".cache") / "yolo_dcnv4" / __version__


def is_checkout() -> bool:
    """Return whether the package is imported from a source checkout."""
    return (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "cuda_src").is_dir()


def work_folder() -> Path:
    """Return the folder for objects, build.ninja and the log: `build/ops` of a checkout, else in the user's cache."""
    if is_checkout() and is_writable(PACKAGE.parent / "build"):
        return PACKAGE.parent / "build" / "ops"
    return cache_folder() / "build"


def output_folder() -> Path:
    """Return the folder that a build puts the library into: `lib` of the package, or the user's cache."""
    lib = PACKAGE / "lib"
    return lib if is_writable(lib) else cache_folder() / "lib"


def library_path() -> Path:
    """Return where the compiled library lies or would lie; `YOLO_DCNV4_LIBRARY` overrides the place."""
    override = os.environ.get("YOLO_DCNV4_LIBRARY")
    if override:
        return Path(override)
    in_package = PACKAGE / "lib" / LIBRARY_NAME
    return in_package if in_package.is_file() else output_folder() / LIBRARY_NAME
