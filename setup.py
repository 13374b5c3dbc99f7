"""Puts the data folders and a compiled library into the wheel, and tags a wheel with a library for its platform."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARY = ROOT / "yolo_dcnv4" / "lib"
FOLDERS = (ROOT / "model_yamls", ROOT / "cuda_src", LIBRARY)


class BuildWithFolders(build_py):
    """Copies the folders into the package that is being built."""

    def run(self) -> None:
        """Copy what there is; an editable install finds the folders of the checkout."""
        super().run()
        if self.editable_mode:
            return
        for folder in FOLDERS:
            target = Path(self.build_lib) / "yolo_dcnv4" / folder.name
            # build_lib outlives a build: files removed from the checkout must not stay
            shutil.rmtree(target, ignore_errors=True)
            if folder.is_dir():
                shutil.copytree(folder, target)


class DistributionWithLibrary(Distribution):
    """Knows that a wheel with the library is for one platform."""

    def has_ext_modules(self) -> bool:
        """Return whether a library has been built."""
        return LIBRARY.is_dir()


class AnyPythonWheel(bdist_wheel):
    """Tags a wheel with the library `py3-none-manylinux_...`: any Python will do, and any glibc with its symbols."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag."""
        tag = super().get_tag()
        if self.root_is_pure:
            return tag
        glibc = oldest_glibc()
        return "py3", "none", f"manylinux_2_{glibc}_{platform.machine()}" if glibc else tag[2]


def oldest_glibc() -> int | None:
    """Return the minor version of the oldest glibc 2 that the library loads with, or `None` where it needs no glibc."""
    if sys.platform != "linux":
        return None
    # names of symbol versions, each between two zeros of the string table
    versions = [
        int(minor)
        for library in LIBRARY.glob("*.so")
        for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", library.read_bytes())
    ]
    return max(versions, default=None)


setup(distclass=DistributionWithLibrary, cmdclass={"build_py": BuildWithFolders, "bdist_wheel": AnyPythonWheel})
