"""Python imports this at its start where the folder is on its path: ultralytics' runs then stay small.

The commands and scripts of the pages run word for word, and a CPU has done with them in seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from typing import Any

CFG = "ultralytics.cfg"
MOST = {"epochs": 1, "imgsz": 64, "batch": 2, "workers": 0}


class Finder:
    """Wraps `get_cfg`, through which every mode reads its arguments, before anything else can import it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != CFG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        exec_module = spec.loader.exec_module

        def exec_and_wrap(module: Any) -> None:
            exec_module(module)
            module.get_cfg = small(module.get_cfg)

        spec.loader.exec_module = exec_and_wrap
        return spec


def small(get_cfg: Any) -> Any:
    @functools.wraps(get_cfg)
    def get_small_cfg(*args: Any, **kwargs: Any) -> Any:
        cfg = get_cfg(*args, **kwargs)
        for name, most in MOST.items():
            value = getattr(cfg, name, None)
            if isinstance(value, int) and value > most:
                setattr(cfg, name, most)
        return cfg

    return get_small_cfg


sys.meta_path.insert(0, Finder())
