"""What can only be told by importing torch and ultralytics; runs in a process of its own, which may crash."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def probe_torch() -> dict[str, Any]:
    """Return version and devices of torch."""
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            capability = "{}.{}".format(*torch.cuda.get_device_capability(index))
            gpus.append({"name": torch.cuda.get_device_name(index), "capability": capability})
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


def probe_operator() -> dict[str, Any]:
    """Return what serves each device, and whether the compiled library is loaded."""
    import torch

    from yolo_dcnv4 import ops
    from yolo_dcnv4.ops.library import ABSENT

    # all of it: a library of an older version of this package may lack what one of the modules needs
    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return {"absent": ABSENT, "devices": {device: ops.backend(device)._asdict() for device in devices}}


def probe_self_test() -> dict[str, Any]:
    """Return the self-test's outcome on each device."""
    import torch

    from yolo_dcnv4.doctor.self_test import self_test

    outcomes = {}
    for device in ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]:
        try:
            outcomes[device] = self_test(device)
        except Exception as error:
            outcomes[device] = {"passed": False, "error": _told(error)}
    return {"devices": outcomes}


def probe_yolo() -> dict[str, Any]:
    """Return whether ultralytics, imported as `yolo` does, knows the blocks, and else whether it can be taught."""
    import ultralytics
    import ultralytics.nn.tasks as tasks

    found: dict[str, Any] = {"version": ultralytics.__version__, "patched": _is_patched(tasks.__file__)}
    found["by_itself"] = sorted(_registered())
    if not found["by_itself"]:
        try:
            import yolo_dcnv4.modules  # noqa: F401

            found["by_import"] = sorted(_registered())
        except Exception as error:
            found["import_error"] = _told(error)
    return found


def _registered() -> dict[str, Any]:
    hook = sys.modules.get("yolo_dcnv4.registry.hook")
    return hook.registered() if hook is not None else {}


def _is_patched(file: str | None) -> bool:
    from yolo_dcnv4.registry.checkout import patched
    from yolo_dcnv4.registry.errors import RegistrationError

    try:
        text = Path(file or "").read_text(encoding="utf-8")
        return patched(text) == text
    except (OSError, RegistrationError):
        return False


SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": probe_torch,
    # before YOLO, whose import runs registration, which loads the library too: so that a crash is told from one
    "operator": probe_operator,
    "self_test": probe_self_test,
    "yolo": probe_yolo,
}


def main(out: str, sections: Sequence[str]) -> None:
    """Examine, and write a line of JSON to a file after each section.

    Args:
        out: The file.
        sections: Names out of `SECTIONS`.
    """
    with Path(out).open("a", encoding="utf-8") as stream:
        for name in sections:
            found: dict[str, Any]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    found = SECTIONS[name]()
                except Exception as error:
                    found = {"error": _told(error)}
            found["warnings"] = [str(warning.message) for warning in caught if _concerns_us(warning)]
            print(json.dumps({"section": name, "found": found}), file=stream, flush=True)


def _concerns_us(warning: warnings.WarningMessage) -> bool:
    text = str(warning.message)
    return "yolo_dcnv4" in text or "CUDA" in text or "driver" in text


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
