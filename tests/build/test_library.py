from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolo_dcnv4.build import folders, library
from yolo_dcnv4.build.architectures import Architecture
from yolo_dcnv4.build.command import run
from yolo_dcnv4.build.driver import Driver
from yolo_dcnv4.build.errors import BuildError, CompileError, NoCompilerError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is built on Linux only")

OPERATOR = """
#include <torch/csrc/stable/library.h>
#include "cpu/kernel.h"
int64_t dcnv4(int64_t x) { return baseline::dcnv4(x); }
STABLE_TORCH_LIBRARY(yolo_dcnv4, m) { m.def("dcnv4(int x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(yolo_dcnv4, CompositeExplicitAutograd, m) { m.impl("dcnv4", TORCH_BOX(&dcnv4)); }
"""
KERNEL_HEADER = "#include <cstdint>\nnamespace baseline { int64_t dcnv4(int64_t x); }\n"
KERNEL = '#include "kernel.h"\nnamespace DCNV4_ISA { int64_t dcnv4(int64_t x) { return 2 * x; } }\n'


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A small operator with its own sources, work folder and place for the library."""
    sources = tmp_path / "cuda_src"
    (sources / "cpu").mkdir(parents=True)
    (sources / "dcnv4.cpp").write_text(OPERATOR)
    (sources / "cpu" / "kernel.h").write_text(KERNEL_HEADER)
    (sources / "cpu" / "dcnv4_kernel.cpp").write_text(KERNEL)
    monkeypatch.setattr(library, "data_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(folders, "work_folder", lambda: tmp_path / "work")
    monkeypatch.setattr(folders, "output_folder", lambda: tmp_path / "lib")
    monkeypatch.delenv(library.ARCHS_VARIABLE, raising=False)
    monkeypatch.setattr(library, "installed_driver", lambda: None)
    return SimpleNamespace(
        kernel=sources / "cpu" / "dcnv4_kernel.cpp",
        operator=sources / "dcnv4.cpp",
        library=tmp_path / "lib" / folders.LIBRARY_NAME,
        description=tmp_path / "lib" / "build.json",
    )


def test_errors_name_places_in_the_sources(small: SimpleNamespace, tmp_path: Path):
    checked = OPERATOR.replace("return baseline", 'STD_TORCH_CHECK(x > 0, "x must be positive"); return baseline')
    small.operator.write_text(checked)
    built = library.build(cuda=False).library.read_bytes()
    assert b"cuda_src/dcnv4.cpp\0" in built
    assert str(tmp_path).encode() not in built


def test_build_and_what_makes_it_stale(small: SimpleNamespace):
    first = library.build(cuda=False)
    assert first.compiled
    assert first.library == small.library
    description = json.loads(small.description.read_text())
    assert description == first.description
    assert description["cuda"] is None
    assert description["architectures"] == []
    assert {path.name for path in small.library.parent.iterdir()} == {folders.LIBRARY_NAME, "build.json"}

    assert not library.build(cuda=False).compiled
    small.kernel.write_text(KERNEL.replace("2 * x", "3 * x"))
    built = small.library.read_bytes()
    assert library.build(cuda=False).compiled
    assert small.library.read_bytes() != built
    small.description.write_text("{")
    assert library.build(cuda=False).compiled


def test_two_builds_at_once_work_one_after_the_other(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    running: list[Path] = []

    def compile_alone(_ninja: str, work: Path, *_: object) -> None:
        assert running == []
        running.append(work)
        time.sleep(0.2)
        (work / folders.LIBRARY_NAME).write_bytes(b"library")
        running.remove(work)

    monkeypatch.setattr(library, "run_ninja", compile_alone)
    monkeypatch.setattr(library, "_check_loads", lambda *_: None)
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(library.build, cuda=False) for _ in range(2)]
        assert sorted(result.result().compiled for result in results) == [False, True]


def test_failing_compiler_keeps_the_library_and_tells_the_first_error(small: SimpleNamespace, capsys):
    library.build(cuda=False)
    working = small.library.read_bytes(), small.description.read_bytes()
    small.kernel.write_text(KERNEL.replace("2 * x", "2 * unknown_name + another"))
    with pytest.raises(CompileError) as caught:
        library.build(cuda=False)
    assert "dcnv4_kernel.cpp" in caught.value.first_error
    assert "unknown_name" in caught.value.first_error
    assert "another" in caught.value.log.read_text()
    assert (small.library.read_bytes(), small.description.read_bytes()) == working
    assert run(["cuda=0"]) == 1
    told = capsys.readouterr()
    assert "unknown_name" in told.err and str(caught.value.log) in told.err
    assert told.out.startswith("build failed; CPU: ")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (OPERATOR.replace('m.def("dcnv4(int x) -> int");', 'm.def("dcnv4(int x -> int");'), "does not load into torch"),
        (OPERATOR.replace("return baseline::dcnv4(x)", "int64_t other(int64_t); return other(x)"), "other"),
    ],
    ids=["malformed schema", "undefined symbol"],
)
def test_library_that_torch_cannot_load_does_not_take_the_place(broken: str, reason: str, small: SimpleNamespace):
    library.build(cuda=False)
    working = small.library.read_bytes()
    small.operator.write_text(broken)
    with pytest.raises(CompileError, match=reason):
        library.build(cuda=False)
    assert small.library.read_bytes() == working


def test_no_compiler(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NoCompilerError):
        library.build()
    assert run([]) == 3
    assert capsys.readouterr().out.startswith("not built: no C++ compiler found")


def test_untested_platform(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(NoCompilerError, match="building on darwin is untested"):
        library.build()


def test_missing_sources(small: SimpleNamespace):
    small.operator.unlink()
    with pytest.raises(BuildError, match=r"no dcnv4\.cpp in "):
        library.build(cuda=False)


def test_contradiction_between_cuda_and_architectures(small: SimpleNamespace):
    with pytest.raises(BuildError, match=r"arch=9\.0 asks for CUDA and cuda=0 for none"):
        library.build(cuda=False, archs="9.0")


def no_nvcc(*_):
    raise BuildError("no nvcc that fits")


def test_cuda_that_cannot_be_had(small: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "require_nvcc", no_nvcc)
    with pytest.raises(BuildError, match="no nvcc that fits"):
        library.build(cuda=True)
    monkeypatch.setenv(library.ARCHS_VARIABLE, "9.0")
    with pytest.raises(BuildError, match="no nvcc that fits"):
        library.build()
    monkeypatch.delenv(library.ARCHS_VARIABLE)
    result = library.build(cuda="try")
    assert result.notes == ("no CUDA part: no nvcc that fits",)
    assert result.description["cuda"] is None


@pytest.mark.parametrize(
    ("cuda", "driver", "reason"),
    [("13.2", None, "this machine shows no GPU"), (None, Driver((13, 0), ((9, 0),)), "is built without CUDA")],
    ids=["no GPU", "CPU torch"],
)
def test_nvcc_is_not_looked_for_without_use(cuda, driver, reason: str, small, monkeypatch: pytest.MonkeyPatch):
    torch = library.require_torch()
    monkeypatch.setattr(library, "require_torch", lambda: library.InstalledTorch(torch.version, cuda, torch.folder))
    monkeypatch.setattr(library, "installed_driver", lambda: driver)
    monkeypatch.setattr(library, "require_nvcc", lambda *_: pytest.fail("nvcc was looked for"))
    (note,) = library.build().notes
    assert reason in note


@pytest.mark.parametrize(
    ("installed", "asked", "without_cuda", "only_has_to_compile", "covered"),
    [
        ((None, []), None, False, False, True),
        (("13.0", ["9.0"]), None, False, False, True),
        (("13.0", ["9.0"]), None, True, False, False),
        ((None, []), ["9.0"], False, False, False),
        (("13.0", ["8.0", "9.0+PTX"]), ["9.0"], False, False, True),
        (("13.0", ["8.0"]), ["9.0"], False, False, False),
        (("13.0", ["8.0"]), ["9.0"], False, True, True),
        (("12.8", ["9.0"]), ["9.0"], False, False, False),
    ],
    ids=[
        "CPU alone",
        "more than asked for",
        "cuda=0 after CUDA",
        "CUDA after CPU",
        "PTX on top",
        "another GPU",
        "only has to compile",
        "another toolkit",
    ],
)
def test_what_an_installed_library_covers(installed, asked, without_cuda, only_has_to_compile, covered: bool):
    nvcc = SimpleNamespace(version="13.0") if asked else None
    architectures = tuple(Architecture(*map(int, text.split("."))) for text in asked or ())
    plan = SimpleNamespace(nvcc=nvcc, architectures=architectures, fingerprint=lambda: "same")
    description = {"fingerprint": "same", "cuda": installed[0], "architectures": installed[1]}
    assert library._covers(description, plan, without_cuda, only_has_to_compile) is covered
    assert not library._covers({**description, "fingerprint": "other"}, plan, without_cuda, only_has_to_compile)


@pytest.mark.parametrize(("wish", "jobs"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_default_jobs(wish: str, jobs: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAX_JOBS", wish)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert library._default_jobs() == (jobs or 5)
