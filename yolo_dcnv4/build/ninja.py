"""Writes build.ninja and runs ninja on it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from yolo_dcnv4.build.errors import CompileError
from yolo_dcnv4.build.plan import Plan

ERROR = re.compile(r"\berror\b|\bfatal\b|undefined reference|cannot find|not found|No such file", re.IGNORECASE)


def ninja_text(plan: Plan, library: str) -> str:
    """Return the build.ninja of a plan.

    Args:
        plan: What to compile.
        library: Name of the library, relative to the work folder.
    """
    compiler = _shell(plan.compiler.command)
    lines = [
        "ninja_required_version = 1.5",
        f"cxx_flags = {_shell(plan.cxx_flags)}",
        f"link_flags = {_shell(plan.link_flags)}",
        "extra_flags =",
        "rule cxx",
        f"  command = {compiler} $cxx_flags $extra_flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} $in $link_flags -o $out",
    ]
    if plan.nvcc:
        lines += [
            f"nvcc_flags = {_shell(plan.nvcc_flags)}",
            "rule nvcc",
            f"  command = {_shell([str(plan.nvcc.path)])} $nvcc_flags $extra_flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    for step in plan.compilations:
        lines.append(f"build {_path(step.object)}: {step.compiler} {_path(step.source)}")
        if step.extra_flags:
            lines.append(f"  extra_flags = {_shell(step.extra_flags)}")
    objects = " ".join(_path(step.object) for step in plan.compilations)
    lines += [f"build {_path(library)}: link {objects}", f"default {_path(library)}"]
    return "\n".join(lines) + "\n"


def run_ninja(ninja: str, folder: Path, jobs: int, log: Path, verbose: bool) -> None:
    """Run ninja in `folder`, everything it says into `log`.

    Args:
        ninja: The executable.
        folder: Folder that holds build.ninja.
        jobs: Number of compilers at a time.
        log: File for the output.
        verbose: Whether the output, with the full commands, also goes to the screen.

    Raises:
        CompileError: A compiler or the linker failed.
    """
    command = [ninja, "-C", str(folder), "-j", str(jobs), *(["-v"] if verbose else [])]
    with (
        log.open("w") as stream,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            stream.write(line)
            if verbose:
                sys.stderr.write(line)
    if process.returncode:
        raise CompileError(first_error(log.read_text(errors="replace")), log)


def first_error(output: str) -> str:
    """Return the first line of a compiler's output that tells an error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # the line after FAILED is ninja's echo of the command, which may hold any word
    failures = [index for index, line in enumerate(lines) if line.startswith("FAILED:")]
    said = lines[failures[0] + 2 :] if failures else lines
    return next((line for line in said if ERROR.search(line)), said[-1] if said else "no output")


def _shell(arguments: Sequence[str]) -> str:
    return " ".join(shlex.quote(argument) for argument in arguments).replace("$", "$$")


def _path(path: Path | str) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))
