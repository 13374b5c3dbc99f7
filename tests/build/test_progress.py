from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from yolo_dcnv4.build import ninja, progress
from yolo_dcnv4.build.errors import CompileError
from yolo_dcnv4.build.progress import Progress
from yolo_dcnv4.build.toolchain import find_ninja

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is built on Linux only")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """The line as it stands on the screen: what follows the last carriage return, up to the erasing."""
        return self.getvalue().rpartition("\r")[2].partition("\x1b[K")[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_terminal_shows_one_line_that_is_written_over(clock: list[float]):
    terminal = Terminal()
    shown = Progress(terminal)
    shown.tell("[1/3] cpu/dcnv4.cpp.o\n")
    assert terminal.screen() == "[1/3] cpu/dcnv4.cpp.o (0 s)"
    clock[0] += 7
    shown.tell("a.cpp:3: warning: unused\n")
    assert terminal.screen() == "[1/3] cpu/dcnv4.cpp.o (0 s)"
    shown.tick()
    assert terminal.screen() == "[1/3] cpu/dcnv4.cpp.o (7 s)"
    shown.finish()
    assert terminal.screen() == "" and "\n" not in terminal.getvalue()


def test_terminal_line_never_wraps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    Progress(terminal).tell(f"[1/3] {'x' * 100}\n")
    assert len(terminal.screen()) == 29


def test_elsewhere_each_step_is_a_line_and_the_clock_is_silent(clock: list[float]):
    stream = io.StringIO()
    shown = Progress(stream)
    shown.tell("[1/2] a.o\n")
    clock[0] += 2
    shown.tick()
    shown.tell("[2/2] library.so\n")
    shown.finish()
    assert stream.getvalue() == "[1/2] a.o (0 s)\n[2/2] library.so (2 s)\n"


def write_steps(folder: Path, *commands: str) -> None:
    lines = ["rule run", "  command = $command", "  description = $out"]
    for index, command in enumerate(commands):
        after = f" step{index - 1}" if index else ""
        lines += [f"build step{index}: run{after}", f"  command = {command}"]
    (folder / "build.ninja").write_text("\n".join([*lines, ""]))


def test_status_of_ninja_reaches_the_screen_and_everything_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # a status of the user's own would not be understood
    monkeypatch.setenv("NINJA_STATUS", "%p ")
    write_steps(tmp_path, "echo loud words && touch step0", "touch step1")
    ninja.run_ninja(find_ninja(), tmp_path, 1, tmp_path / "log", verbose=False)
    told = capsys.readouterr().err
    assert [line.partition(" (")[0] for line in told.splitlines()] == ["[1/2] step0", "[2/2] step1"]
    assert "loud words" in (tmp_path / "log").read_text()


def test_clock_goes_on_while_a_compiler_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(ninja.sys, "stderr", terminal)
    monkeypatch.setattr(ninja, "TICK_SECONDS", 0.02)
    write_steps(tmp_path, "sleep 0.5 && touch step0")
    ninja.run_ninja(find_ninja(), tmp_path, 1, tmp_path / "log", verbose=False)
    assert terminal.getvalue().count("\rcompiling (") >= 5


def test_failure_tells_the_first_error_and_keeps_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_steps(tmp_path, "echo first error: no such thing && echo second error && false")
    with pytest.raises(CompileError) as caught:
        ninja.run_ninja(find_ninja(), tmp_path, 1, tmp_path / "log", verbose=False)
    assert caught.value.first_error == "first error: no such thing"
    assert "second error" in caught.value.log.read_text()
    assert "second error" not in capsys.readouterr().err


def test_verbose_shows_commands_and_output_as_they_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_steps(tmp_path, "printf 'no newline'; touch step0")
    ninja.run_ninja(find_ninja(), tmp_path, 1, tmp_path / "log", verbose=True)
    told = capsys.readouterr().err
    assert "[1/1] printf 'no newline'; touch step0" in told
    assert told == (tmp_path / "log").read_text()
