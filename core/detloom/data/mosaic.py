"""Where the pictures of a mosaic lie: four or nine tiles on a canvas of twice the size.

Nothing is painted here, so that only the part of the canvas that is seen has to be.

Geometry: YOLOv4, section 3.3 (mosaic); the layout of YOLOv7's training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

__all__ = ["Tile", "four_tiles", "nine_tiles", "single_tile"]

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture on a canvas.

    Attributes:
        index: Which picture.
        left: Column of its first pixel; may lie outside the canvas.
        top: Row of its first pixel; may lie outside the canvas.
        window: The part of the canvas where it may be seen, xyxy.
    """

    index: int
    left: int
    top: int
    window: tuple[int, int, int, int]


def single_tile(index: int, size: Size, canvas: Size) -> list[Tile]:
    """Return one picture in the middle of the canvas."""
    height, width = canvas
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    return [Tile(index, left, top, (0, 0, width, height))]


def four_tiles(indices: Sequence[int], sizes: Sequence[Size], canvas: Size, generator: Generator) -> list[Tile]:
    """Return four pictures that meet in a random point of a canvas twice as high and wide.

    Args:
        indices: The four pictures.
        sizes: Height and width of each of the four.
        canvas: Height and width of the network's input.
        generator: Where the point is drawn from.
    """
    height, width = canvas
    x = int(generator.uniform(width / 2, 3 * width / 2))
    y = int(generator.uniform(height / 2, 3 * height / 2))
    window = (0, 0, 2 * width, 2 * height)
    return [
        Tile(index, x - size[1] if column == 0 else x, y - size[0] if row == 0 else y, window)
        for index, size, (row, column) in zip(indices, sizes, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    ]


def nine_tiles(indices: Sequence[int], sizes: Sequence[Size], canvas: Size, generator: Generator) -> list[Tile]:
    """Return nine pictures, the first in the middle, the others clockwise from above it.

    They are laid on a canvas three times as high and wide, of which a random part is taken.
    """
    height, width = canvas
    heights, widths = np.array(sizes).T.tolist()
    top, bottom = height, height + heights[0]
    left, right = width, width + widths[0]
    corners = (
        (left, top),
        (left, top - heights[1]),
        (left + widths[1], top - heights[2]),
        (right, top),
        (right, top + heights[3]),
        (right - widths[5], bottom),
        (right - widths[5] - widths[6], bottom),
        (left - widths[7], bottom - heights[7]),
        (left - widths[8], bottom - heights[7] - heights[8]),
    )
    x, y = int(generator.uniform(0, width)), int(generator.uniform(0, height))
    window = (0, 0, 2 * width, 2 * height)
    return [Tile(index, cx - x, cy - y, window) for index, (cx, cy) in zip(indices, corners, strict=True)]
