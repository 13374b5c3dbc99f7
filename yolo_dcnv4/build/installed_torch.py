"""What the build has to know of the installed torch, read without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import runpy
from dataclasses import dataclass
from pathlib import Path

from yolo_dcnv4.build.errors import BuildError

OLDEST = (2, 10)


@dataclass(frozen=True)
class InstalledTorch:
    """An installed torch.

    Attributes:
        version: Its full version, such as `2.13.0+cpu`.
        cuda: The CUDA version it is built for, such as `13.2`; `None` for a build without CUDA.
        folder: Its package folder, which holds `include` and `lib`.
    """

    version: str
    cuda: str | None
    folder: Path

    @property
    def release(self) -> tuple[int, int]:
        """(major, minor) of its version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def is_old(self) -> bool:
        """Whether it is older than the library's stable ABI target."""
        return self.release < OLDEST


def find_torch() -> InstalledTorch | None:
    """Return the torch of this environment, or `None`."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    return InstalledTorch(str(facts["__version__"]), facts.get("cuda"), folder)


def require_torch() -> InstalledTorch:
    """Return the torch of this environment, at least the version that the library targets.

    Raises:
        BuildError: There is none, or it is too old.
    """
    torch = find_torch()
    if torch is None:
        raise BuildError("torch is not installed in this environment; the library is built against its headers")
    if torch.is_old:
        raise BuildError(f"torch {torch.version} is too old; expected torch >= {OLDEST[0]}.{OLDEST[1]}")
    return torch


def pinned_toolkit() -> str | None:
    """Return the version of PyPI's `cuda-toolkit` that the installed torch pins, or `None` where it pins none."""
    for requirement in importlib.metadata.requires("torch") or []:
        match = re.match(r"cuda-toolkit(?:\[[^\]]*\])?\s*==\s*([\w.]+)", requirement)
        if match:
            return match[1]
    return None
