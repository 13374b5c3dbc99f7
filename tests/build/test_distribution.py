from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from yolo_dcnv4.build.folders import LIBRARY_NAME
from yolo_dcnv4.locate import PACKAGE

CHECKOUT = PACKAGE.parent
NOT_IN_A_CLONE = (".git", ".venv", "build", "dist", "lib", "runs", "demo", "*.egg-info", "__pycache__")

pytestmark = pytest.mark.skipif(not (CHECKOUT / "setup.py").is_file(), reason="distributions are made from a checkout")

# without site-packages, where the package under test may be installed too
LOCATE = """
import site, sys
site.addsitedir(sys.argv[1])
from yolo_dcnv4.locate import data_folder
for name in ("model_yamls", "cuda_src"):
    print(data_folder(name))
assert "torch" not in sys.modules
"""


def clone(folder: Path) -> Path:
    """Copy the checkout as a clone would be: nothing built."""
    shutil.copytree(CHECKOUT, folder, ignore=shutil.ignore_patterns(*NOT_IN_A_CLONE))
    # `build` is the name of a package too
    for name in ("yolo_dcnv4/build", "tests/build"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return clone(tmp_path / "checkout")


def make(kind: str, folder: Path) -> Path:
    """Make a distribution through setuptools' own hooks, as pip does: `wheel`, `sdist` or `editable`."""
    output = folder.parent / kind
    output.mkdir()
    # an import hook in place of an installed torch: the package is made without it
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = output.iterdir()
    return made


def unpack(wheel: Path) -> Path:
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def located(site: Path) -> list[Path]:
    command = [sys.executable, "-I", "-S", "-c", LOCATE, str(site)]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def relative_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_data_is_inside(site: Path, checkout: Path) -> None:
    assert located(site) == [site / "yolo_dcnv4" / "model_yamls", site / "yolo_dcnv4" / "cuda_src"]
    for name in ("model_yamls", "cuda_src"):
        assert relative_files(site / "yolo_dcnv4" / name) == relative_files(checkout / name)
    assert (site / "yolo_dcnv4" / "cuda_src" / "dcnv4.cpp").is_file()
    assert list((site / "yolo_dcnv4" / "model_yamls").glob("*.yaml"))


def test_wheel_holds_the_data_folders(checkout: Path):
    wheel = make("wheel", checkout)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert_data_is_inside(unpack(wheel), checkout)


def test_wheel_from_the_sdist_is_the_same(checkout: Path):
    shutil.unpack_archive(make("sdist", checkout), checkout.parent / "unpacked")
    (unpacked,) = (checkout.parent / "unpacked").iterdir()
    for name in ("make.sh", "pyproject.toml", "tests/conftest.py", "tests/build/test_distribution.py", "LICENSE"):
        assert (unpacked / name).is_file(), name
    assert_data_is_inside(unpack(make("wheel", unpacked)), checkout)


def test_editable_install_finds_the_checkout(checkout: Path):
    site = unpack(make("editable", checkout))
    assert located(site) == [checkout / "model_yamls", checkout / "cuda_src"]
    assert not (checkout / "yolo_dcnv4" / "model_yamls").exists()


def test_wheel_with_a_library_is_tagged_for_its_platform(checkout: Path):
    lib = checkout / "yolo_dcnv4" / "lib"
    lib.mkdir()
    for name in (LIBRARY_NAME, "build.json"):
        (lib / name).write_text("{}")
    wheel = make("wheel", checkout)
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert relative_files(unpack(wheel) / "yolo_dcnv4" / "lib") == {LIBRARY_NAME, "build.json"}


def test_file_removed_from_the_checkout_leaves_the_next_wheel(checkout: Path):
    passing = checkout / "model_yamls" / "passing.yaml"
    passing.touch()
    shutil.rmtree(make("wheel", checkout).parent)
    passing.unlink()
    assert not (unpack(make("wheel", checkout)) / "yolo_dcnv4" / "model_yamls" / "passing.yaml").exists()
