"""Hand registrations on to child processes: workers of distributed training start without the parent's state.

The blocks of this package need none of this, every process registers them. Modules of others are named in an
environment variable, which children inherit, together with the folder they were imported from.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VARIABLE = "YOLO_DCNV4_MODULES"


def announce(cls: type, like: str | None, helpers: Iterable[type] = ()) -> None:
    """Let children of this process register a class too; a class that they could not import is left out.

    Args:
        cls: A registered class.
        like: The name of the module it is like.
        helpers: Further classes allowed in checkpoints.
    """
    if not _is_importable(cls):
        return
    entries = _entries()
    entries[_key(cls)] = {
        "like": like,
        "helpers": [_key(helper) for helper in helpers if _is_importable(helper)],
        "folder": _folder(cls.__module__),
    }
    os.environ[VARIABLE] = json.dumps(entries)


def withdraw() -> None:
    """Announce nothing any more."""
    os.environ.pop(VARIABLE, None)


def register_inherited() -> None:
    """Register what the parent process has announced.

    Raises:
        ImportError: A class cannot be imported here.
        RegistrationError: As `register_module`.
    """
    from yolo_dcnv4.registry.hook import register_module

    for key, entry in _entries().items():
        module = sys.modules.get(key.partition(":")[0])
        if module is not None and getattr(module.__spec__, "_initializing", False):
            continue  # its own import has brought us here; it registers its classes itself, or its importer does
        if entry["folder"] is not None and entry["folder"] not in sys.path:
            sys.path.append(entry["folder"])
        helpers = [_resolve(helper) for helper in entry["helpers"]]
        register_module(_resolve(key), like=entry["like"], helpers=helpers)


def _entries() -> dict[str, dict[str, Any]]:
    return json.loads(os.environ.get(VARIABLE) or "{}")


def _is_importable(cls: type) -> bool:
    return cls.__module__ != "__main__" and "<" not in cls.__qualname__


def _key(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _resolve(key: str) -> Any:
    name, _, path = key.partition(":")
    try:
        thing: Any = importlib.import_module(name)
        for attribute in path.split("."):
            thing = getattr(thing, attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{key} was registered by the parent process and cannot be imported in this one: {error}. "
            "Define it at the top level of a file that can be imported."
        ) from error
    return thing


def _folder(name: str) -> str | None:
    """Return the folder that must be on `sys.path` for a module to be imported."""
    top = sys.modules.get(name.partition(".")[0])
    file = getattr(top, "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    return str(path.parents[1] if path.name == "__init__.py" else path.parent)
