"""Sets up a Python environment for a checkout; `make.sh` runs this before the package is installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from yolo_dcnv4.build.errors import BuildError
from yolo_dcnv4.build.installed_torch import OLDEST, find_torch
from yolo_dcnv4.locate import PACKAGE

CHECKOUT = PACKAGE.parent
OLDEST_SETUPTOOLS = 77
LOG_LINES_SHOWN = 15


def set_up(extras: Sequence[str] = ()) -> None:
    """Install the checkout, editable and with its dependencies, into the environment of this Python.

    An installed torch is kept. Nothing happens where nothing has changed since the last time.

    Args:
        extras: Optional dependencies of pyproject.toml, such as `["test"]`.

    Raises:
        BuildError: torch is too old, or pip failed.
    """
    refuse_old_torch()
    stamp = CHECKOUT / "build" / f"environment-{_digest(sys.prefix)[:12]}"
    done = stamp.read_text().split("\n") if stamp.is_file() else []
    if done[:1] == [environment_state()] and set(extras) <= set(done[1:]):
        return
    install(extras)
    check_imports()
    stamp.write_text("\n".join([environment_state(), *sorted({*extras, *done[1:]})]))


def refuse_old_torch() -> None:
    """Raise BuildError for an installed torch that is too old: it is the user's to replace."""
    torch = find_torch()
    if torch and torch.is_old:
        oldest = "{}.{}".format(*OLDEST)
        raise BuildError(
            f"this environment ({sys.prefix}) holds torch {torch.version}; yolo_dcnv4 needs torch >= {oldest}.\n"
            "It is not replaced unasked. Choose one:\n"
            f"  upgrade it:              {sys.executable} -m pip install --upgrade 'torch>={oldest}' torchvision\n"
            "  leave this environment:  deactivate (conda deactivate), then run ./make.sh again: it makes a .venv\n"
            "  use another environment: activate it, then run ./make.sh again"
        )


def environment_state() -> str:
    """Return a hash of the checkout's metadata and of the names and versions of all installed distributions."""
    parts = [sys.version, str(CHECKOUT)]
    parts += [(CHECKOUT / name).read_text() for name in ("pyproject.toml", "setup.py")]
    for entry in dict.fromkeys(sys.path):
        if Path(entry).is_dir():
            # the build may fetch or change NVIDIA's packages later: no reason to run pip again
            names = {path.name for path in Path(entry).glob("*.dist-info") if not path.name.startswith("nvidia")}
            parts += sorted(names)
    return _digest("\n".join(parts))


def install(extras: Sequence[str]) -> None:
    """Run pip on the checkout, with the installed torch and torchvision pinned.

    Args:
        extras: Optional dependencies of pyproject.toml.

    Raises:
        BuildError: There is no pip, or it failed; the last lines of its output are in the message.
    """
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"no pip in {sys.prefix}; `{sys.executable} -m ensurepip` puts one there")
    log = CHECKOUT / "build" / "pip.log"
    log.parent.mkdir(exist_ok=True)
    constraints = log.with_name("constraints.txt")
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in _kept().items()))
    target = f"{CHECKOUT}[{','.join(extras)}]" if extras else str(CHECKOUT)
    command = [sys.executable, "-m", "pip", "install", "--no-input", "-c", str(constraints), "-e", target]
    if _has_setuptools():
        command.append("--no-build-isolation")
    print(f"installing yolo_dcnv4 and what it needs into {sys.prefix} (log: {log}); ", end="", file=sys.stderr)
    print(f"keeping torch {_kept()['torch']}" if "torch" in _kept() else "torch is some GB large", file=sys.stderr)
    with log.open("w") as stream:
        failed = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if failed:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
        raise BuildError(f"pip failed; the end of {log}:\n{tail}")


def check_imports() -> None:
    """Raise BuildError, with the way out, where a dependency is installed and does not import."""
    reason = _import_error("torch")
    if reason:
        raise BuildError(f"torch is installed but does not import: {reason}")
    reason = _import_error("torchvision")
    if reason:
        raise BuildError(
            f"torchvision {_version('torchvision')} does not fit torch {_version('torch')}: {reason}\n"
            "ultralytics needs it. Install the torchvision of the same build, from where this torch came from "
            "(a CPU build of torch wants a CPU build of torchvision), then run ./make.sh again."
        )
    reason = _import_error("cv2")
    if reason and Path(sys.prefix) == CHECKOUT / ".venv":
        _replace_opencv()
        reason = _import_error("cv2")
    if reason:
        raise BuildError(
            f"OpenCV does not import: {reason}\n"
            "On a machine without a desktop either install the system library it names (Debian, Ubuntu: "
            "apt-get install libgl1 libglib2.0-0), or replace it:\n"
            f"  {sys.executable} -m pip uninstall -y opencv-python\n"
            f"  {sys.executable} -m pip install opencv-python-headless"
        )


def _replace_opencv() -> None:
    """Put OpenCV without a window system, which needs no system library, in the place of the one that does."""
    print("OpenCV lacks the system's OpenGL library here: taking opencv-python-headless", file=sys.stderr)
    pip = [sys.executable, "-m", "pip"]
    version = _version("opencv-python")
    with (CHECKOUT / "build" / "pip.log").open("a") as stream:
        for command in (
            [*pip, "uninstall", "-y", "opencv-python"],
            [*pip, "install", "--no-input", "--no-deps", "--force-reinstall", f"opencv-python-headless=={version}"],
        ):
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)


def _import_error(module: str) -> str:
    # in a process of its own, as the user will import it
    command = [sys.executable, "-c", f"import {module}"]
    # elsewhere than in the checkout, whose folders could be taken for packages
    done = subprocess.run(command, cwd=CHECKOUT / "build", capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _kept() -> dict[str, str]:
    return {name: version for name in ("torch", "torchvision") if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_setuptools() -> bool:
    version = _version("setuptools")
    return version is not None and int(version.split(".")[0]) >= OLDEST_SETUPTOOLS


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    try:
        set_up(sys.argv[1:])
    except BuildError as error:
        sys.exit(f"make.sh: {error}")
