"""Writes build.ninja and runs ninja on it."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from yolo_dcnv4.build.errors import CompileError
from yolo_dcnv4.build.plan import Plan
from yolo_dcnv4.build.progress import Progress

ERROR = re.compile(r"\berror\b|\bfatal\b|undefined reference|cannot find|not found|No such file", re.IGNORECASE)
TICK_SECONDS = 1.0


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
        "  description = $out",
        "rule link",
        f"  command = {compiler} $in $link_flags -o $out",
        "  description = $out",
    ]
    if plan.nvcc:
        lines += [
            f"nvcc_flags = {_shell(plan.nvcc_flags)}",
            "rule nvcc",
            f"  command = {_shell([str(plan.nvcc.path)])} $nvcc_flags $extra_flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = $out",
        ]
    for step in plan.compilations:
        lines.append(f"build {_path(step.object)}: {step.compiler} {_path(step.source)}")
        if step.extra_flags:
            lines.append(f"  extra_flags = {_shell(step.extra_flags)}")
    objects = " ".join(_path(step.object) for step in plan.compilations)
    lines += [f"build {_path(library)}: link {objects}", f"default {_path(library)}"]
    return "\n".join(lines) + "\n"


def run_ninja(ninja: str, folder: Path, jobs: int, log: Path, verbose: bool) -> None:
    """Run ninja in `folder`, everything it says into `log`, and its status to the screen.

    Args:
        ninja: The executable.
        folder: Folder that holds build.ninja.
        jobs: Number of compilers at a time.
        log: File for the output.
        verbose: Whether the output, with the full commands, goes to the screen in place of the status.

    Raises:
        CompileError: A compiler or the linker failed.
    """
    command = [ninja, "-C", str(folder), "-j", str(jobs), *(["-v"] if verbose else [])]
    # a form that the status can be told by, whatever the caller's environment asks for
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    progress = None if verbose else Progress(sys.stderr)
    with (
        log.open("w") as stream,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in _lines(process.stdout, progress):
            stream.write(line)
            if progress is None:
                sys.stderr.write(line)
            else:
                progress.tell(line)
        if progress is not None:
            progress.finish()
    if process.returncode:
        raise CompileError(first_error(log.read_text(errors="replace")), log)


def _lines(pipe: IO[bytes], progress: Progress | None) -> Iterator[str]:
    """Yield the lines of a pipe; `progress` ticks while none come."""
    pending = b""
    while True:
        if progress is not None and not select.select([pipe], [], [], TICK_SECONDS)[0]:
            progress.tick()
            continue
        chunk = os.read(pipe.fileno(), 1 << 16)
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in whole)
        if not chunk:
            if pending:
                yield pending.decode(errors="replace")
            return


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
