from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yolo_dcnv4.build import toolchain
from yolo_dcnv4.build.driver import Driver
from yolo_dcnv4.build.errors import BuildError, NoCompilerError
from yolo_dcnv4.build.installed_torch import InstalledTorch

FAKE_NVCC = """#!/bin/sh
case $1 in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  --list-gpu-arch) printf 'compute_80\\ncompute_90\\ncompute_120\\n' ;;
  --dryrun) echo '#$ TOP={root}' >&2 ;;
esac
"""


def make_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_toolkit(root: Path, release: str = "13.0", executable: Path | None = None) -> Path:
    for file in (root / "include" / "cuda_runtime.h", root / "lib" / "libcudart_static.a"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return make_executable(executable or root / "bin" / "nvcc", FAKE_NVCC.format(release=release, root=root))


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXX", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])


@pytest.fixture
def three_toolkits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    return {
        "home": make_toolkit(tmp_path / "home", "12.8"),
        "path": make_toolkit(tmp_path / "toolkit", "13.0", tmp_path / "path" / "nvcc"),
        "pip": make_toolkit(tmp_path / "site" / "nvidia" / "cu13", "13.2"),
    }


def torch_for(cuda: str | None) -> InstalledTorch:
    return InstalledTorch("2.15.0", cuda, Path("torch"))


def test_cuda_home_goes_before_path_and_pip(three_toolkits: dict[str, Path]):
    nvcc, passed_over = toolchain.find_nvcc(None)
    assert nvcc.path == three_toolkits["home"]
    assert passed_over == []


def test_path_goes_before_pip(three_toolkits: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_HOME")
    assert toolchain.find_nvcc(None)[0].path == three_toolkits["path"]


def test_pip_is_last(three_toolkits: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_HOME")
    three_toolkits["path"].unlink()
    nvcc, _ = toolchain.find_nvcc(None)
    assert nvcc.path == three_toolkits["pip"]
    assert nvcc.release == (13, 2)
    assert nvcc.supported == ((8, 0), (9, 0), (12, 0))


def test_toolkit_behind_a_wrapper_on_path_is_found(three_toolkits: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.delenv("CUDA_HOME")
    nvcc, _ = toolchain.find_nvcc(None)
    assert nvcc.include_folders == (tmp_path / "toolkit" / "include",)
    assert nvcc.library_folders == (tmp_path / "toolkit" / "lib",)


def test_broken_cuda_home_is_passed_over_and_named(three_toolkits: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    nvcc, passed_over = toolchain.find_nvcc(None)
    assert nvcc.path == three_toolkits["path"]
    assert passed_over == ["CUDA_HOME=/nonexistent: holds no bin/nvcc"]


def test_nvcc_that_does_not_run_is_passed_over(three_toolkits: dict[str, Path]):
    make_executable(three_toolkits["home"], "#!/bin/sh\nexit 1\n")
    nvcc, passed_over = toolchain.find_nvcc(None)
    assert nvcc.path == three_toolkits["path"]
    assert passed_over[0].endswith("does not run")


def test_toolkit_newer_than_the_driver_is_passed_over(three_toolkits: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit-14"))
    make_toolkit(tmp_path / "toolkit-14", "14.0")
    nvcc, passed_over = toolchain.find_nvcc(Driver((13, 0), ((9, 0),)))
    assert nvcc.path == three_toolkits["path"]
    assert "nvcc 14.0 is newer than the driver's CUDA 13" in passed_over[0]


def test_later_minor_version_than_the_drivers_serves(three_toolkits: dict[str, Path]):
    three_toolkits["path"].unlink()
    three_toolkits["home"].unlink()
    assert toolchain.find_nvcc(Driver((13, 0), ((9, 0),)))[0].release == (13, 2)


def test_old_nvcc_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    make_toolkit(tmp_path / "home", "11.8")
    nvcc, passed_over = toolchain.find_nvcc(None)
    assert nvcc is None
    assert "nvcc 11.8 is too old, expected 12.0 or newer" in passed_over[0]


def test_nvcc_is_fetched_in_the_version_that_torch_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    asked = []

    def install(requirement: str, log: Path) -> None:
        asked.append(requirement)
        make_toolkit(tmp_path / "site" / "nvidia" / "cu13", "13.2")

    monkeypatch.setattr(toolchain, "pinned_toolkit", lambda: "13.2.2")
    monkeypatch.setattr(toolchain, "_pip_install", install)
    nvcc, _ = toolchain.require_nvcc(torch_for("13.2"), None, tmp_path / "fetch.log")
    assert nvcc.version == "13.2"
    assert asked == ["cuda-toolkit[nvcc,nvvm,crt,cccl,cudart]==13.2.2"]
    assert "fetching" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cuda", "pinned", "driver", "message"),
    [
        (None, None, None, "built without CUDA, tells no version to fetch"),
        ("12.8", None, None, "PyPI has none for torch 2.15.0: install a CUDA toolkit, set CUDA_HOME"),
        ("13.2", "13.2.2", Driver((12, 4), ((9, 0),)), "torch 2.15.0 wants 13.2, the driver serves 12"),
    ],
    ids=["CPU torch", "CUDA 12 torch", "old driver"],
)
def test_nothing_is_fetched_that_could_not_serve(cuda, pinned, driver, message: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(toolchain, "pinned_toolkit", lambda: pinned)
    monkeypatch.setattr(toolchain, "_pip_install", lambda *_: pytest.fail("pip was run"))
    with pytest.raises(BuildError) as caught:
        toolchain.require_nvcc(torch_for(cuda), driver, tmp_path / "fetch.log")
    assert "looked at CUDA_HOME, PATH and pip's packages" in str(caught.value)
    assert message in str(caught.value)


def test_host_compiler_of_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_executable(tmp_path / "path" / "g++", "#!/bin/sh\necho the one on PATH\n")
    own = make_executable(tmp_path / "mine", "#!/bin/sh\necho $1 my compiler\n")
    assert toolchain.find_host_compiler().version == "the one on PATH"
    monkeypatch.setenv("CXX", f"{own} -flag")
    assert toolchain.find_host_compiler() == toolchain.HostCompiler((str(own), "-flag"), "-flag my compiler")


def test_clang_serves_where_there_is_no_gcc(tmp_path: Path):
    clang = make_executable(tmp_path / "path" / "clang++", "#!/bin/sh\necho clang version 19\n")
    assert toolchain.find_host_compiler().command == (str(clang),)


def test_no_host_compiler():
    with pytest.raises(NoCompilerError, match=r"no C\+\+ compiler found"):
        toolchain.find_host_compiler()


def test_broken_compiler_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(BuildError, match=r"CXX=/nonexistent/g\+\+ does not run"):
        toolchain.find_host_compiler()
