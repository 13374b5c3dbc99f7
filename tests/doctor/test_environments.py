"""The doctor in environments that are whole and broken, each a real one: a venv with packages left out or in ruins."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolo_dcnv4.build.folders import library_path
from yolo_dcnv4.build.installed_torch import require_torch
from yolo_dcnv4.build.plan import TORCH_TARGET_VERSION
from yolo_dcnv4.build.toolchain import find_host_compiler
from yolo_dcnv4.ops.library import SCHEMAS
from yolo_dcnv4.registry.checkout import patch_checkout

from ..environments import make_environment

ROOT = Path(__file__).resolve().parents[2]
OLD_TORCH = {"torch/__init__.py": "__version__ = '2.4.1'\n", "torch/version.py": "__version__ = '2.4.1'\ncuda = None\n"}
TORCH = ("torch", "torchgen", "functorch", "torchvision")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="environments are made of symbolic links")

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Runs the doctor in an environment like this one, without some packages, with files of others and settings."""

    def run(*words: str, without: tuple[str, ...] = (), files: dict[str, str] | None = None, **settings: str):
        python = make_environment(tmp_path / "environment", without)
        (site,) = (tmp_path / "environment").glob("lib/python3*/site-packages")
        for name, text in (files or {}).items():
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO_DCNV4_", "TORCH_DEVICE"))}
        done = subprocess.run(
            [python, "-m", "yolo_dcnv4.cli", "doctor", *words],
            env={**kept, "PYTHONPATH": str(ROOT), **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    return run


def problems(text: str) -> list[tuple[str, str]]:
    """The problems of a report, each with the command that mends it."""
    told: list[tuple[str, str]] = []
    for line in text.splitlines():
        label, rest = line[2:16].strip(), line[16:]
        if label == "problem":
            told.append((rest, ""))
        elif label == "mend with" and told:
            told[-1] = (told[-1][0], rest)
        elif told and not label and rest:
            told[-1] = (f"{told[-1][0]} {rest.strip()}", told[-1][1])
    return told


def as_json(text: str) -> dict[str, Any]:
    return json.loads(text)


def test_whole_environment_is_fine(doctor: Doctor):
    status, text = doctor("format=json")
    found = as_json(text)
    assert (status, found["ok"]) == (0, True), found["findings"]
    assert not any(finding["is_problem"] for finding in found["findings"])
    import torch
    import ultralytics

    assert found["torch"]["version"] == torch.__version__
    assert found["registration"]["version"] == ultralytics.__version__
    assert found["registration"]["route"] == "entry point"
    assert "C2f_DCNv4" in found["registration"]["by_itself"]
    assert found["operator"]["devices"]["cpu"]["name"] == "cpu"
    assert found["self_test"]["devices"]["cpu"]["passed"]
    assert 0 < found["self_test"]["devices"]["cpu"]["forward"] < 1e-5


def test_no_torch(doctor: Doctor):
    status, text = doctor(without=TORCH)
    assert status == 1
    ((problem, mend),) = problems(text)
    assert problem == "torch is not installed"
    assert mend.endswith("-m pip install 'torch>=2.10' torchvision")
    assert len(text.splitlines()) < 30


def test_old_torch(doctor: Doctor):
    status, text = doctor(without=TORCH, files=OLD_TORCH)
    assert status == 1
    ((problem, mend),) = problems(text)
    assert problem.startswith("torch ") and problem.endswith("is older than 2.10, which the operator needs")
    assert mend.endswith("-m pip install --upgrade 'torch>=2.10' torchvision")
    assert "2.4.1" in text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "OSError: libcudart.so.12: cannot open"),
        ("import os; os.abort()", "the process was killed by SIGABRT"),
        ("import sys; sys.exit('no licence')", "no licence"),
    ],
    ids=["missing system library", "crash", "exit"],
)
def test_torch_that_does_not_import(code: str, told: str, doctor: Doctor):
    version = "__version__ = '2.11.0'\ncuda = '12.8'\n"
    status, text = doctor(without=TORCH, files={"torch/__init__.py": code, "torch/version.py": version})
    assert status == 1
    ((problem, mend),) = problems(text)
    assert problem.startswith("torch does not import: ") and told in problem
    assert "-m pip install --force-reinstall" in mend


