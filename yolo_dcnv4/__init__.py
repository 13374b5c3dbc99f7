"""DCNv4 for ultralytics YOLO: operator, blocks, registration and model YAMLs.

Importing this package loads neither torch nor ultralytics; each public name is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from yolo_dcnv4._version import __version__

_HOMES = {
    "DCNv4": "yolo_dcnv4.modules",
    "DCNv4Conv": "yolo_dcnv4.modules",
    "Bottleneck_DCNv4": "yolo_dcnv4.modules",
    "C2f_DCNv4": "yolo_dcnv4.modules",
    "C3_DCNv4": "yolo_dcnv4.modules",
    "C3k_DCNv4": "yolo_dcnv4.modules",
    "C3k2_DCNv4": "yolo_dcnv4.modules",
    "register": "yolo_dcnv4.registry",
    "register_module": "yolo_dcnv4.registry",
    "unregister": "yolo_dcnv4.registry",
    "compare": "yolo_dcnv4.comparison",
    "write_variant": "yolo_dcnv4.variant",
}
_SUBMODULES = ("modules", "ops", "registry")

__all__ = ["__version__", *_HOMES, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"yolo_dcnv4.{name}")
    raise AttributeError(f"module 'yolo_dcnv4' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
