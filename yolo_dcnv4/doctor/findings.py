"""What is wrong with an environment, judged from what was found in it, and the command that mends it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_dcnv4.build.folders import is_checkout
from yolo_dcnv4.build.installed_torch import OLDEST
from yolo_dcnv4.doctor.machine import Machine
from yolo_dcnv4.locate import PACKAGE

OLDEST_TORCH = "{}.{}".format(*OLDEST)
OLDEST_ULTRALYTICS = "8.3"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that a user may want to know.

    Attributes:
        text: What it is.
        command: What mends it; empty for a note.
        is_problem: Whether something that should work does not.
    """

    text: str
    command: str
    is_problem: bool = True


def find(machine: Machine, probes: dict[str, dict[str, Any]]) -> list[Finding]:
    """Return what is wrong, causes before what follows from them, which is left out where the cause is told.

    Args:
        machine: What was found without importing anything.
        probes: What each section of the probe found; an `error` in place of it where it failed.
    """
    torch_problems = list(_about_torch(machine, probes))
    if any(problem.is_problem for problem in torch_problems):
        return torch_problems
    return [
        *torch_problems,
        *_about_operator(machine, probes),
        *_about_gpu(machine, probes),
        *_about_yolo(machine, probes),
    ]


def _about_torch(machine: Machine, probes: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    version, error = machine.versions["torch"], probes["torch"].get("error", "")
    newest = f"{_pip()} install --upgrade 'torch>={OLDEST_TORCH}' torchvision"
    if machine.torch_is_old:
        yield Finding(f"torch {version or ''} is older than {OLDEST_TORCH}, which the operator needs", newest)
    elif "No module named 'torch'" in error:
        yield Finding("torch is not installed", f"{_pip()} install 'torch>={OLDEST_TORCH}' torchvision")
    elif error:
        again = f"torch=={version.partition('+')[0]}" if version else f"'torch>={OLDEST_TORCH}'"
        yield Finding(f"torch does not import: {error}", f"{_pip()} install --force-reinstall {again} torchvision")


def _about_operator(machine: Machine, probes: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    asked_for_torch = machine.settings.get("YOLO_DCNV4_BACKEND") == "torch"
    own_library = "YOLO_DCNV4_LIBRARY" in machine.settings
    build = f"unset YOLO_DCNV4_LIBRARY; {_build(machine)}" if own_library else _build(machine)
    operator = probes["operator"]
    absent = operator.get("absent", "")
    if "error" in operator:
        yield Finding(f"the operator does not load: {operator['error']}", f"{build} force=1")
    elif asked_for_torch:
        yield Finding("YOLO_DCNV4_BACKEND=torch keeps the compiled operator out", "", is_problem=False)
    elif "no compiled library" in absent and own_library:
        yield Finding(f"YOLO_DCNV4_LIBRARY names no file: {machine.library}", "unset YOLO_DCNV4_LIBRARY")
    elif "no compiled library" in absent:
        yield Finding("the operator is not compiled; the slow PyTorch reference serves", build)
    elif absent:
        yield Finding(_first_letter_small(absent), f"{build} force=1")
    elif machine.library_is_stale and not own_library:
        text = "the compiled operator is of other sources, or of another compiler or torch, than here now; it serves"
        yield Finding(text, build, is_problem=False)
    for device, outcome in probes["self_test"].get("devices", {}).items():
        if not outcome["passed"]:
            reason = outcome.get("error") or (
                f"relative error {outcome['forward']:.1e} forward, {outcome['backward']:.1e} backward"
            )
            mend = f"{build} force=1" if not absent else f"{_pip()} install --force-reinstall torch"
            yield Finding(f"the operator fails its self-test on {device}: {reason}", mend)
    if "error" in probes["self_test"] and "error" not in operator:
        yield Finding(f"the self-test does not run: {probes['self_test']['error']}", f"{build} force=1")


def _about_gpu(machine: Machine, probes: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    gpus, operator = probes["torch"].get("gpus", []), probes["operator"]
    if machine.capabilities and not gpus:
        yield _unseen_gpu(machine, probes["torch"])
    absent = operator.get("absent", "")
    # for all of them: the library must go on serving the others
    arch = ",".join(sorted({gpu["capability"] for gpu in gpus}, key=float))
    for index, gpu in enumerate(gpus):
        served = operator.get("devices", {}).get(f"cuda:{index}", {})
        # without any library this is no matter of the GPU
        if served.get("name") == "cuda" or absent or "error" in operator:
            continue
        yield Finding(
            f"{gpu['name']} (compute capability {gpu['capability']}) runs the slow PyTorch reference: "
            f"{served.get('reason', 'it was not examined')}",
            f"{_build(machine)} cuda=1 arch={arch}",
        )


def _unseen_gpu(machine: Machine, torch: dict[str, Any]) -> Finding:
    listed = ", ".join(machine.capabilities)
    seen = f"the driver shows a GPU of compute capability {listed}, torch does not"
    if machine.torch_cuda is None:
        return Finding(
            f"{seen}: this torch is built without CUDA",
            f"{_pip()} install --force-reinstall torch torchvision  # a build for CUDA, see pytorch.org",
        )
    if machine.driver_cuda and _major(machine.torch_cuda) > _major(machine.driver_cuda):
        return Finding(
            f"{seen}: torch is built for CUDA {machine.torch_cuda}, the driver serves {machine.driver_cuda}",
            f"update the NVIDIA driver, or install a torch built for CUDA {_major(machine.driver_cuda)}",
        )
    said = "; ".join(torch.get("warnings", [])) or "it does not say why"
    return Finding(f"{seen}: {said}", f'{_python()} -c "import torch; torch.cuda.init()"')


def _about_yolo(machine: Machine, probes: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    yolo = probes["yolo"]
    if "error" in yolo:
        yield _yolo_error(machine, yolo["error"])
        return
    if "error" in probes["operator"]:
        return  # the blocks need it
    warned = [text for text in yolo["warnings"] if "yolo_dcnv4" in text]
    refused = yolo.get("import_error", "") or "; ".join(warned)
    if refused:
        yield Finding(
            f"the blocks cannot be registered with ultralytics {yolo['version']}: {refused.splitlines()[0]}",
            f"{_pip()} install 'ultralytics>={OLDEST_ULTRALYTICS}'",
        )
    elif not yolo["by_itself"] and machine.autoload_off:
        yield Finding(
            f"{machine.autoload_off} switches registration off: `yolo` does not know the blocks, `yolo-dcnv4 train` "
            "and yolo_dcnv4.register() do",
            "",
            is_problem=False,
        )
    elif not yolo["by_itself"] and not machine.has_entry_point:
        yield Finding(
            "the package is imported without being installed: `yolo` and worker processes do not know the blocks",
            f"{_pip()} install {f'-e {PACKAGE.parent}' if is_checkout() else 'yolo_dcnv4'}",
        )
    elif not yolo["by_itself"]:
        yield Finding(
            "the entry point is installed, yet importing ultralytics does not register the blocks",
            f"{_pip()} install --force-reinstall --no-deps {f'-e {PACKAGE.parent}' if is_checkout() else 'yolo_dcnv4'}",
        )
    if machine.versions["ultralytics-thop"] is None:
        yield Finding("thop is missing: GFLOPs are shown as 0", f"{_pip()} install ultralytics-thop")


def _yolo_error(machine: Machine, error: str) -> Finding:
    if "No module named 'ultralytics'" in error:
        return Finding("ultralytics is not installed", f"{_pip()} install 'ultralytics>={OLDEST_ULTRALYTICS}'")
    if "torchvision" in error:
        return Finding(
            f"torchvision {machine.versions['torchvision']} does not fit torch {machine.versions['torch']}: {error}",
            f"{_pip()} install --force-reinstall torchvision  # of the same build as torch",
        )
    # OpenCV with windows wants OpenGL of the system, which servers lack
    if "libGL" in error or "libgthread" in error or "cv2" in error:
        return Finding(
            f"OpenCV does not import: {error}",
            f"{_pip()} uninstall -y opencv-python; {_pip()} install opencv-python-headless",
        )
    missing = re.search(r"No module named '([\w.]+)'", error)
    what = missing[1].partition(".")[0] if missing else f"--force-reinstall 'ultralytics>={OLDEST_ULTRALYTICS}'"
    return Finding(f"ultralytics does not import: {error}", f"{_pip()} install {what}")


def _build(machine: Machine) -> str:
    build = "yolo-dcnv4 build" if shutil.which("yolo-dcnv4") else f"{_python()} -m yolo_dcnv4.build"
    return build if machine.can_build else f"sudo apt-get install g++; {_pip()} install ninja; {build}"


def _python() -> str:
    on_path = shutil.which("python")
    return "python" if on_path and Path(on_path).absolute() == Path(sys.executable).absolute() else sys.executable


def _pip() -> str:
    return f"{_python()} -m pip"


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _first_letter_small(text: str) -> str:
    return text[:1].lower() + text[1:]
