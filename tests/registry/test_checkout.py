from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ultralytics.nn.tasks as tasks

from yolo_dcnv4 import cli
from yolo_dcnv4.registry import checkout as checkout_module
from yolo_dcnv4.registry.checkout import main, patch_checkout
from yolo_dcnv4.registry.errors import RegistrationError
from yolo_dcnv4.registry.pack import PACK

SCRIPT = Path(__file__).parents[2] / "patches" / "apply.py"


@pytest.fixture
def checkout(tmp_path):
    file = tmp_path / "ultralytics" / "nn" / "tasks.py"
    file.parent.mkdir(parents=True)
    file.write_bytes(Path(inspect.getsourcefile(tasks)).read_bytes())
    (tmp_path / "ultralytics" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    return tmp_path, file


def test_patch_and_revert(checkout):
    folder, file = checkout
    before = file.read_bytes()
    diff = patch_checkout(folder)
    patched = file.read_bytes()
    removed, added = ([line for line in diff.split("\n") if line.startswith(sign)][1:] for sign in "-+")
    assert len(removed) == 9 and len(added) == 9 + 6
    assert all(any(name in line for line in added) for name in PACK)
    compile(patched, file, "exec")
    assert patch_checkout(folder) == "" and file.read_bytes() == patched
    assert patch_checkout(folder, revert=True)
    assert file.read_bytes() == before
    assert patch_checkout(folder, revert=True) == "" and file.read_bytes() == before


def test_line_ends_stay(checkout):
    folder, file = checkout
    before = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(before)
    patch_checkout(folder)
    assert b"\r\n" in file.read_bytes() and b"\n" not in file.read_bytes().replace(b"\r\n", b"")
    patch_checkout(folder, revert=True)
    assert file.read_bytes() == before


def test_later_additions_survive_patch_and_revert(checkout):
    folder, file = checkout
    before = file.read_bytes()
    patch_checkout(folder)
    with file.open("ab") as stream:
        stream.write(b"\nEXTRA = 1\n")
    assert patch_checkout(folder) == ""
    patch_checkout(folder, revert=True)
    assert file.read_bytes() == before + b"\nEXTRA = 1\n"


def test_revert_refuses_what_it_cannot_tell_apart(checkout):
    folder, file = checkout
    patch_checkout(folder)
    edited = file.read_text().replace("C2f, C2f_DCNv4,", "C2f_DCNv4, C2f,")
    file.write_text(edited)
    with pytest.raises(RegistrationError, match="version control"):
        patch_checkout(folder, revert=True)
    assert file.read_text() == edited


def test_changed_beyond_recognition_changes_nothing(checkout, capsys):
    folder, file = checkout
    file.write_text("def parse_model(d, ch):\n    return LISTS\n")
    assert main([str(folder)]) == 2
    assert "9.9.9" in capsys.readouterr().err
    assert file.read_text() == "def parse_model(d, ch):\n    return LISTS\n"


def test_options(checkout, capsys):
    folder, file = checkout
    before = file.read_bytes()
    assert main([str(folder), "--check"]) == 1
    assert main([str(folder), "--diff"]) == 0
    assert "+from yolo_dcnv4.modules.conv import DCNv4Conv" in capsys.readouterr().out
    assert file.read_bytes() == before
    assert main([str(folder)]) == 0 and file.read_bytes() != before
    assert main([str(folder), "--check"]) == 0
    assert main([str(folder), "--check", "--revert"]) == 1
    assert main([str(folder), "--revert"]) == 0 and file.read_bytes() == before


def test_key_value_style(checkout, capsys):
    folder, file = checkout
    before = file.read_bytes()
    assert cli.main(["patch", str(folder), "check=1"]) == 1
    assert cli.main(["patch", str(folder), "diff=1", "check=0"]) == 0
    assert "+from yolo_dcnv4.modules.conv import DCNv4Conv" in capsys.readouterr().out
    assert file.read_bytes() == before
    assert cli.main(["patch", str(folder)]) == 0 and file.read_bytes() != before
    assert cli.main(["patch", str(folder), "revert=True"]) == 0 and file.read_bytes() == before
    capsys.readouterr()
    for wrong in (["patch"], ["patch", str(folder), "check=yes"], ["patch", str(folder), "chck=1"]):
        assert cli.main(wrong) == 2
        assert "yolo-dcnv4 patch: error:" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_release_without_c3k2(checkout, capsys):
    folder, file = checkout
    before = re.sub(r"\bC3k2\b", "C2f", file.read_text())
    file.write_text(before)
    assert main([str(folder)]) == 0
    assert "C3k2_DCNv4 (no C3k2)" in capsys.readouterr().err
    patched = file.read_text()
    assert "C2f_DCNv4" in patched and "C3k2" not in patched
    assert main([str(folder), "--revert"]) == 0 and file.read_text() == before


def test_patch_of_an_earlier_version_is_brought_up_to_date(checkout, monkeypatch):
    folder, file = checkout
    before = file.read_bytes()
    earlier = {name: like for name, like in PACK.items() if name != "C2f_DCNv4"}
    with monkeypatch.context() as patch:
        patch.setattr(checkout_module, "PACK", earlier)
        patch_checkout(folder)
    assert b"C2f_DCNv4" not in file.read_bytes()
    patch_checkout(folder)
    updated = file.read_bytes()
    assert updated.count(b"# blocks of yolo_dcnv4") == 1
    patch_checkout(folder, revert=True)
    assert file.read_bytes() == before
    patch_checkout(folder)
    assert sorted(updated) == sorted(file.read_bytes())


def test_no_checkout(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "root of a source checkout" in capsys.readouterr().err


def test_script_runs_without_torch(checkout):
    folder, file = checkout
    # -S and -I: neither site-packages nor the working directory are on the path
    done = subprocess.run([sys.executable, "-I", "-S", SCRIPT, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{file}: patched"


@pytest.mark.parametrize(
    ("first", "autoload"),
    [("ultralytics.nn.tasks", "0"), ("yolo_dcnv4.modules", "1"), ("yolo_dcnv4.modules.conv", "0")],
)
def test_patched_ultralytics_imports_in_every_order(tmp_path, python, first, autoload):
    package = Path(tasks.__file__).parents[1]
    # links, so that only tasks.py is a copy
    for source in package.iterdir():
        target = tmp_path / "ultralytics" / source.name
        target.parent.mkdir(exist_ok=True)
        if source.name != "nn":
            target.symlink_to(source)
    for source in (package / "nn").iterdir():
        target = tmp_path / "ultralytics" / "nn" / source.name
        target.parent.mkdir(exist_ok=True)
        if source.name == "tasks.py":
            target.write_bytes(source.read_bytes())
        elif source.name != "__pycache__":
            target.symlink_to(source)
    patch_checkout(tmp_path)
    out = python(
        "-c",
        f"import {first}\n"
        "import ultralytics.nn.tasks as t, yolo_dcnv4.registry as r\n"
        f"assert t.__file__.startswith({str(tmp_path)!r})\n"
        "row = lambda m: dict(backbone=[[-1, 1, m, [8]]], head=[])\n"
        "build = lambda m: type(t.parse_model(row(m), 3, verbose=False)[0][0]).__name__\n"
        "a = build('C2f_DCNv4'); r.unregister(); print(a, build('DCNv4Conv'), build('Conv'))",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
        YOLO_DCNV4_AUTOLOAD=autoload,
    )
    assert out.strip().split("\n")[-1] == "C2f_DCNv4 DCNv4Conv Conv"
