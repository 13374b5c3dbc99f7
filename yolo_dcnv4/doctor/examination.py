"""Examines an environment: from outside, then by a probe in processes of their own, then judges what was found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_dcnv4.doctor.findings import Finding, find
from yolo_dcnv4.doctor.machine import Machine, look_at_machine
from yolo_dcnv4.doctor.probe import SECTIONS

PROBE_SECONDS = 300
# with this process's path, so that the probe sees the same packages whatever folder it starts in
PROBE = "import sys; sys.path[:] = {path!r}; from yolo_dcnv4.doctor.probe import main; main({out!r}, {sections!r})"


@dataclass(frozen=True)
class Examination:
    """What was found, and what is wrong with it.

    Attributes:
        machine: What was found without importing anything.
        probes: What each section of the probe found; an `error` in place of it where it failed.
        findings: What is wrong, or worth knowing.
    """

    machine: Machine
    probes: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.is_problem for finding in self.findings)


def examine() -> Examination:
    """Examine this environment; neither torch nor ultralytics is imported into this process."""
    machine = look_at_machine()
    probes = probe(tuple(SECTIONS))
    return Examination(machine, probes, tuple(find(machine, probes)))


def probe(sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the probe; a section that kills its process is told as an error, and the others run in a new one.

    Args:
        sections: Names of sections, in order.
    """
    found: dict[str, dict[str, Any]] = {}
    environment = dict(os.environ)
    while left := [name for name in sections if name not in found]:
        with tempfile.TemporaryDirectory(prefix="yolo_dcnv4-doctor-") as folder:
            out = Path(folder) / "found"
            ended = _run_probe(out, left, environment)
            lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        found |= {record["section"]: record["found"] for record in map(json.loads, lines)}
        culprit = next((name for name in left if name not in found), None)
        if culprit is not None:
            found[culprit] = {"error": ended, "warnings": []}
            # what crashed may have been the compiled library: what comes next goes without
            environment["YOLO_DCNV4_BACKEND"] = "torch"
    return {name: found[name] for name in sections}


def _run_probe(out: Path, sections: Sequence[str], environment: dict[str, str]) -> str:
    """Run the probe and return how it ended."""
    code = PROBE.format(path=sys.path, out=str(out), sections=list(sections))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {PROBE_SECONDS} s"
    if done.returncode < 0:
        return f"the process was killed by {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"the process ended with status {done.returncode}"