def test_no_ultralytics(doctor: Doctor):
    status, text = doctor("format=json", without=("ultralytics", "ultralytics_thop", "thop"))
    found = as_json(text)
    assert status == 1
    (problem,) = [finding for finding in found["findings"] if finding["is_problem"]]
    assert problem["text"] == "ultralytics is not installed"
    assert problem["command"].endswith("-m pip install 'ultralytics>=8.3'")
    assert found["registration"]["route"] == "none"
    # what does not need ultralytics is examined all the same
    assert found["self_test"]["devices"]["cpu"]["passed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "code", "problem", "mend"),
    [
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open shared object file')",
            "OpenCV does not import: ImportError: libGL.so.1",
            "install opencv-python-headless",
        ),
        (
            "torchvision",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "does not fit torch",
            "install --force-reinstall torchvision",
        ),
    ],
)
def test_package_of_ultralytics_in_ruins(package: str, code: str, problem: str, mend: str, doctor: Doctor):
    status, text = doctor(without=(package,), files={f"{package}/__init__.py": code})
    assert status == 1
    ((told, command),) = problems(text)
    assert problem in told
    assert mend in command


@pytest.mark.slow
def test_no_thop(doctor: Doctor):
    status, text = doctor(without=("thop", "ultralytics_thop"))
    assert status == 1
    assert problems(text) == [("thop is missing: GFLOPs are shown as 0", problems(text)[0][1])]
    assert problems(text)[0][1].endswith("-m pip install ultralytics-thop")


def test_missing_library(doctor: Doctor, tmp_path: Path):
    status, text = doctor(YOLO_DCNV4_LIBRARY=str(tmp_path / "nowhere.so"))
    assert status == 1
    assert problems(text) == [
        (f"YOLO_DCNV4_LIBRARY names no file: {tmp_path / 'nowhere.so'}", "unset YOLO_DCNV4_LIBRARY")
    ]
    assert "PyTorch reference, because no compiled library" in text


