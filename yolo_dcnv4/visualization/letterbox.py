"""How a picture lies in a network's input, and the way back from maps to the picture.

Coordinates are those of pixel centres: (0, 0) is the centre of the top left pixel, on the picture, the input and maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

PADDING_COLOR = (114, 114, 114)


@dataclass(frozen=True)
class Letterbox:
    """A picture that was resized and padded.

    Attributes:
        picture: (height, width) of the picture.
        scaled: (height, width) after resizing.
        size: (height, width) of the network's input.
        top: Rows of padding above.
        left: Columns of padding to the left.
    """

    picture: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]
    top: int
    left: int

    @classmethod
    def fit(cls, picture: tuple[int, int], imgsz: tuple[int, int], stride: int) -> Letterbox:
        """Return how ultralytics' LetterBox puts a picture into the smallest input of whole strides.

        Args:
            picture: (height, width) of the picture.
            imgsz: (height, width) that the input must not exceed, each a multiple of `stride`.
            stride: The network's stride.
        """
        ratio = min(imgsz[0] / picture[0], imgsz[1] / picture[1])
        scaled = round(picture[0] * ratio), round(picture[1] * ratio)
        rows, columns = ((limit - side) % stride for limit, side in zip(imgsz, scaled, strict=True))
        # half of an odd padding goes below and to the right
        top, left = round(rows / 2 - 0.1), round(columns / 2 - 0.1)
        return cls(picture, scaled, (scaled[0] + rows, scaled[1] + columns), top, left)

    @classmethod
    def stretch(cls, picture: tuple[int, int], imgsz: tuple[int, int]) -> Letterbox:
        """Return how a picture is put into an input of exactly `imgsz`, its sides scaled apart, as RT-DETR wants it."""
        return cls(picture, imgsz, imgsz, 0, 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return the network's input (height, width, 3) of a picture (height, width, 3)."""
        if self.scaled != self.picture:
            pixels = cv2.resize(pixels, self.scaled[::-1], interpolation=cv2.INTER_LINEAR)
        bottom = self.size[0] - self.scaled[0] - self.top
        right = self.size[1] - self.scaled[1] - self.left
        border = cv2.BORDER_CONSTANT
        return cv2.copyMakeBorder(pixels, self.top, bottom, self.left, right, border, value=PADDING_COLOR)

    def to_input(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return where points of the picture lie in the input."""
        scale_y, scale_x = self._scales
        return (np.asarray(x) + 0.5) * scale_x - 0.5 + self.left, (np.asarray(y) + 0.5) * scale_y - 0.5 + self.top

    def to_picture(self, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return where points of the input lie in the picture; those of the padding lie outside."""
        scale_y, scale_x = self._scales
        return (np.asarray(x) - self.left + 0.5) / scale_x - 0.5, (np.asarray(y) - self.top + 0.5) / scale_y - 0.5

    def map_to_picture(self, x: ArrayLike, y: ArrayLike, map_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return where points of a feature map lie in the picture.

        A pixel of a map stands for the square of the input that it takes, as YOLO's anchor points have it.

        Args:
            x: Horizontal positions in pixels of the map.
            y: Vertical positions.
            map_size: (height, width) of the map.
        """
        stride_y, stride_x = self.size[0] / map_size[0], self.size[1] / map_size[1]
        return self.to_picture((np.asarray(x) + 0.5) * stride_x - 0.5, (np.asarray(y) + 0.5) * stride_y - 0.5)

    def picture_to_map(self, x: float, y: float, map_size: tuple[int, int]) -> tuple[int, int]:
        """Return (row, column) of the pixel of a feature map in which a point of the picture lies."""
        input_x, input_y = self.to_input(x, y)
        row = int((input_y + 0.5) * map_size[0] / self.size[0])
        column = int((input_x + 0.5) * map_size[1] / self.size[1])
        return min(max(row, 0), map_size[0] - 1), min(max(column, 0), map_size[1] - 1)

    def length_in_picture(self, map_size: tuple[int, int]) -> float:
        """Return how many pixels of the picture one pixel of a feature map spans, the mean of both directions."""
        scale_y, scale_x = self._scales
        return (self.size[0] / map_size[0] / scale_y + self.size[1] / map_size[1] / scale_x) / 2

    @property
    def _scales(self) -> tuple[float, float]:
        return self.scaled[0] / self.picture[0], self.scaled[1] / self.picture[1]
