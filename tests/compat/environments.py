"""Environments of the matrix: one per torch, one per ultralytics beside it, and this package as a wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compat.cells import Cell

CHECKOUT = Path(__file__).resolve().parents[2]


class Environments:
    """Makes environments under a folder, and finds those of earlier runs again.

    torch is large: an ultralytics is installed beside it, into a folder that goes to PYTHONPATH, and serves with every
    torch.

    Args:
        cache: The folder.
    """

    def __init__(self, cache: Path):
        self.cache = cache.resolve()
        self.package = self.cache / "package"
        self.data = self.cache / "data" / "shapes.yaml"

    def newest(self, project: str) -> str:
        """Return the newest version of a project that pip would install."""
        words = ("install", "--quiet", "--no-deps", "--ignore-installed", "--dry-run", "--report", "-", project)
        report = json.loads(_run(sys.executable, "-m", "pip", *words))
        return str(report["install"][0]["metadata"]["version"])

    def torch(self, version: str) -> Path:
        """Return the Python of the environment with that torch."""
        home = self.cache / f"torch-{version}"
        python = home / "bin" / "python"
        if _is_done(home, version):
            return python
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(python), "-m", "pip", "install", "--quiet", f"torch=={version}", "torchvision")
        _done(home, version)
        return python

    def ultralytics(self, cell: Cell, torch_python: Path) -> Path:
        """Return the folder with that ultralytics and all it needs except torch."""
        wanted = (f"ultralytics=={cell.ultralytics}", *cell.pins)
        return self.beside(torch_python, f"ultralytics-{cell.ultralytics}", *wanted)

    def beside(self, torch_python: Path, name: str, *wanted: str) -> Path:
        """Return the folder with packages and all they need except what stands beside torch.

        Args:
            torch_python: Python of the environment with torch.
            name: Name of the environment.
            wanted: Requirements.
        """
        home = self.cache / name
        site = Path(self.site_of(home))
        if _is_done(home, *wanted):
            return site
        shutil.rmtree(home, ignore_errors=True)
        _run(str(torch_python), "-m", "venv", "--without-pip", str(home))
        torch_path = site / "torch.pth"
        # pip finds torch installed, and lays what it pins otherwise beside it
        torch_path.write_text(self.site_of(torch_python.parents[1]))
        pip = (str(torch_python), "-m", "pip", "--python", str(home / "bin" / "python"))
        _run(*pip, "install", "--quiet", *wanted)
        torch_path.unlink()
        _done(home, *wanted)
        return site

    def site_of(self, home: Path) -> str:
        """Return the folder of packages of an environment."""
        return _run(sys.executable, "-c", _SITE, str(home)).strip()

    def source(self, version: str) -> Path:
        """Return the folder with the source distribution of an ultralytics, which holds its tests."""
        folder = self.cache / "source"
        unpacked = folder / f"ultralytics-{version}"
        if not unpacked.is_dir():
            words = ("--quiet", "--no-deps", "--no-binary", "ultralytics", "--dest", str(folder))
            _run(sys.executable, "-m", "pip", "download", *words, f"ultralytics=={version}")
            shutil.unpack_archive(folder / f"ultralytics-{version}.tar.gz", folder)
        return unpacked

    def install_package(self, torch_python: Path) -> None:
        """Build a wheel of the checkout, compiled library included where there is one, and unpack it."""
        wheels = self.cache / "wheel"
        for folder in (wheels, self.package):
            shutil.rmtree(folder, ignore_errors=True)
        pip = (str(torch_python), "-m", "pip")
        _run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(CHECKOUT))
        (wheel,) = wheels.iterdir()
        _run(*pip, "install", "--quiet", "--no-deps", "--target", str(self.package), str(wheel))

    def write_data(self, python: Path, site: Path) -> None:
        """Write the pictures that every cell trains on."""
        code = (
            "import sys; from yolo_dcnv4.demo_data import write_demo_data; "
            "write_demo_data(sys.argv[1], train=8, val=4, imgsz=64)"
        )
        _run(str(python), "-c", code, str(self.data.parent), PYTHONPATH=os.pathsep.join((str(self.package), str(site))))


_SITE = "import sys, sysconfig; print(sysconfig.get_path('purelib', vars={'base': sys.argv[1]}))"


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _is_done(home: Path, *wanted: str) -> bool:
    done = home / "done"
    return done.is_file() and done.read_text().split() == list(wanted)


def _done(home: Path, *wanted: str) -> None:
    (home / "done").write_text("\n".join(wanted))
