"""Let checkpoints that hold registered classes load where torch restricts unpickling to known classes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable

import torch

_added: set[type] = set()


def allow(classes: Iterable[type]) -> None:
    """Allow classes in restricted checkpoints: ULTRALYTICS_SAFE_LOAD=1, `safe_only=True`, `weights_only=True`.

    Args:
        classes: Classes that a checkpoint may name.
    """
    new = set(classes).difference(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([*new])
    _added.update(new)


def withdraw() -> None:
    """Take back what `allow` added; what others have allowed stays."""
    kept = [entry for entry in torch.serialization.get_safe_globals() if entry not in _added]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(kept)
    _added.clear()


def classes_of(package: str) -> list[type]:
    """Return the classes that the loaded modules of a package define.

    Args:
        package: Name of an imported package.
    """
    return [
        cls
        for name, module in list(sys.modules.items())
        if name == package or name.startswith(f"{package}.")
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == name
    ]
