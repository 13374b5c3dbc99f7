"""Puts the data folders of the checkout into the wheel, and tags a wheel that holds a library for its platform."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DATA_FOLDERS = ("model_yamls", "cuda_src")


class BuildWithData(build_py):
    """Copies the data folders into the package that is being built."""

    def run(self) -> None:
        """Copy the folders; an editable install finds those of the checkout."""
        super().run()
        if self.editable_mode:
            return
        for name in DATA_FOLDERS:
            target = Path(self.build_lib) / "yolo_dcnv4" / name
            # build_lib outlives a build: files removed from the checkout must not stay
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / name, target)


class PlatformWheel(bdist_wheel):
    """Tags the wheel `py3-none-<platform>` when it holds a compiled library: any Python, one platform."""

    def finalize_options(self) -> None:
        """Tell a wheel with a library from a pure one."""
        super().finalize_options()
        self.root_is_pure = not (ROOT / "yolo_dcnv4" / "lib" / "build.json").is_file()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the wheel's tag."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(cmdclass={"build_py": BuildWithData, "bdist_wheel": PlatformWheel})