def test_library_for_another_processor(doctor: Doctor, tmp_path: Path):
    library = bytearray(library_path().read_bytes())
    assert library[:4] == b"\x7fELF"
    library[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    (tmp_path / "other.so").write_bytes(library)
    status, text = doctor(YOLO_DCNV4_LIBRARY=str(tmp_path / "other.so"))
    assert status == 1
    ((problem, mend),) = problems(text)
    assert problem.startswith(f"the compiled library {tmp_path / 'other.so'} does not load")
    assert "build force=1" in mend
    assert "self-test passed" in " ".join(text.split())


@pytest.mark.slow
def test_library_of_an_older_version(doctor: Doctor, tmp_path: Path):
    torch = require_torch().folder
    names = ("dcnv4", "dcnv4_backward")
    defined = "".join(f'm.def("{name}{SCHEMAS[name]}");' for name in names)
    source = tmp_path / "older.cpp"
    source.write_text(f"#include <torch/csrc/stable/library.h>\nSTABLE_TORCH_LIBRARY(yolo_dcnv4, m) {{ {defined} }}\n")
    flags = ["-std=c++17", "-shared", "-fPIC", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    where = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
    library = tmp_path / "older.so"
    subprocess.run([*find_host_compiler().command, *flags, source, "-o", library, *where], check=True)
    status, text = doctor(YOLO_DCNV4_LIBRARY=str(library))
    assert status == 1
    ((problem, mend),) = problems(text)
    assert problem.startswith("the operator does not load: AttributeError: ") and "dcnv4_packed" in problem
    assert mend.startswith("unset YOLO_DCNV4_LIBRARY; ") and mend.endswith("build force=1")


def test_library_that_crashes_is_survived(doctor: Doctor, tmp_path: Path):
    source = tmp_path / "crash.c"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n")
    compiler = find_host_compiler().command
    subprocess.run([*compiler, "-x", "c", "-shared", "-fPIC", source, "-o", tmp_path / "crash.so"], check=True)
    status, text = doctor("format=json", YOLO_DCNV4_LIBRARY=str(tmp_path / "crash.so"))
    found = as_json(text)
    assert status == 1
    (problem,) = [finding for finding in found["findings"] if finding["is_problem"]]
    assert problem["text"] == "the operator does not load: the process was killed by SIGABRT"
    assert problem["command"].startswith("unset YOLO_DCNV4_LIBRARY; ")
    # the sections after the crash ran without the library
    assert found["self_test"]["devices"]["cpu"]["passed"]
    assert found["registration"]["route"] == "entry point"


@pytest.mark.slow
def test_switched_off_is_a_wish_and_no_problem(doctor: Doctor):
    status, text = doctor(YOLO_DCNV4_AUTOLOAD="0", YOLO_DCNV4_BACKEND="torch")
    assert status == 0
    assert "off by YOLO_DCNV4_AUTOLOAD; an import of yolo_dcnv4.modules registers: Bottleneck_DCNv4" in " ".join(
        text.split()
    )
    assert "YOLO_DCNV4_BACKEND=torch keeps the compiled operator out" in text
    assert "no problem found" in text


@pytest.mark.slow
def test_package_that_is_not_installed(doctor: Doctor, tmp_path: Path):
    distribution = next(Path(folder) for folder in sys.path if list(Path(folder).glob("yolo_dcnv4-*.dist-info")))
    names = {entry.name.split("-")[0].split(".")[0] for entry in distribution.glob("*yolo_dcnv4*")}
    # the package alone: what an installation leaves beside it in a checkout counts as one there
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "yolo_dcnv4").symlink_to(ROOT / "yolo_dcnv4")
    status, text = doctor(without=tuple(names), PYTHONPATH=str(tmp_path / "alone"))
    assert status == 1
    ((problem, mend),) = problems(text)
    assert "imported without being installed" in problem
    assert mend.endswith(f"-m pip install -e {ROOT}")
    assert "inactive until a process imports yolo_dcnv4.modules" in text


@pytest.mark.slow
def test_unsupported_ultralytics(doctor: Doctor, tmp_path: Path):
    import ultralytics

    copy = tmp_path / "ultralytics"
    shutil.copytree(Path(ultralytics.__file__).parent, copy)
    tasks = copy / "nn" / "tasks.py"
    tasks.write_text(re.sub(r"\bC2f\b", "C2x", tasks.read_text(encoding="utf-8")), encoding="utf-8")
    modules = copy / "nn" / "modules" / "__init__.py"
    modules.write_text(modules.read_text(encoding="utf-8") + "\nC2x = C2f\n", encoding="utf-8")
    status, text = doctor(PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert status == 1
    assert "cannot be registered with ultralytics" in problems(text)[0][0]
    assert problems(text)[0][1].endswith("-m pip install 'ultralytics>=8.3'")


@pytest.mark.slow
def test_patched_checkout(doctor: Doctor, tmp_path: Path):
    import ultralytics

    shutil.copytree(Path(ultralytics.__file__).parent, tmp_path / "ultralytics")
    patch_checkout(tmp_path)
    # works without the entry point
    status, text = doctor("format=json", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", YOLO_DCNV4_AUTOLOAD="0")
    found = as_json(text)
    assert (status, found["registration"]["route"]) == (0, "patched checkout")
    assert "C2f_DCNv4" in found["registration"]["by_itself"]


def test_wrong_argument(doctor: Doctor):
    assert doctor("format=xml")[0] == 2
