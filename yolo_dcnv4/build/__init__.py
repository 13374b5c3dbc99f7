"""Builds the compiled operator. Importing this loads neither torch nor a compiler's module."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "build": "library",
    "BuildResult": "library",
    "BuildError": "errors",
    "CompileError": "errors",
    "NoCompilerError": "errors",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"yolo_dcnv4.build.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'yolo_dcnv4.build' has no attribute {name!r}")
