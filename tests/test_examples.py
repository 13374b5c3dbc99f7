from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tables
import ultralytics
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import check_yaml

ROOT = Path(__file__).resolve().parents[1]
DEMO = ["train=8", "val=4", "imgsz=64", "epochs=1", "device=cpu"]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: str, *words: str, folder: Path, status: int = 0) -> str:
    process = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *words],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.returncode == status, process.stdout
    return process.stdout


def test_every_example_is_run_here():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")}
    text = Path(__file__).read_text(encoding="utf-8")
    assert scripts and all(f'"{script}.py"' in text for script in scripts)


def test_train_from_script(tmp_path: Path):
    out = run("train_from_script.py", "epochs=1", "imgsz=64", "train=8", "out=here", folder=tmp_path)
    assert "mAP50 " in out
    assert (tmp_path / "here" / "train" / "weights" / "best.pt").is_file()


def test_register_own_module(tmp_path: Path):
    out = run("register_own_module.py", folder=tmp_path)
    assert "2 GatedConv of 32, 64 channels, strides [4, 8]" in out


def test_compare_variants(tmp_path: Path):
    out = run("compare_variants.py", "imgsz=64", "out=table.json", folder=tmp_path)
    assert re.search(r"fewest parameters: yolov8n-dcnv4-conv\.yaml \(-\d+\.\d % of yolov8n\.yaml\)", out)
    assert len(json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))) == 5


def test_op_alone_learns_the_offset(tmp_path: Path):
    out = run("op_alone.py", folder=tmp_path)
    x, y = map(float, re.search(r"offset \((.+?), (.+?)\)", out).groups())
    assert (x, y) == (pytest.approx(1.5, abs=0.05), pytest.approx(-0.5, abs=0.05))


def test_demo_runs_the_plain_command_and_fails_where_nothing_was_learned(tmp_path: Path):
    out = run("demo.py", f"out={tmp_path / 'demo'}", *DEMO, folder=tmp_path, status=1)
    assert re.findall(r"^\$ yolo (\w+) model=(\S+)", out, re.MULTILINE) == [
        ("train", "yolov8n-dcnv4-backbone.yaml"),
        ("val", str(tmp_path / "demo" / "train" / "weights" / "best.pt")),
        ("predict", str(tmp_path / "demo" / "train" / "weights" / "best.pt")),
    ]
    assert "the model did not learn: mAP50 0.0" in out
    for file in ("train/results.png", "predict/bus.jpg", "predict/zidane.jpg"):
        assert (tmp_path / "demo" / file).is_file()


def test_demo_passes_on_what_was_wrong(tmp_path: Path):
    out = run("demo.py", "epoch=1", folder=tmp_path, status=1)
    assert "demo: unknown argument 'epoch=1'" in out and "Traceback" not in out


def test_demo_reads_map50_from_what_val_prints():
    demo = load("examples/demo.py")
    printed = (
        "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95): 100%\r\n"
        "                   all         40         73      0.604      0.797      0.774      0.614\n"
        "                circle         22         26      0.625      0.885      0.881      0.791\n"
    )
    assert demo.printed_map50(printed) == 0.774
    with pytest.raises(SystemExit, match="no line for all classes"):
        demo.printed_map50("nothing")


same_head = pytest.mark.skipif(not hasattr(Detect, "legacy"), reason="this release gives YOLOv8 the head of YOLO11")


def rows(document: str, part: str = "") -> dict[str, list[str]]:
    """Rows of the tables of models, or of one generated part."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if part:
        text = text[text.index(f"<!-- {part} begin") : text.index(f"<!-- {part} end")]
    found = re.findall(r"^\| `(yolo\w*\{\}\S*\.yaml)` \| [^|]+ \| (.+) \|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


@same_head
def test_readme_table_is_fresh_at_the_smallest_scale():
    shown = rows("README.md", "models")
    assert list(shown) == list(tables.MODELS)
    names = [name for name in shown if check_yaml(name.format("").split("-dcnv4")[0] + ".yaml", hard=False)]
    assert [shown[name][0] for name in names] == tables.cells("n", names)


@same_head
@pytest.mark.slow
def test_tables_are_fresh():
    if ultralytics.__version__ != "8.4.190":
        pytest.skip("docs/models.md tells what 8.4.190 has")
    assert tables.main(["check=1"]) == 0


def test_every_shipped_model_has_its_row():
    shown = rows("docs/models.md")
    shipped = {path.name for path in (ROOT / "model_yamls").iterdir()}
    assert {name for name in shipped if not name.startswith("yolov10")} <= {name.format("") for name in shown}
    # a row has a figure for each scale, and so a file where each scale has its own
    for name in (name for name in shown if name.startswith("yolov10{}-")):
        assert {name.format(scale) for scale in "nsmblx"} <= shipped and len(shown[name]) == 6
    assert all(re.fullmatch(r"\d+\.\d\d M, \d+\.\d", cell) for cells in shown.values() for cell in cells)
    for name, cells in rows("README.md", "models").items():
        assert [cell for cell in shown[name] if cell in cells] == cells, name
    files = rows("README.md", "files")
    assert set(files) == {name for name in shown if "-dcnv4-" in name}
    for name, cells in files.items():
        assert [cell for cell in cells if cell != "-"] == shown[name], name


def test_stale_tables_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(tables, "cell", lambda model: "0.00 M, 0.0")
    monkeypatch.setitem(tables.PAGES["docs/models.md"], "ultralytics", str)
    assert tables.main(["check=1"]) == 1
    assert "stale tables in README.md, docs/models.md" in capsys.readouterr().err


def test_readme_names_only_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:examples|patches|docs)/[\w./-]*\w|\b\w[\w.]*\.(?:md|sh)\b(?!/)", text))
    assert {"make.sh", "CHANGELOG.md", "docs/build.md"} <= named
    assert [name for name in sorted(named) if not any((ROOT / part / name).exists() for part in (".", "docs"))] == []


def test_links_between_documents_lead_somewhere():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/*.md")]
    links = [
        (document, target.split("#")[0])
        for document in documents
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
        if not target.startswith(("http", "#"))
    ]
    assert links
    assert [(document.name, target) for document, target in links if not (document.parent / target).exists()] == []
