from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

import yolo_dcnv4
from yolo_dcnv4.cli import COMMANDS, Option, UsageError, main, parse_options

OPTIONS = {"out": Option(str), "imgsz": Option((int, list, tuple)), "need": Option(int, required=True)}


def test_is_installed_as_a_command():
    (script,) = entry_points(group="console_scripts", name="yolo-dcnv4")
    assert script.load() is main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["need=3"], {"need": 3}),
        (["need", "=", "3", "imgsz=64"], {"need": 3, "imgsz": 64}),
        (["need=1", "imgsz=[64,32]"], {"need": 1, "imgsz": [64, 32]}),
        (["need=1", "imgsz=64,32"], {"need": 1, "imgsz": (64, 32)}),
        (["need=1", "out=list"], {"need": 1, "out": "list"}),
        (["need=1", "out=12"], {"need": 1, "out": "12"}),
        (["need=1", "out=a=b"], {"need": 1, "out": "a=b"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_reads_ultralytics_key_value_style(words: list[str], expected: dict):
    assert parse_options(words, OPTIONS) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["need=1", "size=3"], r"unknown argument 'size=3'; known: out=, imgsz=, need="),
        (["need=1", "verbose"], r"unknown argument 'verbose'; known: out="),
        (["need=x"], r"need must be int, got 'x'"),
        (["need=True"], r"need must be int, got 'True'"),
        (["need=1", "imgsz=1.5"], r"imgsz must be int or list or tuple, got '1.5'"),
        (["need="], r"need= needs a value"),
        (["out=x"], r"missing need=; known: out="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refuses_wrong_arguments(words: list[str], message: str):
    with pytest.raises(UsageError, match=message):
        parse_options(words, OPTIONS)


def test_unknown_command_ends_with_status_2_and_the_list(capsys: pytest.CaptureFixture[str]):
    assert main(["trian", "model=x.yaml"]) == 2
    printed = capsys.readouterr()
    assert "unknown command 'trian'" in printed.err
    assert all(command in printed.err for command in COMMANDS)


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"]], ids=" ".join)
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.strip() == yolo_dcnv4.__version__


def test_help_loads_neither_torch_nor_ultralytics():
    code = (
        "import sys; from yolo_dcnv4.cli import main; main(['help']); "
        "assert not {'torch', 'ultralytics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_compare_shows_a_table_and_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "table.json"
    models = ["yolov8n.yaml", "yolov8n-dcnv4-neck.yaml"]
    assert main(["compare", f"models={','.join(models)}", "imgsz=64", f"out={out}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| model") and f"written to {out}" in shown
    assert [row["model"] for row in json.loads(out.read_text(encoding="utf-8"))] == models


def test_demo_data_writes_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "set"
    assert main(["demo-data", f"out={out}", "train=2", "val=1", "imgsz=32", "seed=4"]) == 0
    assert (out / "shapes.yaml").is_file()
    assert len(list(out.glob("images/*/*.jpg"))) == 3
    assert str(out / "shapes.yaml") in capsys.readouterr().out


def test_build_passes_its_arguments_on(capsys: pytest.CaptureFixture[str]):
    assert main(["build", "colour=blue"]) != 0
    assert "unknown argument 'colour=blue'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["compare"], 2, "missing models="),
        (["compare", "models=yolov8n-nowhere.yaml"], 2, "yolov8n-nowhere.yaml"),
        (["compare", "models=yolov8n.yaml", "format=xml"], 2, "format must be one of"),
        (["demo-data", "train=3"], 2, "missing out="),
        (["demo-data", "out={file}"], 1, "is a file"),
        (["train", "modle=yolov8n.yaml"], 2, "modle"),
        (["train", "model=yolov8n-nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "model=yolov8n-dcnv4-neck.yaml", "data=x.yaml", "epochs=many"], 2, "epochs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_of_the_user_are_told_in_a_line(
    words: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.touch()
    assert main([word.format(file=file) for word in words]) == status
    assert message in capsys.readouterr().err


def test_package_that_does_not_import_leads_to_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "ultralytics.cfg", None)
    assert main(["compare", "models=yolov8n.yaml"]) == 1
    told = capsys.readouterr().err
    assert "ultralytics.cfg" in told and "`yolo-dcnv4 doctor` says what mends it" in told and "Traceback" not in told


def test_hands_modes_on_to_ultralytics(tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "picture with spaces.png")
    command = [sys.executable, "-m", "yolo_dcnv4.cli", "predict", "model=yolov8n-dcnv4-backbone.yaml"]
    words = ["source=picture with spaces.png", "imgsz=64", "device=cpu", f"project={tmp_path}", "name=seen"]
    subprocess.run([*command, *words], cwd=tmp_path, check=True)
    # older releases keep the suffix, newer ones write .jpg
    assert len(list((tmp_path / "seen").glob("picture*"))) == 1
