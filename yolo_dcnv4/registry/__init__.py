"""Teach ultralytics' `parse_model` new modules.

torch imports this package in every process for `autoload`, so it loads nothing before a name is used.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "RegistrationError": "errors",
    "register": "hook",
    "register_module": "hook",
    "registered": "hook",
    "unregister": "hook",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"yolo_dcnv4.registry.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'yolo_dcnv4.registry' has no attribute {name!r}")
