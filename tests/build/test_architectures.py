from __future__ import annotations

import pytest

from yolo_dcnv4.build.architectures import Architecture, choose_architectures, parse_architectures
from yolo_dcnv4.build.errors import BuildError

CUDA_13 = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
CUDA_12_4 = [(5, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]


def chosen(request: str | None, supported=CUDA_13, present=()) -> list[str]:
    return [str(architecture) for architecture in choose_architectures(request, supported, present)]


@pytest.mark.parametrize("text", ["9.0,8.6", "8.6;9.0", " 8.6  9.0 ", "9.0,8.6,9.0"])
def test_list_is_sorted_and_without_repetition(text: str):
    assert parse_architectures(text) == (Architecture(8, 6), Architecture(9, 0))


def test_ptx_suffix():
    assert parse_architectures("12.0+ptx") == (Architecture(12, 0, ptx=True),)


@pytest.mark.parametrize(
    ("text", "wrong"), [("9.x", "9.x"), ("8.6,sm_90", "sm_90"), ("90", "90"), ("9.0+SASS", "9.0+SASS")]
)
def test_malformed_entry_is_named(text: str, wrong: str):
    with pytest.raises(BuildError) as caught:
        parse_architectures(text)
    assert str(caught.value).startswith(f"arch={text}: {wrong!r}")
    assert "arch=8.6,9.0+PTX" in str(caught.value)


@pytest.mark.parametrize("text", ["", " , "])
def test_empty_list_is_refused(text: str):
    with pytest.raises(BuildError, match="names no architecture"):
        parse_architectures(text)


def test_gpus_present_are_the_default():
    assert chosen(None, present=[(8, 6), (9, 0)]) == ["8.6", "9.0"]


def test_wide_list_without_gpu_ends_with_ptx_of_the_newest():
    assert chosen(None) == ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]
    assert chosen("wide", supported=CUDA_12_4) == ["7.5", "8.0", "8.6", "8.9", "9.0+PTX"]


def test_quick_build_is_one_architecture_without_gpu():
    assert chosen("quick") == ["7.5"]
    assert chosen("quick", supported=CUDA_12_4) == ["7.5"]
    assert chosen("quick", present=[(9, 0)]) == ["9.0"]


def test_request_goes_before_the_gpus_present():
    assert chosen("8.0", present=[(9, 0)]) == ["8.0"]


def test_native_without_gpu_is_refused():
    with pytest.raises(BuildError, match="arch=native: this machine shows no GPU"):
        chosen("native")


def test_unsupported_request_names_what_the_compiler_does():
    with pytest.raises(BuildError, match=r"arch=8\.0,12\.0: .* for 12\.0; it does for 5\.0, 7\.0, .*, 9\.0"):
        chosen("8.0,12.0", supported=CUDA_12_4)


def test_gpu_newer_than_the_compiler_gets_ptx():
    assert chosen(None, supported=CUDA_12_4, present=[(12, 0)]) == ["9.0+PTX"]


def test_gpu_older_than_the_compiler_is_refused():
    with pytest.raises(BuildError, match=r"no longer compiles for the GPU here, compute capability 7\.0"):
        chosen(None, present=[(7, 0)])


def test_nvcc_flags():
    assert Architecture(9, 0).nvcc_flags() == ["-gencode=arch=compute_90,code=sm_90"]
    assert Architecture(12, 0, ptx=True).nvcc_flags() == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_ptx_covers_the_plain_architecture_and_not_the_reverse():
    assert Architecture(9, 0).is_covered_by(["8.0", "9.0+PTX"])
    assert not Architecture(9, 0, ptx=True).is_covered_by(["9.0"])
    assert not Architecture(8, 6).is_covered_by(["8.0"])
