"""What is made of findings that this machine cannot show: GPUs, drivers, compilers."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from yolo_dcnv4.doctor import findings
from yolo_dcnv4.doctor.examination import Examination
from yolo_dcnv4.doctor.findings import Finding, find
from yolo_dcnv4.doctor.machine import Machine
from yolo_dcnv4.doctor.report import WIDTH, route, to_text

MACHINE = Machine(
    python=("3.12.4", "/venv/bin/python"),
    platform="Linux x86_64",
    versions={
        "yolo_dcnv4": "0.1.0",
        "torch": "2.11.0+cu130",
        "torchvision": "0.26.0",
        "ultralytics": "8.4.190",
        "ultralytics-thop": "2.2.3",
    },
    torch_is_old=False,
    torch_cuda="13.0",
    driver="580.65.06",
    driver_cuda="13.0",
    capabilities=("9.0",),
    nvcc=("13.0", "/usr/local/cuda/bin/nvcc"),
    nvcc_passed_over=(),
    compiler="g++ 12.2.0",
    can_build=True,
    library="/venv/lib/yolo_dcnv4_ops.so",
    library_built={"torch": "2.11.0", "cuda": "13.0", "architectures": ["9.0"], "date": "2026-11-21T06:00:00"},
    library_is_stale=False,
    has_entry_point=True,
    autoload_off=None,
    settings={},
)
PASSED = {"forward": 3e-7, "backward": 5e-7, "seconds": 0.4, "passed": True}
PROBES: dict[str, dict[str, Any]] = {
    "torch": {
        "version": "2.11.0+cu130",
        "cuda": "13.0",
        "gpus": [{"name": "NVIDIA H200", "capability": "9.0"}],
        "warnings": [],
    },
    "operator": {
        "absent": "",
        "devices": {"cpu": {"name": "cpu", "reason": "compiled"}, "cuda:0": {"name": "cuda", "reason": "compiled"}},
        "warnings": [],
    },
    "self_test": {"devices": {"cpu": PASSED, "cuda:0": PASSED}, "warnings": []},
    "yolo": {"version": "8.4.190", "patched": False, "by_itself": ["C2f_DCNv4", "DCNv4Conv"], "warnings": []},
}


@pytest.fixture
def probes() -> dict[str, dict[str, Any]]:
    return deepcopy(PROBES)


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"python": sys.executable, "yolo-dcnv4": "/venv/bin/yolo-dcnv4"}
    monkeypatch.setattr(findings.shutil, "which", where.get)


def served_by_reference(probes: dict[str, dict[str, Any]], reason: str) -> None:
    probes["operator"]["devices"]["cuda:0"] = {"name": "torch", "reason": reason}


def test_nothing_is_wrong(probes: dict[str, dict[str, Any]]):
    assert find(MACHINE, probes) == []
    text = to_text(Examination(MACHINE, probes, ()))
    assert "NVIDIA H200 (9.0)" in text and "580.65.06, serves CUDA 13.0" in text and "CUDA 13.0 for 9.0" in text
    assert "no problem found" in text
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= WIDTH


def test_library_without_cuda_beside_a_gpu(probes: dict[str, dict[str, Any]]):
    served_by_reference(probes, "the compiled library was built without CUDA")
    (finding,) = find(MACHINE, probes)
    assert "NVIDIA H200 (compute capability 9.0) runs the slow PyTorch reference" in finding.text
    assert finding.command == "yolo-dcnv4 build cuda=1 arch=9.0"
    assert not Examination(MACHINE, probes, (finding,)).is_fine


def test_library_for_another_gpu(probes: dict[str, dict[str, Any]]):
    probes["torch"]["gpus"].append({"name": "NVIDIA A40", "capability": "8.6"})
    probes["operator"]["devices"]["cuda:1"] = {
        "name": "torch",
        "reason": "the compiled library does not run on CUDA device 1: no kernel image is available",
    }
    (finding,) = find(MACHINE, probes)
    assert "NVIDIA A40" in finding.text and "no kernel image" in finding.text
    assert finding.command == "yolo-dcnv4 build cuda=1 arch=8.6,9.0"


def test_missing_library_is_one_problem_on_however_many_devices(probes: dict[str, dict[str, Any]]):
    absent = "no compiled library at /venv/lib/yolo_dcnv4_ops.so; build it with `yolo-dcnv4 build`"
    probes["operator"] = {
        "absent": absent,
        "devices": {device: {"name": "torch", "reason": absent} for device in ("cpu", "cuda:0")},
        "warnings": [],
    }
    assert find(MACHINE, probes) == [
        Finding("the operator is not compiled; the slow PyTorch reference serves", "yolo-dcnv4 build")
    ]
    without = find(replace(MACHINE, can_build=False, compiler="no C++ compiler found"), probes)
    assert without[0].command == "sudo apt-get install g++; python -m pip install ninja; yolo-dcnv4 build"


def test_gpu_that_torch_is_not_built_for(probes: dict[str, dict[str, Any]]):
    probes["torch"]["gpus"] = []
    (finding,) = find(replace(MACHINE, torch_cuda=None), probes)
    assert "compute capability 9.0, torch does not: this torch is built without CUDA" in finding.text
    assert "pip install --force-reinstall torch" in finding.command


def test_driver_that_is_too_old_for_torch(probes: dict[str, dict[str, Any]]):
    probes["torch"]["gpus"] = []
    (finding,) = find(replace(MACHINE, driver_cuda="12.4"), probes)
    assert "torch is built for CUDA 13.0, the driver serves 12.4" in finding.text
    assert finding.command == "update the NVIDIA driver, or install a torch built for CUDA 12"


def test_gpu_that_torch_does_not_see_for_a_reason_of_its_own(probes: dict[str, dict[str, Any]]):
    probes["torch"] |= {"gpus": [], "warnings": ["CUDA initialization: out of memory"]}
    (finding,) = find(MACHINE, probes)
    assert "CUDA initialization: out of memory" in finding.text


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (PASSED | {"passed": False, "backward": 0.5}, "relative error 3.0e-07 forward, 5.0e-01 backward"),
        ({"passed": False, "error": "RuntimeError: an illegal memory access"}, "RuntimeError: an illegal memory"),
    ],
    ids=["wrong", "raises"],
)
def test_failed_self_test(outcome: dict[str, Any], told: str, probes: dict[str, dict[str, Any]]):
    probes["self_test"]["devices"]["cuda:0"] = outcome
    (finding,) = find(MACHINE, probes)
    assert "fails its self-test on cuda:0" in finding.text and told in finding.text
    assert finding.command == "yolo-dcnv4 build force=1"
    assert "self-test failed" in to_text(Examination(MACHINE, probes, (finding,)))


def test_library_of_an_older_version_is_told_once(probes: dict[str, dict[str, Any]]):
    error = "AttributeError: '_OpNamespace' 'yolo_dcnv4' object has no attribute 'dcnv4_packed'"
    probes["operator"] = {"error": error, "warnings": []}
    probes["yolo"] |= {"by_itself": [], "import_error": error}
    (finding,) = find(MACHINE, probes)
    assert finding == Finding(f"the operator does not load: {error}", "yolo-dcnv4 build force=1")


def test_stale_library_is_a_note(probes: dict[str, dict[str, Any]]):
    (finding,) = find(replace(MACHINE, library_is_stale=True), probes)
    assert (finding.is_problem, finding.command) == (False, "yolo-dcnv4 build")
    assert Examination(MACHINE, probes, (finding,)).is_fine


def test_warning_of_a_registration_that_failed(probes: dict[str, dict[str, Any]]):
    probes["yolo"] |= {"by_itself": [], "warnings": ["yolo_dcnv4 could not register modules: it has changed"]}
    (finding,) = find(MACHINE, probes)
    assert "cannot be registered with ultralytics 8.4.190: yolo_dcnv4 could not register" in finding.text


@pytest.mark.parametrize(
    ("yolo", "off", "expected"),
    [
        ({"by_itself": ["C2f_DCNv4"], "patched": False}, None, "entry point"),
        ({"by_itself": ["C2f_DCNv4"], "patched": True}, None, "patched checkout"),
        ({"by_itself": [], "by_import": ["C2f_DCNv4"], "patched": False}, None, "import"),
        ({"by_itself": [], "by_import": ["C2f_DCNv4"], "patched": False}, "YOLO_DCNV4_AUTOLOAD", "off"),
        ({"by_itself": [], "import_error": "no", "patched": False}, None, "none"),
        ({"error": "ModuleNotFoundError: No module named 'ultralytics'"}, None, "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_route(yolo: dict[str, Any], off: str | None, expected: str, probes: dict[str, dict[str, Any]]):
    machine = replace(MACHINE, autoload_off=off)
    assert route(Examination(machine, probes | {"yolo": {"warnings": [], **yolo}}, ())) == expected
