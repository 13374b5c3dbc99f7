"""The benchmarks run, and say so where they cannot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yolo_dcnv4.ops import backend

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(backend("cpu").name != "cpu", reason="needs the compiled CPU operator")
def test_cpu_writes_table_json_and_plot(tmp_path: Path):
    figures, picture = tmp_path / "cpu.json", tmp_path / "cpu.png"
    done = run("cpu.py", "--rounds", 1, "--threads", 1, "--dtypes", "float32", "--json", figures, "--plot", picture)
    assert done.returncode == 0, done.stderr
    document = json.loads(figures.read_text())
    assert document["machine"]["torch"] == torch.__version__
    assert {row["pass"] for row in document["rows"]} == {"forward", "backward"}
    assert all(row["ours ms"] > 0 and row["torchvision / ours"] > 0 for row in document["rows"])
    assert done.stdout.count("\n") == 2 + len(document["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(backend("cpu").name != "cpu", reason="needs the compiled CPU operator")
def test_launch_compares_calls_with_a_trivial_operator(tmp_path: Path):
    figures = tmp_path / "launch.json"
    done = run("launch.py", "--device", "cpu", "--rounds", 1, "--dtypes", "float32", "--json", figures)
    assert done.returncode == 0, done.stderr
    rows = json.loads(figures.read_text())["rows"]
    assert [row["gradients"] for row in rows] == ["no_grad", "recorded"]
    assert all(row["dcnv4 / trivial"] == row["dcnv4"] / row["trivial"] > 0 for row in rows)
    assert done.stdout.count("\n") == 2 + len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["op.py", "model.py"])
def test_without_a_gpu_there_is_nothing_to_measure(name: str):
    done = run(name)
    assert done.returncode == 1
    assert "no compiled CUDA kernels to measure" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_there_is_nothing_to_launch_there():
    done = run("launch.py")
    assert done.returncode == 1
    assert "no compiled operator for cuda to measure" in done.stderr
