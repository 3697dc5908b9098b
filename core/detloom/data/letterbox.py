"""Fitting a picture on a canvas without distorting it, and mapping boxes there and back.

Geometry of YOLOv7's letterbox: one ratio for both sides, the rest of the canvas grey, half of it on
each side. Boxes are xyxy. Shape letter: N boxes.
"""

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from detloom.data.reading import Picture

__all__ = ["FILL", "Letterbox", "scaled", "scaled_size"]

FILL = 114


def scaled_size(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Return height and width times a ratio, rounded, and at least a pixel."""
    return max(round(size[0] * ratio), 1), max(round(size[1] * ratio), 1)


def scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    """Return a picture at a height and width: averaged over areas where it shrinks, else interpolated.

    Training, evaluation and prediction scale pictures with this alone, so that a network sees in use
    what it has learned from.
    """
    height, width = size
    if picture.shape[:2] == (height, width):
        return picture
    # Both sides shrink or grow together, but for a side of few pixels.
    shrinks = picture.shape[0] * picture.shape[1] > height * width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=interpolation), np.uint8)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a picture lies on a canvas.

    Attributes:
        ratio: Canvas pixels per pixel of the picture.
        padding: Grey columns and rows on each side, x and y; halves where the total is odd.
        picture_size: Height and width of the picture.
        canvas_size: Height and width of the canvas.
    """

    ratio: float
    padding: tuple[float, float]
    picture_size: tuple[int, int]
    canvas_size: tuple[int, int]

    @classmethod
    def fit(
        cls,
        picture_size: tuple[int, int],
        canvas_size: int | tuple[int, int],
        *,
        stride: int | None = None,
        enlarge: bool = True,
    ) -> Self:
        """Fit a picture of a size on a canvas.

        Args:
            picture_size: Height and width of the picture.
            canvas_size: Height and width of the canvas, or the side of a square.
            stride: Cut the canvas to the smallest one that holds the picture and whose padding is less
                than this; None keeps it whole.
            enlarge: Whether a small picture is enlarged.
        """
        height, width = picture_size
        canvas_height, canvas_width = (canvas_size, canvas_size) if isinstance(canvas_size, int) else canvas_size
        ratio = min(canvas_height / height, canvas_width / width)
        if not enlarge:
            ratio = min(ratio, 1.0)
        new_height, new_width = scaled_size(picture_size, ratio)
        extra_x, extra_y = canvas_width - new_width, canvas_height - new_height
        if stride is not None:
            extra_x, extra_y = extra_x % stride, extra_y % stride
        return cls(
            ratio=ratio,
            padding=(extra_x / 2, extra_y / 2),
            picture_size=(height, width),
            canvas_size=(new_height + extra_y, new_width + extra_x),
        )

    @property
    def resized(self) -> tuple[int, int]:
        """Return height and width of the picture on the canvas."""
        return scaled_size(self.picture_size, self.ratio)

    @property
    def corner(self) -> tuple[int, int]:
        """Return column and row of the picture's first pixel on the canvas."""
        # An odd row or column of padding goes to the right and the bottom.
        return math.floor(self.padding[0]), math.floor(self.padding[1])

    @property
    def offset(self) -> tuple[float, float]:
        """Return x and y of the picture's corner on the canvas as boxes are mapped: not rounded."""
        height, width = self.picture_size
        return (self.canvas_size[1] - width * self.ratio) / 2, (self.canvas_size[0] - height * self.ratio) / 2

    def apply(self, picture: Picture) -> Picture:
        """Return the canvas, ``uint8 [H, W, 3]``, with the picture on it, which may be resized already."""
        canvas = np.full((*self.canvas_size, 3), FILL, np.uint8)
        self.paint_(canvas, picture)
        return canvas

    def paint_(self, canvas: Picture, picture: Picture) -> None:
        """Put the picture on a canvas that is grey already."""
        height, width = self.resized
        left, top = self.corner
        canvas[top : top + height, left : left + width] = scaled(picture, (height, width))

    def boxes_to_canvas(self, boxes_N4: Tensor) -> Tensor:
        """Map boxes from the picture to the canvas."""
        return boxes_N4 * self.ratio + boxes_N4.new_tensor(self.offset * 2)

    def boxes_to_picture(self, boxes_N4: Tensor) -> Tensor:
        """Map boxes from the canvas to the picture, and clip them to it."""
        boxes_N4 = (boxes_N4 - boxes_N4.new_tensor(self.offset * 2)) / self.ratio
        height, width = self.picture_size
        # A tensor of limits would wait for the device; two clamps do not.
        x_N2 = boxes_N4[:, 0::2].clamp(0, width)
        y_N2 = boxes_N4[:, 1::2].clamp(0, height)
        return torch.stack((x_N2[:, 0], y_N2[:, 0], x_N2[:, 1], y_N2[:, 1]), dim=1)
