from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolo_dcnv4.build import environment
from yolo_dcnv4.build.errors import BuildError
from yolo_dcnv4.build.installed_torch import InstalledTorch


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "setup.py").write_text("")
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    return tmp_path


@pytest.fixture
def pip_calls(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run; all of them succeed."""
    calls = []

    def call(command: list[str], **_) -> subprocess.CompletedProcess:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(environment.subprocess, "run", call)
    return calls


def pip_installs(calls: list[list[str]]) -> list[list[str]]:
    return [command for command in calls if command[1:4] == ["-m", "pip", "install"]]


def test_old_torch_stops_before_pip_and_names_the_choices(pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "find_torch", lambda: InstalledTorch("2.9.1+cu128", "12.8", Path()))
    with pytest.raises(BuildError) as caught:
        environment.set_up()
    assert pip_calls == []
    for word in ("torch 2.9.1+cu128", "torch >= 2.10", "--upgrade", "deactivate", "use another environment"):
        assert word in str(caught.value)


def test_installed_torch_is_pinned(checkout: Path, pip_calls: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    versions = {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "setuptools": "80.1"}
    monkeypatch.setattr(environment, "_version", versions.get)
    environment.set_up(["test"])
    (command,) = pip_installs(pip_calls)
    assert command[-3:] == ["-e", f"{checkout}[test]", "--no-build-isolation"]
    constraints = Path(command[command.index("-c") + 1])
    assert constraints.read_text() == "torch==2.13.0+cpu\ntorchvision==0.28.0+cpu\n"


@pytest.mark.parametrize("setuptools", [None, "65.5.0"])
def test_users_setuptools_is_not_replaced(setuptools: str | None, pip_calls: list[list[str]], monkeypatch):
    monkeypatch.setattr(environment, "_version", {"setuptools": setuptools}.get)
    environment.set_up()
    (command,) = pip_installs(pip_calls)
    assert "--no-build-isolation" not in command


def test_second_call_does_nothing(pip_calls: list[list[str]]):
    environment.set_up(["test"])
    pip_calls.clear()
    environment.set_up(["test"])
    environment.set_up()
    assert pip_calls == []


@pytest.mark.parametrize("change", ["extras", "metadata", "installed package"])
def test_what_makes_pip_run_again(change: str, checkout: Path, pip_calls: list[list[str]], monkeypatch):
    site = checkout / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    environment.set_up()
    pip_calls.clear()
    if change == "metadata":
        (checkout / "pyproject.toml").write_text("[project]\ndependencies = ['more']\n")
    if change == "installed package":
        (site / "numpy-1.0.dist-info").mkdir()
    environment.set_up(["test"] if change == "extras" else [])
    assert len(pip_installs(pip_calls)) == 1


def test_compiler_fetched_by_the_build_does_not_make_pip_run_again(checkout: Path, pip_calls, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(checkout)])
    environment.set_up()
    pip_calls.clear()
    (checkout / "nvidia_cuda_nvcc-13.2.86.dist-info").mkdir()
    environment.set_up()
    assert pip_calls == []


def test_failing_pip_shows_the_end_of_its_log(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    script = "import sys; [print('line', i) for i in range(40)]; print('no such package'); sys.exit(1)"
    talkative = [sys.executable, "-c", script]
    run = subprocess.run
    monkeypatch.setattr(environment.subprocess, "run", lambda command, **options: run(talkative, **options))
    with pytest.raises(BuildError) as caught:
        environment.set_up()
    assert "no such package" in str(caught.value)
    assert "line 39" in str(caught.value) and "line 1\n" not in str(caught.value)
    assert "line 1\n" in (checkout / "build" / "pip.log").read_text()
    assert not list((checkout / "build").glob("environment-*"))


def test_no_pip(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "refuse_old_torch", lambda: None)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"no pip in .*ensurepip"):
        environment.set_up()


@pytest.mark.parametrize(
    ("module", "words"),
    [("torchvision", "does not fit torch"), ("cv2", "opencv-python-headless")],
)
def test_what_keeps_ultralytics_from_running(module: str, words: str, pip_calls, monkeypatch, capsys):
    monkeypatch.setattr(environment, "import_error", lambda name: "ImportError: broken" if name == module else "")
    environment.set_up()
    warning = capsys.readouterr().err
    assert "warning: " in warning and words in warning
    with pytest.raises(BuildError, match="ImportError: broken") as caught:
        environment.set_up(needs_yolo=True)
    assert words in str(caught.value)


def test_torch_that_does_not_import(pip_calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "import_error", lambda name: "OSError: libcudart" if name == "torch" else "")
    with pytest.raises(BuildError, match="is installed but does not import: OSError: libcudart"):
        environment.set_up()


def test_opencv_is_replaced_in_the_environment_that_is_ours(checkout: Path, pip_calls, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(checkout / ".venv"))
    monkeypatch.setattr(environment, "_version", {"opencv-python": "5.0.0.93"}.get)
    errors = {"cv2": ["ImportError: libGL.so.1", ""]}
    monkeypatch.setattr(environment, "import_error", lambda name: errors[name].pop(0) if name in errors else "")
    environment.set_up()
    assert [sys.executable, "-m", "pip", "uninstall", "-y", "opencv-python"] in pip_calls
    assert pip_installs(pip_calls)[-1][-1] == "opencv-python-headless==5.0.0.93"


def testimport_error_is_the_last_line_of_a_fresh_process(checkout: Path):
    (checkout / "build").mkdir()
    assert environment.import_error("json") == ""
    assert environment.import_error("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"
