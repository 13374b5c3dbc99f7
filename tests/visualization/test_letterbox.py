from __future__ import annotations

import inspect

import numpy as np
import pytest
from ultralytics.data.augment import LetterBox

from yolo_dcnv4.visualization.letterbox import Letterbox

SIZES = [(480, 640), (1080, 810), (128, 128), (37, 90), (333, 101), (641, 639)]
INPUTS = [(640, 640), (320, 320), (384, 640)]


@pytest.mark.parametrize("imgsz", INPUTS, ids=lambda size: "input {}x{}".format(*size))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "picture {}x{}".format(*size))
def test_is_the_letterbox_of_ultralytics(size: tuple[int, int], imgsz: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    box = Letterbox.fit(size, imgsz, 32)
    expected = LetterBox(imgsz, auto=True, stride=32)(image=pixels)
    assert box.size == expected.shape[:2]
    assert np.array_equal(box.apply(pixels), expected)


def test_stretching_is_that_of_ultralytics():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    # called scaleFill in older releases
    name = next(name for name in ("scale_fill", "scaleFill") if name in inspect.signature(LetterBox).parameters)
    box = Letterbox.stretch((50, 80), (64, 64))
    assert np.array_equal(box.apply(pixels), LetterBox((64, 64), auto=False, **{name: True})(image=pixels))
    x, y = box.to_picture(*box.to_input(20.0, 33.0))
    assert (x, y) == pytest.approx((20, 33))


@pytest.mark.parametrize("point", [(40, 30), (200, 90), (120, 150)])
@pytest.mark.parametrize("imgsz", [(128, 128), (512, 512)], ids=["smaller", "larger"])
def test_a_spot_of_the_picture_lies_where_it_is_said_to(point: tuple[int, int], imgsz: tuple[int, int]):
    # the centre of mass of a smooth spot survives resizing
    columns, rows = np.meshgrid(np.arange(240), np.arange(180))
    spot = 200 * np.exp(-((columns - point[0]) ** 2 + (rows - point[1]) ** 2) / (2 * 6.0**2))
    box = Letterbox.fit((180, 240), imgsz, 32)
    seen = box.apply(np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2))[..., 0].astype(float)
    inner = np.zeros_like(seen)
    inside = np.s_[box.top : box.top + box.scaled[0], box.left : box.left + box.scaled[1]]
    inner[inside] = seen[inside]
    rows, columns = np.indices(inner.shape)
    center = (columns * inner).sum() / inner.sum(), (rows * inner).sum() / inner.sum()
    assert box.to_input(*point) == pytest.approx(center, abs=0.15)
    assert box.to_picture(*center) == pytest.approx(point, abs=0.15 * 240 / box.scaled[1])


def test_pixels_of_a_map_are_squares_of_the_picture():
    # 100 x 200 pixels, doubled, padded to 224 x 416; a map of stride 32 is 7 x 13
    box = Letterbox.fit((100, 200), (416, 416), 32)
    assert (box.scaled, box.size, box.top, box.left) == ((208, 416), (224, 416), 8, 0)
    x, y = box.map_to_picture([0, 12, -0.5, 12.5], [0, 6, -0.5, 6.5], (7, 13))
    scale = 416 / 200
    assert x == pytest.approx([16 / scale - 0.5, 400 / scale - 0.5, -0.5, 199.5])
    assert y == pytest.approx([8 / scale - 0.5, 200 / scale - 0.5, -8 / scale - 0.5, 216 / scale - 0.5])
    assert box.length_in_picture((7, 13)) == pytest.approx(32 / scale)


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_a_point_lies_in_the_pixel_of_a_map_that_it_is_assigned_to(size: tuple[int, int]):
    box = Letterbox.fit(size, (320, 320), 32)
    map_size = (box.size[0] // 16, box.size[1] // 16)
    for x, y in np.random.default_rng(1).uniform((0, 0), (size[1] - 1, size[0] - 1), (50, 2)):
        row, column = box.picture_to_map(x, y, map_size)
        (left, right), (top, bottom) = box.map_to_picture(
            [column - 0.5, column + 0.5], [row - 0.5, row + 0.5], map_size
        )
        assert left - 1e-9 <= x <= right + 1e-9 and top - 1e-9 <= y <= bottom + 1e-9
