from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolo_dcnv4.build.lock import one_at_a_time

HOLD = """
import sys
from pathlib import Path
from yolo_dcnv4.build.lock import one_at_a_time
folder = Path(sys.argv[1])
with one_at_a_time(folder):
    print("held", flush=True)
    sys.stdin.readline()
    (folder / "first").touch()
"""

TAKE = """
import sys
from pathlib import Path
from yolo_dcnv4.build.lock import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("first is done" if (Path(sys.argv[1]) / "first").exists() else "too early", flush=True)
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_second_build_waits_and_says_so(tmp_path: Path):
    folder = tmp_path / "deep" / "work"
    with start(HOLD, folder) as first:
        assert first.stdout.readline() == "held\n"
        with start(TAKE, folder) as second:
            told = second.stderr.readline()
            assert told == f"another build works in {folder}; waiting for it to end ...\n"
            assert second.poll() is None
            first.stdin.write("go\n")
            first.stdin.flush()
            assert second.stdout.read() == "first is done\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_killed_build_locks_nobody_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with start(HOLD, tmp_path) as first:
        first.stdout.readline()
        first.kill()
    with one_at_a_time(tmp_path):
        pass
    assert capsys.readouterr().err == ""
