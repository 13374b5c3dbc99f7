"""The build as a command: `python -m yolo_dcnv4.build [cuda=0|1|try] [arch=8.6,9.0] [jobs=4] [verbose=1] [force=1]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_dcnv4.build.errors import BuildError, NoCompilerError
from yolo_dcnv4.build.library import BuildResult, build

SWITCH = {"0": False, "1": True, "false": False, "true": True}
DONE, FAILED, NO_COMPILER = 0, 1, 3


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` arguments into keyword arguments of `build`.

    Args:
        arguments: Such as `["cuda=1", "arch=9.0", "jobs=4"]`.

    Raises:
        BuildError: An argument is unknown or its value malformed.
    """
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in ("cuda", "arch", "jobs", "verbose", "force"):
            raise BuildError(f"unknown argument {argument!r}; expected cuda=, arch=, jobs=, verbose= or force=")
        if key == "arch":
            keywords["archs"] = value
        elif key == "jobs":
            if not value.isdigit() or int(value) < 1:
                raise BuildError(f"jobs={value}: expected a positive number")
            keywords["jobs"] = int(value)
        elif key == "cuda" and value == "try":
            keywords["cuda"] = "try"
        elif value.lower() in SWITCH:
            keywords[key] = SWITCH[value.lower()]
        else:
            raise BuildError(f"{argument}: expected {key}=0 or {key}=1{' or cuda=try' if key == 'cuda' else ''}")
    return keywords


def run(arguments: Sequence[str]) -> int:
    """Build as the arguments say, then say in one line what was built and what serves CPU and GPU.

    Returns:
        0, or 1 for a failed build, or 3 where this machine has nothing to build with.
    """
    status = DONE
    try:
        result = build(**parse_arguments(arguments))
        for note in result.notes:
            print(note, file=sys.stderr)
        outcome = _outcome(result)
    except NoCompilerError as error:
        status, outcome = NO_COMPILER, f"not built: {error}"
    except BuildError as error:
        print(f"build failed: {error}", file=sys.stderr)
        status, outcome = FAILED, "build failed"
    print(f"{outcome}; {_backends()}")
    return status


def _outcome(result: BuildResult) -> str:
    parts = ["CPU"]
    if result.description["cuda"]:
        parts.append(f"CUDA {result.description['cuda']} for {', '.join(result.description['architectures'])}")
    library = result.library
    if library.is_relative_to(Path.cwd()):
        library = library.relative_to(Path.cwd())
    done = f"built in {result.seconds:.0f} s" if result.compiled else "up to date"
    return f"{done}: {library} ({' and '.join(parts)})"


def _backends() -> str:
    try:
        from yolo_dcnv4.ops import backend
    except ImportError as error:
        return f"backends unknown: {error}"
    told = []
    for name, device in (("CPU", "cpu"), ("GPU", "cuda")):
        serving = backend(device)
        reference = f"PyTorch backend ({serving.reason})"
        told.append(f"{name}: {reference if serving.name == 'torch' else 'compiled kernels'}")
    return "; ".join(told)
