from __future__ import annotations

from pathlib import Path

import pytest

from yolo_dcnv4.build import folders


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("YOLO_DCNV4_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders.sys, "platform", "linux")
    monkeypatch.setattr(folders, "PACKAGE", tmp_path / "site" / "yolo_dcnv4")
    folders.PACKAGE.mkdir(parents=True)
    return folders.PACKAGE


def make_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # permission bits do not stop root, who runs tests in containers
    monkeypatch.setattr(folders.os, "access", lambda path, mode: not Path(path).is_relative_to(folder))


def test_installed_package_builds_into_itself(package: Path, tmp_path: Path):
    assert folders.output_folder() == package / "lib"
    assert folders.work_folder().is_relative_to(tmp_path / "cache" / "yolo_dcnv4")


def test_checkout_builds_under_its_build_folder(package: Path):
    (package.parent / "pyproject.toml").touch()
    (package.parent / "cuda_src").mkdir()
    assert folders.work_folder() == package.parent / "build" / "ops"
    assert folders.output_folder() == package / "lib"


def test_read_only_package_builds_into_the_cache(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_read_only(tmp_path / "site", monkeypatch)
    assert folders.output_folder().is_relative_to(tmp_path / "cache" / "yolo_dcnv4")
    assert folders.library_path() == folders.output_folder() / folders.LIBRARY_NAME


def test_library_shipped_in_a_read_only_package_is_used(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shipped = package / "lib" / folders.LIBRARY_NAME
    shipped.parent.mkdir()
    shipped.touch()
    make_read_only(tmp_path / "site", monkeypatch)
    assert folders.library_path() == shipped


def test_override(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("YOLO_DCNV4_LIBRARY", "/elsewhere/ops.so")
    assert folders.library_path() == Path("/elsewhere/ops.so")
