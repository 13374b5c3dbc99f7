"""Registration in every process: torch calls `autoload` at the end of `import torch` (entry point `torch.backends`).

That reaches the plain `yolo` command, workers of distributed training and checkpoints loaded anywhere. Nothing may
raise here, for `import torch` would fail, and nothing heavy may be imported.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TASKS = "ultralytics.nn.tasks"
BLOCKS = "yolo_dcnv4.modules"

_warned = False


def autoload() -> None:
    """See to it that `register()` runs once ultralytics is there; `YOLO_DCNV4_AUTOLOAD=0` turns it off."""
    try:
        if is_switched_off():
            return
        if _is_loaded(TASKS):
            _register()
        elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    except Exception as error:
        _warn(error)


def is_switched_off() -> bool:
    """Return whether the environment asks for no registration by itself."""
    return os.environ.get("YOLO_DCNV4_AUTOLOAD", "1").strip().lower() in ("0", "false", "no", "off")


class _Finder:
    """Runs registration right after `ultralytics.nn.tasks` has been executed, then leaves `sys.meta_path`."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find `ultralytics.nn.tasks` as the other finders do, with a loader that calls back."""
        if name != TASKS:
            # torch was first imported from within ultralytics.nn.tasks: its loader could not be caught any more
            if _is_loaded(TASKS):
                self._finish()
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if finder is self or find_spec is None else find_spec(name, path, target)
            if spec is not None:
                try:
                    self._call_back(spec.loader)
                except AttributeError:
                    pass  # a loader that takes no attributes: the next import after this one will notice
                return spec
        return None

    def _call_back(self, loader: Any) -> None:
        exec_module = loader.exec_module

        def exec_and_register(module: ModuleType) -> None:
            exec_module(module)
            if module.__name__ == TASKS:  # loaders of archives are shared by all their modules
                del loader.exec_module
                self._finish()

        # on the instance: the loader keeps its type, and with it get_source and whatever else is asked of it
        loader.exec_module = exec_and_register

    def _finish(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()


def _register() -> None:
    # under way: the blocks import ultralytics themselves, and register at their end
    if BLOCKS in sys.modules and not _is_loaded(BLOCKS):
        return
    try:
        from yolo_dcnv4.registry.children import register_inherited
        from yolo_dcnv4.registry.hook import register

        register()
        register_inherited()
    except Exception as error:
        _warn(error)


def _is_loaded(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _warn(error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        import warnings

        warnings.warn(
            f"yolo_dcnv4 could not register modules with ultralytics: {type(error).__name__}: {error}\n"
            "Models without them work as before; a YAML that names them will fail. "
            "YOLO_DCNV4_AUTOLOAD=0 turns automatic registration off.",
            RuntimeWarning,
            stacklevel=2,
        )
