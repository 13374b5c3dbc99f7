from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from yolo_dcnv4.build.architectures import Architecture
from yolo_dcnv4.build.installed_torch import InstalledTorch
from yolo_dcnv4.build.ninja import first_error, ninja_text
from yolo_dcnv4.build.plan import Plan
from yolo_dcnv4.build.toolchain import HostCompiler, Nvcc

NVCC = Nvcc(Path("/cuda/bin/nvcc"), (13, 0), ((8, 0), (9, 0)), (Path("/cuda/include"),), (Path("/cuda/lib"),))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "my sources"
    for name in (
        "dcnv4.cpp",
        "cpu/dcnv4_cpu.cpp",
        "cpu/dcnv4_kernel.cpp",
        "cuda/dcnv4_cuda.cpp",
        "cuda/dcnv4_kernel.cu",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}\n")
    return folder


@pytest.fixture
def plan(sources: Path) -> Plan:
    torch = InstalledTorch("2.15.0+cu132", "13.2", Path("/site/torch"))
    return Plan(sources, torch, HostCompiler(("g++",), "g++ 12"), None, ())


@pytest.fixture
def cuda_plan(plan: Plan) -> Plan:
    return replace(plan, nvcc=NVCC, architectures=(Architecture(8, 0), Architecture(9, 0, ptx=True)))


@pytest.mark.parametrize(
    ("machine", "kernels"),
    [("x86_64", ["baseline", "avx2", "avx512"]), ("aarch64", ["baseline"])],
)
def test_kernels_are_compiled_for_each_instruction_set(machine: str, kernels: list[str], plan: Plan, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    objects = [step.object for step in plan.compilations]
    assert objects == ["dcnv4.cpp.o", "cpu/dcnv4_cpu.cpp.o", *(f"cpu/dcnv4_kernel.cpp.{name}.o" for name in kernels)]
    for step, name in zip(plan.compilations[2:], kernels, strict=True):
        assert f"-DDCNV4_ISA={name}" in step.extra_flags
        assert any(flag.startswith("-mavx") for flag in step.extra_flags) is (name != "baseline")
    assert ("-DDCNV4_X86_KERNELS" in plan.cxx_flags) is (machine == "x86_64")


def test_no_flag_ties_the_library_to_this_machine(cuda_plan: Plan):
    flags = [*cuda_plan.cxx_flags, *cuda_plan.nvcc_flags, *cuda_plan.link_flags]
    assert not any("native" in flag or "rpath" in flag or "fast-math" in flag for flag in flags)


def test_without_nvcc_nothing_of_cuda_is_left(plan: Plan):
    assert "cuda" not in ninja_text(plan, "library.so").replace("cu132", "").replace("cuda_src", "").lower()


def test_with_nvcc_cuda_is_in(cuda_plan: Plan):
    steps = {step.object: step for step in cuda_plan.compilations}
    assert steps["cuda/dcnv4_kernel.cu.o"].compiler == "nvcc"
    assert steps["cuda/dcnv4_cuda.cpp.o"].compiler == "cxx"
    assert steps["cuda/dcnv4_cuda.cpp.o"].extra_flags == ("-isystem", "/cuda/include")
    for flags in (cuda_plan.cxx_flags, cuda_plan.nvcc_flags):
        assert {"-DYOLO_DCNV4_WITH_CUDA=1", "-DUSE_CUDA"} <= set(flags)
    assert "-gencode=arch=compute_90,code=compute_90" in cuda_plan.nvcc_flags
    assert f"--threads={min(3, os.cpu_count() or 1)}" in cuda_plan.nvcc_flags
    assert {"-L/cuda/lib", "-lcudart_static"} <= set(cuda_plan.link_flags)


def test_both_compilers_target_the_same_stable_abi(cuda_plan: Plan):
    for flags in (cuda_plan.cxx_flags, cuda_plan.nvcc_flags):
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in flags


def test_paths_with_spaces_are_escaped(plan: Plan, sources: Path):
    text = ninja_text(plan, "library.so")
    assert str(sources / "dcnv4.cpp").replace(" ", "$ ") in text
    assert f"'-I{sources}'" in text


def test_fingerprint_follows_what_decides_the_result(plan: Plan, sources: Path):
    before = plan.fingerprint()
    assert replace(plan).fingerprint() == before
    assert replace(plan, torch=replace(plan.torch, version="2.16.0")).fingerprint() != before
    assert replace(plan, compiler=HostCompiler(("g++",), "g++ 13")).fingerprint() != before
    (sources / "cuda" / "dcnv4_kernel.cu").write_text("// another\n")
    assert plan.fingerprint() != before


def test_fingerprint_does_not_depend_on_places(plan: Plan, tmp_path: Path):
    moved = plan.sources.rename(tmp_path / "elsewhere")
    same = replace(plan, sources=moved, torch=replace(plan.torch, folder=Path("/other/torch")))
    before = same.fingerprint()
    moved.rename(plan.sources)
    assert plan.fingerprint() == before


def test_fingerprint_leaves_cuda_to_the_coverage_test(plan: Plan, cuda_plan: Plan):
    assert cuda_plan.fingerprint() == plan.fingerprint()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "[1/2] g++ a.cpp\nFAILED: [code=1] a.o \ng++ -Werror a.cpp\nIn file included from x:\n"
            "a.cpp:3:5: error: 'x' was not declared\na.cpp:4:1: error: second\nninja: build stopped\n",
            "a.cpp:3:5: error: 'x' was not declared",
        ),
        (
            "[1/2] nvcc a.cu\nFAILED: a.o \nnvcc a.cu\nnvcc fatal   : Unsupported gpu architecture 'compute_50'\n",
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
        ),
        (
            "FAILED: l.so \ng++ a.o\n/usr/bin/ld: cannot find -lcudart_static: No such file or directory\n"
            "collect2: error\n",
            "/usr/bin/ld: cannot find -lcudart_static: No such file or directory",
        ),
        ("FAILED: a.o \nfalse\nsomething odd\n", "something odd"),
        ("", "no output"),
    ],
    ids=["gcc", "nvcc", "linker", "unknown", "silent"],
)
def test_first_error(output: str, expected: str):
    assert first_error(output) == expected
