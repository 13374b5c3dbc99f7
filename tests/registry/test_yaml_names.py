from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from yolo_dcnv4.locate import data_folder
from yolo_dcnv4.registry import register, unregister, yaml_names

NAME = "yolov8-dcnv4-backbone.yaml"
SCALED = "yolov8n-dcnv4-backbone.yaml"


@pytest.fixture
def anywhere(hook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return hook


def write(path: Path, nc: int) -> Path:
    config = yaml.safe_load((data_folder("model_yamls") / NAME).read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config | {"nc": nc}), encoding="utf-8")
    return path


def test_every_shipped_yaml_is_found_at_every_scale(anywhere):
    names = [file.name for file in data_folder("model_yamls").glob("*.yaml")]
    assert names
    for name in names:
        own = re.match(r"yolov10(\w)-", name)  # each scale of YOLOv10 is a file of its own
        for scale in own[1].replace("b", "") if own else ("", *"nsmlx"):
            scaled = name if own else re.sub(r"^(yolov?\d+)", rf"\g<1>{scale}", name)
            config = anywhere.yaml_model_load(scaled)
            assert config["scale"] == scale and config["yaml_file"] == scaled
    assert anywhere.yaml_model_load("yolov10b-dcnv4-backbone.yaml")["scales"].keys() == {"b"}


def test_bare_name_builds_the_given_scale(anywhere):
    sizes = [
        sum(p.numel() for p in anywhere.DetectionModel(name, verbose=False).parameters())
        for name in (SCALED, SCALED.replace("8n", "8s"))
    ]
    assert sizes[0] * 2 < sizes[1]


@pytest.mark.parametrize("own", [NAME, SCALED])
def test_a_file_in_the_working_directory_wins(anywhere, tmp_path, own):
    write(tmp_path / own, nc=7)
    config = anywhere.yaml_model_load(SCALED)
    assert config["nc"] == 7 and config["scale"] == "n"


@pytest.mark.parametrize("own", [NAME, SCALED])
@pytest.mark.parametrize("folder", ["exp10s", "run3n/sub", "yolo11x"])
def test_folders_that_look_like_scales_are_not_mangled(anywhere, tmp_path, folder, own):
    write(tmp_path / folder / own, nc=7)
    config = anywhere.yaml_model_load(tmp_path / folder / SCALED)
    assert config["nc"] == 7 and config["scale"] == "n"


def test_a_folder_whose_name_is_the_mangled_one_is_not_taken_for_it(anywhere, tmp_path):
    write(tmp_path / "exp10s" / NAME, nc=7)
    write(tmp_path / "exp10" / NAME, nc=8)
    assert anywhere.yaml_model_load(tmp_path / "exp10s" / SCALED)["nc"] == 7


def test_package_installed_in_a_folder_that_looks_like_a_scale(anywhere, tmp_path, monkeypatch):
    folder = tmp_path / "exp10s" / "model_yamls"
    shutil.copytree(data_folder("model_yamls"), folder)
    monkeypatch.setattr(yaml_names, "data_folder", lambda name: folder)
    assert anywhere.yaml_model_load(SCALED)["scale"] == "n"
    assert anywhere.yaml_model_load(folder / SCALED)["scale"] == "n"


def test_shipped_names_are_found_bare_only(anywhere, tmp_path):
    with pytest.raises(FileNotFoundError):
        anywhere.yaml_model_load(tmp_path / "nowhere" / SCALED)


@pytest.mark.parametrize("name", ["yolov8n-dcnv4-nothing.yaml", "nowhere/yolov8n.yaml"])
def test_an_unknown_name_keeps_the_error_of_ultralytics(anywhere, name):
    errors = []
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as error:
            anywhere.yaml_model_load(name)
        errors.append(str(error.value))
        unregister()
    register()
    assert errors[0] == errors[1]
    assert anywhere.check_yaml(Path(name), hard=False) == []


def test_stock_names_are_ultralytics_own(anywhere):
    found = anywhere.check_yaml(Path("yolov8.yaml"))
    assert Path(found).is_relative_to(Path(anywhere.__file__).parents[1])


def test_wrong_suffix_is_still_refused(anywhere):
    with pytest.raises(AssertionError, match="acceptable suffix"):
        anywhere.check_yaml(Path("model.pt"))


def test_missing_data_folder_leaves_ultralytics_as_it_is(anywhere, monkeypatch):
    def missing(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(yaml_names, "data_folder", missing)
    with pytest.raises(FileNotFoundError, match=r"dcnv4-backbone\.yaml"):
        anywhere.yaml_model_load(SCALED)
    assert anywhere.yaml_model_load("yolov8n.yaml")["scale"] == "n"
