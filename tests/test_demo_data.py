from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from yolo_dcnv4.demo_data import CLASSES, draw_picture, write_demo_data


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels_of(folder: Path) -> np.ndarray:
    return np.concatenate([np.loadtxt(path, ndmin=2) for path in sorted(folder.glob("*.txt"))])


def test_writes_a_data_set_in_yolo_format(tmp_path: Path):
    data_yaml = write_demo_data(tmp_path / "set", train=12, val=5, imgsz=96)
    data = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
    assert list(data["names"].values()) == list(CLASSES) == ["circle", "square", "triangle"]
    for split, count in (("train", 12), ("val", 5)):
        pictures = sorted((data_yaml.parent / data[split]).glob("*.jpg"))
        assert len(pictures) == count
        assert {Image.open(picture).size for picture in pictures} == {(96, 96)}
        labels = data_yaml.parent / "labels" / split
        assert [path.stem for path in sorted(labels.glob("*.txt"))] == [picture.stem for picture in pictures]
        boxes = labels_of(labels)
        assert set(boxes[:, 0]) <= {0, 1, 2}
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        assert low.min() >= -1e-6 and high.max() <= 1 + 1e-6
        assert boxes[:, 3:].min() > 0.05


def test_ultralytics_reads_it_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ultralytics.data.utils import check_det_dataset

    data_yaml = write_demo_data(tmp_path / "set", train=2, val=2, imgsz=32)
    monkeypatch.chdir(tmp_path)
    for name in (str(data_yaml), "set/shapes.yaml"):
        data = check_det_dataset(name)
        assert Path(data["train"]).resolve() == data_yaml.parent / "images" / "train"
        assert data["nc"] == 3


def test_box_encloses_the_shape_tightly():
    rng = np.random.default_rng(3)
    checked = 0
    while checked < 10:
        picture, boxes = draw_picture(rng, 128)
        if len(boxes) != 1:
            continue
        checked += 1
        _, x, y, width, height = boxes[0]
        pixels = np.asarray(picture, dtype=np.float64)
        rows, columns = np.mgrid[:128, :128] / 128
        near = (np.abs(columns - x) < width / 2 + 0.03) & (np.abs(rows - y) < height / 2 + 0.03)
        shape = near & (np.abs(pixels - pixels[round(y * 128), round(x * 128)]).max(axis=2) < 40)
        rows, columns = np.nonzero(shape)
        assert abs(columns.min() / 128 - (x - width / 2)) < 0.04
        assert abs((columns.max() + 1) / 128 - (x + width / 2)) < 0.04
        assert abs(rows.min() / 128 - (y - height / 2)) < 0.04
        assert abs((rows.max() + 1) / 128 - (y + height / 2)) < 0.04


def test_same_seed_same_bytes_and_another_seed_other_pictures(tmp_path: Path):
    first, again, other = (
        digest(write_demo_data(tmp_path / name, train=3, val=2, imgsz=64, seed=seed).parent)
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    assert first == again
    assert not set(first.values()) & set(other.values())
    pictures = [value for name, value in first.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 5  # validation pictures are no training pictures


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path):
    small = digest(write_demo_data(tmp_path / "small", train=2, val=1, imgsz=64).parent)
    large = digest(write_demo_data(tmp_path / "large", train=4, val=1, imgsz=64).parent)
    del small["shapes.yaml"]
    assert small == {name: large[name] for name in small}


def test_replaces_its_own_set_and_what_ultralytics_cached_in_it(tmp_path: Path):
    write_demo_data(tmp_path, train=4, val=2, imgsz=64)
    (tmp_path / "labels" / "train.cache").write_bytes(b"stale")
    write_demo_data(tmp_path, train=2, val=1, imgsz=64)
    assert len(list((tmp_path / "images" / "train").iterdir())) == 2
    assert not (tmp_path / "labels" / "train.cache").exists()


def test_refuses_a_folder_with_other_files(tmp_path: Path):
    precious = tmp_path / "images" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    (tmp_path / "shapes.yaml").write_text("train: images\n")
    with pytest.raises(FileExistsError, match="holds other files"):
        write_demo_data(tmp_path)
    assert precious.read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        write_demo_data(precious)


@pytest.mark.parametrize(
    ("name", "value", "least"), [("train", 0, 1), ("val", -1, 1), ("imgsz", 16, 32), ("seed", 1.5, 0)]
)
def test_refuses_senseless_numbers(name: str, value: float, least: int, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least {least}, got {value}"):
        write_demo_data(tmp_path / "set", **{name: value})
    assert not (tmp_path / "set").exists()
