"""Builds the operator's library and puts it in its place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from yolo_dcnv4.build import folders
from yolo_dcnv4.build.architectures import QUICK, choose_architectures
from yolo_dcnv4.build.driver import Driver, installed_driver
from yolo_dcnv4.build.errors import BuildError, CompileError, NoCompilerError
from yolo_dcnv4.build.installed_torch import InstalledTorch, require_torch
from yolo_dcnv4.build.lock import one_at_a_time
from yolo_dcnv4.build.ninja import first_error, ninja_text, run_ninja
from yolo_dcnv4.build.plan import Plan, require_sources
from yolo_dcnv4.build.toolchain import find_host_compiler, find_ninja, require_nvcc
from yolo_dcnv4.locate import data_folder

ARCHS_VARIABLE = "YOLO_DCNV4_ARCHS"

# a fresh process, since a process holds one copy of the operator only; without the package's own autoload
LOAD_CHECK = "import sys, torch; torch.ops.load_library(sys.argv[1]); torch.ops.yolo_dcnv4.dcnv4.default"


@dataclass(frozen=True)
class BuildResult:
    """A library in its place.

    Attributes:
        library: The library.
        compiled: Whether it was compiled now; `False` where the one in place was up to date.
        seconds: How long that took.
        description: What build.json beside the library says.
        notes: What the user may want to know, such as why there is no CUDA part.
    """

    library: Path
    compiled: bool
    seconds: float
    description: dict
    notes: tuple[str, ...]


def build(
    cuda: bool | Literal["try"] | None = None,
    archs: str | None = None,
    jobs: int | None = None,
    verbose: bool = False,
    force: bool = False,
) -> BuildResult:
    """Build the library unless the one in place is up to date.

    A failed build leaves the library in place as it was.

    Args:
        cuda: `True` for the CUDA part, `False` for the CPU part alone, `"try"` for the CUDA part where a compiler for
            it can be found or fetched, `None` for the CUDA part where there is a GPU or `archs` asks for it.
        archs: Compute capabilities such as `"8.6,9.0+PTX"`, or `"native"`, `"wide"`, `"quick"`; by default
            YOLO_DCNV4_ARCHS of the environment, else the GPUs present, else a wide list.
        jobs: Compilers at a time; by default MAX_JOBS of the environment, else the cores.
        verbose: Whether the compilers' commands and output go to the screen.
        force: Whether to run ninja though the library in place is up to date.

    Raises:
        NoCompilerError: This machine has nothing to build with.
        CompileError: A compiler failed.
        BuildError: Something asked for cannot be had.
    """
    started = time.monotonic()
    if not sys.platform.startswith("linux"):
        raise NoCompilerError(f"building on {sys.platform} is untested and switched off")
    archs = archs or os.environ.get(ARCHS_VARIABLE) or None
    if archs and cuda is False:
        raise BuildError(f"arch={archs} asks for CUDA and cuda=0 for none; leave one of them out")
    if archs and cuda is None:
        cuda = True
    with one_at_a_time(folders.work_folder()):
        driver = installed_driver()
        plan, notes = _make_plan(cuda, archs, driver)
        output = folders.output_folder() / folders.LIBRARY_NAME
        installed = _describe(output)
        only_has_to_compile = archs == QUICK and not (driver and driver.capabilities)
        if not force and installed and _covers(installed, plan, cuda is False, only_has_to_compile):
            # a library with a CUDA part needs no word on why this plan has none
            told = () if installed["cuda"] and not plan.nvcc else tuple(notes)
            return BuildResult(output, False, time.monotonic() - started, installed, told)

        work = folders.work_folder()
        log = work / "build.log"
        text = ninja_text(plan, folders.LIBRARY_NAME)
        if not (work / "build.ninja").is_file() or (work / "build.ninja").read_text() != text:
            (work / "build.ninja").write_text(text)
        run_ninja(find_ninja(), work, jobs or _default_jobs(), log, verbose)
        _check_loads(work / folders.LIBRARY_NAME, log)
        description = {
            "torch": plan.torch.version,
            "cuda": plan.nvcc.version if plan.nvcc else None,
            "architectures": [str(architecture) for architecture in plan.architectures],
            "compiler": plan.compiler.version,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "fingerprint": plan.fingerprint(),
        }
        _put_in_place(work / folders.LIBRARY_NAME, output, description)
        return BuildResult(output, True, time.monotonic() - started, description, tuple(notes))


def _make_plan(cuda: bool | Literal["try"] | None, archs: str | None, driver: Driver | None) -> tuple[Plan, list[str]]:
    sources = data_folder("cuda_src")
    require_sources(sources)
    torch = require_torch()
    plan = Plan(sources, torch, find_host_compiler(), None, ())
    if cuda is False:
        return plan, []
    try:
        if cuda is None:
            _require_gpu(torch, driver)
        nvcc, passed_over = require_nvcc(torch, driver, folders.work_folder() / "fetch.log")
        architectures = choose_architectures(archs, nvcc.supported, driver.capabilities if driver else ())
    except BuildError as error:
        if cuda is True:
            raise
        return plan, [f"no CUDA part: {error}"]
    with_cuda = replace(plan, nvcc=nvcc, architectures=architectures)
    return with_cuda, [f"passed over {reason}" for reason in passed_over]


def _require_gpu(torch: InstalledTorch, driver: Driver | None) -> None:
    if torch.cuda is None:
        raise BuildError(f"torch {torch.version} is built without CUDA")
    if driver is None or not driver.capabilities:
        raise BuildError("this machine shows no GPU; ask for it with cuda=1 or arch=9.0")


def _covers(installed: dict, plan: Plan, without_cuda: bool, only_has_to_compile: bool) -> bool:
    """Return whether the library in place serves a plan; one that holds more than is asked for does."""
    if installed.get("fingerprint") != plan.fingerprint():
        return False
    if plan.nvcc is None:
        return not (without_cuda and installed["cuda"])
    if installed["cuda"] != plan.nvcc.version:
        return False
    return only_has_to_compile or all(
        architecture.is_covered_by(installed["architectures"]) for architecture in plan.architectures
    )


def _describe(library: Path) -> dict | None:
    """Return what build.json says of the library in place, or `None` where either is missing or unreadable."""
    try:
        description = json.loads(library.with_name("build.json").read_text())
    except (OSError, ValueError):
        return None
    return description if library.is_file() and isinstance(description, dict) else None


def _default_jobs() -> int:
    wish = os.environ.get("MAX_JOBS", "")
    return int(wish) if wish.isdigit() and int(wish) else len(os.sched_getaffinity(0))


def _check_loads(library: Path, log: Path) -> None:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_CHECK, str(library)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        with log.open("a") as stream:
            stream.write(done.stdout + done.stderr)
        reason = first_error(done.stderr) if done.stderr else f"exit status {done.returncode}"
        raise CompileError(f"the new library does not load into torch: {reason}", log)


def _put_in_place(built: Path, output: Path, description: dict) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    _replace(output, built.read_bytes())
    shutil.copymode(built, output)
    _replace(output.with_name("build.json"), (json.dumps(description, indent=2) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    # renaming is atomic, and processes that run on the old library keep it
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
