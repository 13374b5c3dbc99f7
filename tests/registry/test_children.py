from __future__ import annotations

import json
import os

from ultralytics.nn.modules import C2f

from yolo_dcnv4.registry import register_module, unregister
from yolo_dcnv4.registry.children import VARIABLE

BLOCKS = """
from ultralytics.nn.modules import C2f
class Geometry:
    pass
class OwnC2f(C2f):
    geometry = None
class Holder:
    class OwnInnerC2f(C2f):
        pass
"""
CHILD = (
    "import copy, torch, ultralytics.nn.tasks as t\n"
    "config = t.yaml_model_load('yolov8n.yaml')\n"
    "config['backbone'][4][2] = 'OwnC2f'; config['backbone'][6][2] = 'OwnInnerC2f'\n"
    "model = t.DetectionModel(config, verbose=False)\n"
    "print([type(m).__name__ for m in model.model[4:7]], [c.__name__ for c in torch.serialization.get_safe_globals()])"
)


class AnnouncedC2f(C2f):
    pass


def test_child_registers_what_the_parent_registered(python, tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "own").mkdir(parents=True)
    elsewhere.mkdir()
    (source / "own" / "__init__.py").write_text("")
    (source / "own" / "blocks.py").write_text(BLOCKS)
    (source / "train.py").write_text(
        "import subprocess, sys\n"
        "import own.blocks as own\n"
        "from yolo_dcnv4 import register_module\n"
        "register_module(own.OwnC2f, helpers=[own.Geometry]); register_module(own.Holder.OwnInnerC2f, like='OwnC2f')\n"
        f"sys.exit(subprocess.run([sys.executable, '-c', {CHILD!r}], cwd={str(elsewhere)!r}).returncode)\n"
    )
    out = python(str(source / "train.py"), cwd=tmp_path)
    assert "['OwnC2f', 'Conv', 'OwnInnerC2f']" in out
    assert "Geometry" in out


def test_only_what_a_child_can_import_is_announced(hook):
    class Local(C2f):
        pass

    register_module(Local)
    register_module(type("Typed", (C2f,), {"__module__": "__main__"}))
    assert VARIABLE not in os.environ
    register_module(AnnouncedC2f, like="C2f")
    entries = json.loads(os.environ[VARIABLE])
    assert list(entries) == [f"{__name__}:AnnouncedC2f"]
    assert entries[f"{__name__}:AnnouncedC2f"]["folder"] == os.path.dirname(os.path.realpath(__file__))
    unregister()
    assert VARIABLE not in os.environ


def test_what_a_child_cannot_import_is_warned_of(python, tmp_path):
    entries = {"nowhere.blocks:OwnC2f": {"like": "C2f", "helpers": [], "folder": None}}
    out = python(
        "-c",
        "import ultralytics.nn.tasks as t; print(t.C2f_DCNv4.__name__, 'alive')",
        cwd=tmp_path,
        **{VARIABLE: json.dumps(entries)},
    )
    assert "C2f_DCNv4 alive" in out
    assert "ImportError: nowhere.blocks:OwnC2f was registered by the parent process" in out


def test_a_file_that_registers_its_own_class(python, tmp_path):
    (tmp_path / "own_blocks.py").write_text(
        "from ultralytics.nn.modules import C2f\nfrom yolo_dcnv4 import register_module\n"
        "@register_module\nclass OwnC2f(C2f):\n    pass\n"
    )
    entries = {"own_blocks:OwnC2f": {"like": "C2f", "helpers": [], "folder": str(tmp_path)}}
    out = python(
        "-W",
        "error::RuntimeWarning",
        "-c",
        "import own_blocks, ultralytics.nn.tasks as t; print(t.OwnC2f is own_blocks.OwnC2f)",
        cwd=tmp_path,
        **{VARIABLE: json.dumps(entries)},
    )
    assert out.strip().endswith("True")
