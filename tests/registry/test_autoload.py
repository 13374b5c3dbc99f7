from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from ultralytics import YOLO

from yolo_dcnv4.registry import autoload as autoload_module
from yolo_dcnv4.registry import register, registered, unregister
from yolo_dcnv4.registry.autoload import autoload
from yolo_dcnv4.registry.pack import PACK

YOLO_COMMAND = ("-c", "import sys; from ultralytics.cfg import entrypoint; sys.argv[0] = 'yolo'; entrypoint()")
REPORT = (
    "import sys, ultralytics.nn.tasks as t; from yolo_dcnv4.registry.autoload import _Finder; "
    "print('known:', hasattr(t, 'C2f_DCNv4'), 'finders:', sum(isinstance(f, _Finder) for f in sys.meta_path))"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, python):
    """`yolo train` with a bare name, in a folder with nothing of ours, in a process of its own."""
    folder = tmp_path_factory.mktemp("empty")
    data = tmp_path_factory.mktemp("data")
    for number in range(2):
        Image.new("RGB", (32, 32), (255 * number, 128, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (data / "data.yaml").write_text(f"path: {data}\ntrain: .\nval: .\nnames: [shape]\n")
    settings = "epochs=1 imgsz=32 batch=2 workers=0 plots=False device=cpu"
    python(
        *YOLO_COMMAND,
        "train",
        "model=yolov8n-dcnv4-backbone.yaml",
        f"data={data}/data.yaml",
        *settings.split(),
        f"project={folder}",  # ultralytics would choose a folder by its settings
        cwd=folder,
    )
    return next(folder.rglob("best.pt"))


def test_yolo_command_trains_a_bare_name_in_an_empty_folder(weights):
    model = YOLO(weights).model
    assert sum(type(m).__name__ == "C2f_DCNv4" for m in model.modules()) == 3
    assert len(model.names) == 1


# restricted loading imports nothing by itself: it needs the registration that the third case turns off
@pytest.mark.parametrize(("safe", "automatic"), [("0", "1"), ("1", "1"), ("0", "0")])
def test_checkpoint_loads_in_a_fresh_process(weights, python, tmp_path, safe, automatic):
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    out = python(
        *YOLO_COMMAND,
        "predict",
        f"model={weights}",
        "source=black.png",
        "imgsz=32",
        "device=cpu",
        f"project={tmp_path}",
        cwd=tmp_path,
        ULTRALYTICS_SAFE_LOAD=safe,
        YOLO_DCNV4_AUTOLOAD=automatic,
    )
    assert "32x32" in out


def test_restricted_loading_in_this_process(hook, weights):
    if not hasattr(hook, "_SafeLoad"):
        pytest.skip("the installed ultralytics has no restricted loading")
    checkpoint, _ = hook.torch_safe_load(weights, safe_only=True)
    assert any(type(m).__name__ == "C2f_DCNv4" for m in checkpoint["model"].modules())


def test_off_by_environment(python, tmp_path):
    assert "known: False finders: 0" in python("-c", REPORT, cwd=tmp_path, YOLO_DCNV4_AUTOLOAD="0")


@pytest.mark.parametrize(
    "first",
    [
        "torch",
        "ultralytics",
        "ultralytics.nn.modules.block",
        "yolo_dcnv4.modules",
        "yolo_dcnv4.modules.block",
        "yolo_dcnv4.ops",
        "yolo_dcnv4.registry.hook",
    ],
)
def test_registered_whatever_is_imported_first(python, tmp_path, first):
    out = python("-W", "error::RuntimeWarning", "-c", f"import {first}; {REPORT}", cwd=tmp_path)
    assert "known: True finders: 0" in out


def test_blocks_alone_register_with_autoload_off(python, tmp_path):
    out = python("-c", f"import yolo_dcnv4.modules; {REPORT}", cwd=tmp_path, YOLO_DCNV4_AUTOLOAD="0")
    assert "known: True" in out


def test_autoload_is_light(python, tmp_path):
    out = python(
        "-c",
        "import sys, time\n"
        "import os, importlib.machinery, types, typing\n"
        "before = set(sys.modules); start = time.perf_counter()\n"
        "from yolo_dcnv4.registry.autoload import autoload\n"
        "autoload()\n"
        "print('ms:', 1e3 * (time.perf_counter() - start)); print('new:', sorted(set(sys.modules) - before))",
        cwd=tmp_path,
    )
    new = out.split("new: ")[1].strip()
    allowed = {"yolo_dcnv4", "yolo_dcnv4._version", "yolo_dcnv4.registry", "yolo_dcnv4.registry.autoload"}
    # an editable install may bring a finder of its own
    assert {name for name in eval(new) if not name.startswith("__editable__")} <= allowed
    assert float(out.split("ms: ")[1].split()[0]) < 50


def test_import_of_torch_does_not_load_ultralytics(python, tmp_path):
    out = python("-c", "import sys, torch; print([m for m in sys.modules if 'ultralytics' in m])", cwd=tmp_path)
    assert out.strip() == "[]"


def test_spawned_worker(python, tmp_path):
    (tmp_path / "spawn.py").write_text(
        "import multiprocessing\n"
        "def work(name):\n"
        "    from ultralytics import YOLO\n"
        "    return type(YOLO(name).model.model[4]).__name__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(work, ('yolov8n-dcnv4-backbone.yaml',)))\n"
    )
    assert python("spawn.py", cwd=tmp_path).strip().endswith("C2f_DCNv4")


def test_failure_warns_loudly_and_breaks_nothing(python, tmp_path):
    (tmp_path / "broken.py").write_text(
        "import yolo_dcnv4.registry.rewrite as rewrite\n"
        "rewrite.rewrite.__code__ = (lambda source, likes, *, version='': 1 / 0).__code__\n"
    )
    out = python(
        "-c", "import broken; from ultralytics import YOLO; YOLO('yolov8n.yaml'); print('alive')", cwd=tmp_path
    )
    assert "alive" in out
    assert "could not register its blocks with ultralytics: ZeroDivisionError" in out
    assert "YOLO_DCNV4_AUTOLOAD=0" in out


@pytest.fixture
def fresh(monkeypatch):
    """autoload as in a process that has not seen ultralytics, with a stand-in for ultralytics.nn.tasks."""
    calls = []
    monkeypatch.setattr(autoload_module, "_register", lambda: calls.append(1))
    monkeypatch.setattr(autoload_module, "TASKS", "stand_in_tasks")
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, autoload_module._Finder)])
    yield calls
    sys.modules.pop("stand_in_tasks", None)


