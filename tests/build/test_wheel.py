"""A release wheel, installed where nothing of this checkout is, does all that the README says."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_dcnv4.build.folders import library_path

from ..environments import THIS_PACKAGE, make_environment
from .test_distribution import CHECKOUT, clone, make, relative_files, unpack

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="libraries are built on Linux"),
    pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="wheels are made from a checkout"),
    pytest.mark.skipif(not library_path().is_file(), reason="needs the compiled library"),
]
MODEL = "yolov8n-dcnv4-backbone.yaml"


def with_library(checkout: Path) -> Path:
    shutil.copytree(library_path().parent, checkout / "yolo_dcnv4" / "lib")
    return checkout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("wheel", with_library(clone(tmp_path_factory.mktemp("release") / "checkout")))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel in it."""
    python = make_environment(tmp_path_factory.mktemp("clean") / "environment", without=THIS_PACKAGE)
    assert run(python, "-c", "import yolo_dcnv4", folder=python.parent, status=1)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), folder=python.parent)
    return python.parent


@pytest.fixture(scope="module")
def trained(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that the plain `yolo train` has written in a folder that was empty."""
    folder = tmp_path_factory.mktemp("empty")
    run(environment / "yolo-dcnv4", "demo-data", "out=shapes", "train=8", "val=4", "imgsz=64", folder=folder)
    settings = ("epochs=1", "imgsz=64", "batch=4", "workers=0", "device=cpu", f"project={folder}", "name=train")
    run(environment / "yolo", "train", f"model={MODEL}", "data=shapes/shapes.yaml", *settings, folder=folder)
    return folder / "train" / "weights" / "best.pt"


def run(program: Path, *words: str, folder: Path, status: int = 0) -> str:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "YOLO_DCNV4_", "TORCH_"))
    }
    # as if the environment were activated
    search = os.pathsep.join((str(program.parent), os.environ["PATH"]))
    done = subprocess.run(
        [program, *words],
        cwd=folder,
        env={**kept, "PATH": search, "YOLO_AUTOINSTALL": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_tag_names_the_oldest_glibc_that_the_library_loads_with(wheel: Path):
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    needs = subprocess.run(
        ["readelf", "--wide", "--version-info", library_path()], capture_output=True, text=True, check=True
    ).stdout
    newest = max(int(minor) for minor in re.findall(r"Name: GLIBC_2\.(\d+)", needs))
    assert wheel.name.endswith(f"-py3-none-manylinux_2_{newest}_{platform.machine()}.whl")


def test_wheel_from_the_sdist_holds_the_same_files(wheel: Path, tmp_path: Path):
    checkout = clone(tmp_path / "checkout")
    shutil.unpack_archive(make("sdist", checkout), tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = make("wheel", with_library(unpacked))
    assert again.name == wheel.name
    assert relative_files(unpack(again)) == relative_files(unpack(wheel))


def test_doctor_finds_nothing_wrong(environment: Path, tmp_path: Path):
    found = json.loads(run(environment / "yolo-dcnv4", "doctor", "format=json", folder=tmp_path))
    assert found["ok"], found["findings"]
    library = Path(found["machine"]["library"])
    assert library.is_relative_to(environment.parent) and library.parent.parent.name == "yolo_dcnv4"
    assert found["operator"]["devices"]["cpu"]["name"] == "cpu"
    assert found["registration"]["route"] == "entry point"


def test_compares_models(environment: Path, tmp_path: Path):
    table = run(environment / "yolo-dcnv4", "compare", f"models=yolov8n.yaml,{MODEL}", "imgsz=64", folder=tmp_path)
    assert re.search(r"^\| yolov8n\.yaml +\|.*\| +3,157,200 \|", table, re.MULTILINE), table
    assert f"| {MODEL} " in table


def test_trains(trained: Path):
    assert trained.is_file()
    assert len((trained.parents[1] / "results.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(("file_format", "suffix"), [("torchscript", ".torchscript"), ("onnx", ".onnx")])
def test_exports(environment: Path, trained: Path, file_format: str, suffix: str):
    if file_format == "onnx":
        for package in ("onnx", "onnxruntime", "onnxslim"):
            pytest.importorskip(package)
    folder = trained.parent
    run(environment / "yolo", "export", "model=best.pt", f"format={file_format}", "imgsz=64", folder=folder)
    settings = (f"source={trained.parents[2] / 'shapes/images/val'}", "imgsz=64", f"project={folder}")
    printed = run(environment / "yolo", "predict", f"model=best{suffix}", *settings, folder=folder)
    assert len(re.findall(r"^image \d/4 ", printed, re.MULTILINE)) == 4


def test_visualizes(environment: Path, trained: Path):
    folder = trained.parents[2]
    words = ("model=train/weights/best.pt", "source=shapes/images/val/00000.jpg", "out=pictures", "imgsz=64")
    run(environment / "yolo-dcnv4", "visualize", *words, folder=folder)
    assert list((folder / "pictures").rglob("*.png"))
