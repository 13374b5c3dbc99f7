"""Renders an examination for a screen and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from yolo_dcnv4 import __version__
from yolo_dcnv4.doctor.examination import Examination

WIDTH = 110
LABEL = 14


def to_json(examination: Examination) -> str:
    """Render a JSON object: what was found, what is wrong, and `ok`."""
    machine, probes = examination.machine, examination.probes
    return (
        json.dumps(
            {
                "ok": examination.is_fine,
                "version": __version__,
                "machine": asdict(machine),
                "torch": probes["torch"],
                "operator": probes["operator"],
                "self_test": probes["self_test"],
                "registration": {"route": route(examination), **probes["yolo"]},
                "findings": [asdict(finding) for finding in examination.findings],
            },
            indent=2,
        )
        + "\n"
    )


def to_text(examination: Examination) -> str:
    """Render one screen of text."""
    lines = [f"yolo_dcnv4 {__version__}", ""]
    for label, text in (*_versions(examination), ("", ""), *_devices(examination), *_registration(examination)):
        lines += _row(label, text)
    lines.append("")
    before = len(lines)
    for kind, is_problem in (("note", False), ("problem", True)):
        for finding in examination.findings:
            if finding.is_problem is is_problem:
                lines += _row(kind, finding.text)
                if finding.command:
                    # unwrapped, so that it can be copied
                    lines.append(f"  {'mend with':{LABEL}}{finding.command}")
    if examination.is_fine:
        lines += [*([""] if len(lines) > before else []), "no problem found"]
    return "\n".join(lines) + "\n"


FORMATS = {"text": to_text, "json": to_json}


def route(examination: Examination) -> str:
    """Return how the blocks become known to ultralytics in a new process.

    `"entry point"` and `"patched checkout"` work in every process; `"import"` needs an import of yolo_dcnv4.modules, or
    `register()`, in each; `"off"` is that by the user's wish; `"none"` where registration fails.
    """
    yolo = examination.probes["yolo"]
    if yolo.get("by_itself"):
        return "patched checkout" if yolo["patched"] else "entry point"
    if not yolo.get("by_import"):
        return "none"
    return "off" if examination.machine.autoload_off else "import"


def _versions(examination: Examination) -> Iterator[tuple[str, str]]:
    machine, probes = examination.machine, examination.probes
    version, executable = machine.python
    yield "Python", f"{version} ({executable}), {machine.platform}"
    torch = _installed(machine.versions["torch"])
    if machine.versions["torch"]:
        torch += f", built for CUDA {machine.torch_cuda}" if machine.torch_cuda else ", built without CUDA"
    yield "torch", f"{torch}; torchvision {_installed(machine.versions['torchvision'])}"
    ultralytics = probes["yolo"].get("version") or _installed(machine.versions["ultralytics"])
    yield "ultralytics", f"{ultralytics}; thop {_installed(machine.versions['ultralytics-thop'])}"
    driver = f"{machine.driver or 'of unknown release'}, serves CUDA {machine.driver_cuda}"
    yield "NVIDIA driver", driver if machine.driver_cuda else "none"
    gpus = [f"{gpu['name']} ({gpu['capability']})" for gpu in probes["torch"].get("gpus", [])]
    unseen = [f"compute capability {capability}, not seen by torch" for capability in machine.capabilities]
    yield "GPU", ", ".join(gpus or unseen) or "none"
    nvcc = "{} ({})".format(*machine.nvcc) if machine.nvcc else "none"
    yield "nvcc", "; ".join([nvcc, *(f"passed over {reason}" for reason in machine.nvcc_passed_over)])
    yield "C++ compiler", machine.compiler
    yield "library", _library(machine.library, machine.library_built)
    if machine.settings:
        yield "environment", ", ".join(f"{name}={value}" for name, value in machine.settings.items())


def _library(path: str, built: dict[str, Any] | None) -> str:
    if built is None:
        return path
    cuda = f"CUDA {built.get('cuda')} for {', '.join(built.get('architectures') or [])}" if built.get("cuda") else ""
    parts = " and ".join(filter(None, ("CPU", cuda)))
    return f"{path} ({parts}; built {str(built.get('date'))[:10]} with torch {built.get('torch')})"


def _devices(examination: Examination) -> Iterator[tuple[str, str]]:
    operator, tests = examination.probes["operator"], examination.probes["self_test"].get("devices", {})
    if "error" in operator:
        yield "operator", operator["error"]
    for device, served in operator.get("devices", {}).items():
        slow = served["name"] == "torch"
        who = f"PyTorch reference, because {served['reason']}" if slow else "compiled kernels"
        yield device, f"{who}; self-test {_tested(tests.get(device))}"
    if "cuda:0" not in operator.get("devices", {}):
        yield "cuda", "torch sees no CUDA device"


def _tested(outcome: dict[str, Any] | None) -> str:
    if outcome is None:
        return "not run"
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    word = "passed" if outcome["passed"] else "failed"
    errors = f"error {outcome['forward']:.0e} forward, {outcome['backward']:.0e} backward"
    return f"{word} in {outcome['seconds']:.1f} s ({errors})"


def _registration(examination: Examination) -> Iterator[tuple[str, str]]:
    yolo = examination.probes["yolo"]
    told = {
        "entry point": "active in every process, through the entry point",
        "patched checkout": "active in every process, through the patched ultralytics checkout",
        "import": "inactive until a process imports yolo_dcnv4.modules or calls yolo_dcnv4.register()",
        "off": f"off by {examination.machine.autoload_off}; an import of yolo_dcnv4.modules registers",
        "none": "inactive",
    }[route(examination)]
    blocks = ", ".join(yolo.get("by_itself") or yolo.get("by_import") or [])
    yield "registration", f"{told}{f': {blocks}' if blocks else ''}"


def _installed(version: str | None) -> str:
    return version or "not installed"


def _row(label: str, text: str) -> list[str]:
    if not label:
        return [""]
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"  {label:{LABEL}}",
        subsequent_indent=" " * (LABEL + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