def test_runs_after_the_module_has_been_executed(fresh, tmp_path, monkeypatch):
    (tmp_path / "stand_in_tasks.py").write_text("import sys\nseen = len(sys.modules)\n")
    monkeypatch.syspath_prepend(tmp_path)
    autoload()
    autoload()
    assert len([f for f in sys.meta_path if isinstance(f, autoload_module._Finder)]) == 1 and not fresh
    module = importlib.import_module("stand_in_tasks")
    assert module.seen and fresh == [1]
    assert not any(isinstance(f, autoload_module._Finder) for f in sys.meta_path)
    assert "exec_module" not in vars(module.__spec__.loader) and module.__spec__.loader.get_source("stand_in_tasks")
    importlib.reload(module)
    assert fresh == [1]


def test_torch_imported_first_from_within_the_module(fresh, tmp_path, monkeypatch):
    (tmp_path / "stand_in_tasks.py").write_text(
        "from yolo_dcnv4.registry.autoload import autoload\nautoload()\nimport another_module\nparse_model = 1\n"
    )
    (tmp_path / "another_module.py").write_text("")
    (tmp_path / "later_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("stand_in_tasks")
    assert not fresh
    importlib.import_module("later_module")
    assert fresh == [1]
    assert not any(isinstance(f, autoload_module._Finder) for f in sys.meta_path)


def test_at_once_where_ultralytics_is_loaded(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "stand_in_tasks", types.ModuleType("stand_in_tasks"))
    autoload()
    assert fresh == [1]


def test_a_missing_module_stays_missing(fresh):
    autoload()
    with pytest.raises(ModuleNotFoundError, match="stand_in_tasks"):
        importlib.import_module("stand_in_tasks")
    assert not fresh


def test_never_raises_and_warns_once(monkeypatch):
    def fail(name):
        raise OSError("no such luck")

    monkeypatch.setattr(autoload_module, "_is_loaded", fail)
    monkeypatch.setattr(autoload_module, "_warned", False)
    with pytest.warns(RuntimeWarning, match="OSError: no such luck") as warned:
        autoload()
        autoload()
    assert len(warned) == 1


def test_autoload_does_not_undo_unregister():
    unregister()
    try:
        importlib.import_module("ultralytics.nn.tasks")
        importlib.import_module("yolo_dcnv4.modules")
        assert not registered()
    finally:
        register()
    assert set(registered()) == set(PACK)


def test_torch_calls_the_entry_point():
    from importlib.metadata import entry_points

    values = [entry.value for entry in entry_points(group="torch.backends")]
    assert "yolo_dcnv4.registry.autoload:autoload" in values
    assert Path(torch.__file__).is_file()
