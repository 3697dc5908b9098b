"""A training sample: mosaic, affine, blend, mirror, colour, with YOLOv7's meaning.

Of the mosaic only the part that the sample shows is painted, and it is resampled once, straight to
the sample's size. Colour and resampling are OpenCV's; any other transform of albumentations may
follow. Everything random comes from the generator given.

Coordinates are continuous: the first pixel covers 0 to 1. Shape letter: N boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detloom.data.extra import ExtraTransforms
from detloom.data.letterbox import FILL
from detloom.data.mosaic import Tile, four_tiles, nine_tiles, single_tile
from detloom.data.reading import Picture
from detloom.data.settings import AugmentSettings
from detloom.data.store import PictureStore

__all__ = ["Augmenter", "Sample"]

Boxes = NDArray[np.float32]
Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]

STRIP = 96
"""Rows whose colour is changed at a time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture ``uint8 [H, W, 3]`` in RGB and its objects in pixels of it."""

    picture: Picture
    boxes_N4: Boxes
    labels_N: Labels


@dataclass(frozen=True, slots=True)
class View:
    """Which part of a canvas is seen, and how it maps to the sample.

    Attributes:
        region: The part of the canvas to paint, xyxy; it may reach beyond the canvas.
        matrix: ``[3, 3]``, from the canvas to the sample.
        is_upright: Whether the matrix scales and shifts alone, and maps the region to the whole sample.
    """

    region: tuple[int, int, int, int]
    matrix: Matrix
    is_upright: bool


class Augmenter:
    """Makes training samples.

    Args:
        store: The pictures, at network scale.
        settings: How samples vary.
    """

    def __init__(self, store: PictureStore, settings: AugmentSettings) -> None:
        self.store = store
        self.settings = settings
        self.extra = ExtraTransforms(settings.extra, settings.min_side) if settings.extra else None
        self.boxes: list[Boxes] = []
        self.labels: list[Labels] = []
        for record, (height, width) in zip(store.images, store.sizes, strict=True):
            ratio_2 = np.array((width / record.width, height / record.height), np.float32)
            is_learned_N = ~record.is_crowd_N
            self.boxes.append(record.boxes_N4[is_learned_N] * np.tile(ratio_2, 2))
            self.labels.append(record.labels_N[is_learned_N])

    def sample(
        self,
        index: int,
        size: tuple[int, int],
        generator: Generator,
        *,
        compose: bool = True,
        out: Picture | None = None,
    ) -> Sample:
        """Return a sample of a picture.

        Args:
            index: The picture; of a mosaic, the first.
            size: Height and width of the sample.
            generator: Where everything random is drawn from.
            compose: Whether mosaic and blend are allowed.
            out: Where the picture is written, which saves copying it into a batch.
        """
        settings = self.settings
        is_mosaic = compose and generator.random() < settings.mosaic
        sample = self._one(index, size, generator, is_mosaic=is_mosaic)
        if is_mosaic and generator.random() < settings.mixup:
            other = self._one(self._partner(generator), size, generator, is_mosaic=True)
            share = generator.beta(settings.mixup_beta, settings.mixup_beta)
            sample = blend(sample, other, share)
        up_down, left_right = generator.random(2) < (settings.flip_vertical, settings.flip_horizontal)
        sample = mirror(sample, left_right=bool(left_right), up_down=bool(up_down))
        gains = 1 + generator.uniform(-1, 1, 3) * (settings.hue, settings.saturation, settings.value)
        if self.extra is None:
            return replace(sample, picture=change_colour(sample.picture, gains, out))
        picture = change_colour(sample.picture, gains)
        sample = Sample(*self.extra.apply(picture, sample.boxes_N4, sample.labels_N, generator))
        if out is None:
            return sample
        out[:] = sample.picture
        return replace(sample, picture=out)

    def _partner(self, generator: Generator) -> int:
        return int(generator.integers(len(self.store.images)))

    def _one(self, index: int, size: tuple[int, int], generator: Generator, *, is_mosaic: bool) -> Sample:
        tiles, canvas = self._tiles(index, generator, is_mosaic=is_mosaic)
        view = draw_view(self.settings, canvas, self.store.canvas, size, generator)
        picture = resample(self._paint(tiles, view.region), view, size)
        boxes_N4 = np.concatenate([self._on_canvas(tile) for tile in tiles])
        labels_N = np.concatenate([self.labels[tile.index] for tile in tiles])
        boxes_N4, is_kept_N = self._seen(boxes_N4, view.matrix, size)
        return Sample(picture, boxes_N4[is_kept_N], labels_N[is_kept_N])

    def _tiles(self, index: int, generator: Generator, *, is_mosaic: bool) -> tuple[list[Tile], tuple[int, int]]:
        height, width = self.store.canvas
        sizes = self.store.sizes
        if not is_mosaic:
            return single_tile(index, sizes[index], self.store.canvas), (height, width)
        is_nine = generator.random() < self.settings.mosaic_nine
        partners = generator.integers(len(sizes), size=8 if is_nine else 3).tolist()
        indices = [index, *partners]
        layout = nine_tiles if is_nine else four_tiles
        tiles = layout(indices, [sizes[each] for each in indices], self.store.canvas, generator)
        return tiles, (2 * height, 2 * width)

    def _on_canvas(self, tile: Tile) -> Boxes:
        """Return a tile's boxes on the canvas, cut off at its window."""
        boxes_N4 = self.boxes[tile.index] + np.array((tile.left, tile.top) * 2, np.float32)
        left, top, right, bottom = tile.window
        return boxes_N4.clip((left, top, left, top), (right, bottom, right, bottom)).astype(np.float32, copy=False)

    def _paint(self, tiles: Sequence[Tile], region: tuple[int, int, int, int]) -> Picture:
        """Return a region of the canvas; pictures that it does not show are not even read."""
        x0, y0, x1, y1 = region
        picture = np.full((y1 - y0, x1 - x0, 3), FILL, np.uint8)
        for tile in tiles:
            height, width = self.store.sizes[tile.index]
            left, top = max(tile.left, tile.window[0], x0), max(tile.top, tile.window[1], y0)
            right = min(tile.left + width, tile.window[2], x1)
            bottom = min(tile.top + height, tile.window[3], y1)
            if left < right and top < bottom:
                source = self.store.load(tile.index)
                picture[top - y0 : bottom - y0, left - x0 : right - x0] = source[
                    top - tile.top : bottom - tile.top, left - tile.left : right - tile.left
                ]
        return picture

    def _seen(self, boxes_N4: Boxes, matrix: Matrix, size: tuple[int, int]) -> tuple[Boxes, NDArray[np.bool_]]:
        """Map boxes to the sample, clip them, and say which still show enough of their object."""
        settings = self.settings
        mapped_N4 = map_boxes(boxes_N4, matrix)
        height, width = size
        clipped_N4 = mapped_N4.clip(0, (width, height, width, height)).astype(np.float32, copy=False)
        old_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        new_N2 = clipped_N4[:, 2:] - clipped_N4[:, :2]
        # How the area of an upright square changes; turning does not change it.
        enlargement = abs(float(np.linalg.det(matrix[:2, :2])))
        area_ratio_N = new_N2.prod(1) / (old_N2.prod(1) * enlargement + 1e-9)
        aspect_N = new_N2.max(1, initial=0) / (new_N2.min(1, initial=np.inf) + 1e-9)
        is_kept_N = (
            (new_N2 > settings.min_side).all(1)
            & (area_ratio_N > settings.min_area_ratio)
            & (aspect_N < settings.max_aspect)
        )
        return clipped_N4, is_kept_N


def draw_view(
    settings: AugmentSettings,
    canvas: tuple[int, int],
    nominal: tuple[int, int],
    size: tuple[int, int],
    generator: Generator,
) -> View:
    """Draw an affine or perspective view of a canvas.

    Args:
        settings: How far the view varies.
        canvas: Height and width of what is looked at.
        nominal: Height and width of a sample at scale 1.
        size: Height and width of the sample, which is the nominal size but for multi-scale training.
        generator: Where the view is drawn from.
    """
    perspective_2 = generator.uniform(-1, 1, 2) * settings.perspective
    angle, shear_x, shear_y = np.deg2rad(
        generator.uniform(-1, 1, 3) * (settings.degrees, settings.shear, settings.shear)
    )
    scale = generator.uniform(1 - settings.scale, 1.1 + settings.scale)
    shift_x, shift_y = generator.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2)
    height, width = size
    scale_x, scale_y = scale * width / nominal[1], scale * height / nominal[0]
    if settings.degrees == settings.shear == settings.perspective == 0:
        return _upright_view(canvas, size, (scale_x, scale_y), (shift_x, shift_y))
    centre = np.array(((1, 0, -canvas[1] / 2), (0, 1, -canvas[0] / 2), (0, 0, 1)))
    tilt = np.array(((1, 0, 0), (0, 1, 0), (*perspective_2, 1)))
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array(((scale * cosine, scale * sine, 0), (-scale * sine, scale * cosine, 0), (0, 0, 1)))
    slant = np.array(((1, math.tan(shear_x), 0), (math.tan(shear_y), 1, 0), (0, 0, 1)))
    zoom = np.diag((width / nominal[1], height / nominal[0], 1.0))
    shift = np.array(((1, 0, shift_x * width), (0, 1, shift_y * height), (0, 0, 1)))
    matrix = shift @ zoom @ slant @ turn @ tilt @ centre
    return View(_region_of(matrix, size, canvas), matrix, is_upright=False)


def _upright_view(
    canvas: tuple[int, int], size: tuple[int, int], scale: tuple[float, float], shift: tuple[float, float]
) -> View:
    """Return a view without rotation, rounded so that its region has whole pixels.

    A whole region is resized, which takes less than half as long as warping it.
    """
    height, width = size
    columns, rows = max(round(width / scale[0]), 1), max(round(height / scale[1]), 1)
    left = round(canvas[1] / 2 - shift[0] * columns)
    top = round(canvas[0] / 2 - shift[1] * rows)
    scale_x, scale_y = width / columns, height / rows
    matrix = np.array(((scale_x, 0, -left * scale_x), (0, scale_y, -top * scale_y), (0, 0, 1)))
    return View((left, top, left + columns, top + rows), matrix, is_upright=True)


def _region_of(matrix: Matrix, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of the canvas that the sample shows, with a pixel to spare."""
    height, width = size
    corners_43 = np.array(((0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)), np.float64)
    source_43 = corners_43 @ np.linalg.inv(matrix).T
    if (source_43[:, 2] <= 0).any():
        return 0, 0, canvas[1], canvas[0]
    source_42 = source_43[:, :2] / source_43[:, 2:]
    left, top = np.floor(source_42.min(0)).astype(int) - 1
    right, bottom = np.ceil(source_42.max(0)).astype(int) + 1
    left, top = min(max(left, 0), canvas[1] - 1), min(max(top, 0), canvas[0] - 1)
    return left, top, min(max(right, left + 1), canvas[1]), min(max(bottom, top + 1), canvas[0])


def resample(region: Picture, view: View, size: tuple[int, int]) -> Picture:
    """Return the sample that a view shows, given the painted region."""
    height, width = size
    if view.is_upright:
        return np.asarray(cv2.resize(region, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    # OpenCV counts from the middle of the first pixel, boxes from its edge.
    to_canvas = np.array(((1, 0, view.region[0] + 0.5), (0, 1, view.region[1] + 0.5), (0, 0, 1)))
    to_index = np.array(((1, 0, -0.5), (0, 1, -0.5), (0, 0, 1)))
    matrix = to_index @ view.matrix @ to_canvas
    fill = (FILL, FILL, FILL)
    if np.allclose(matrix[2], (0, 0, 1)):
        warped = cv2.warpAffine(region, matrix[:2], (width, height), borderValue=fill)
    else:
        warped = cv2.warpPerspective(region, matrix, (width, height), borderValue=fill)
    return np.asarray(warped, np.uint8)


def map_boxes(boxes_N4: Boxes, matrix: Matrix) -> Boxes:
    """Return the upright boxes around boxes mapped by a ``[3, 3]`` matrix."""
    corners_N43 = np.ones((len(boxes_N4), 4, 3))
    corners_N43[..., 0] = boxes_N4[:, (0, 2, 0, 2)]
    corners_N43[..., 1] = boxes_N4[:, (1, 1, 3, 3)]
    mapped_N43 = corners_N43 @ matrix.T
    mapped_N42 = mapped_N43[..., :2] / mapped_N43[..., 2:]
    return np.concatenate((mapped_N42.min(1), mapped_N42.max(1)), axis=1).astype(np.float32)


def blend(sample: Sample, other: Sample, share: float) -> Sample:
    """Return both samples in one picture, the first with a share of the light, and all objects."""
    picture = cv2.addWeighted(sample.picture, share, other.picture, 1 - share, 0.0)
    return Sample(
        np.asarray(picture, np.uint8),
        np.concatenate((sample.boxes_N4, other.boxes_N4)),
        np.concatenate((sample.labels_N, other.labels_N)),
    )


def change_colour(picture: Picture, gains: NDArray[np.float64], out: Picture | None = None) -> Picture:
    """Multiply hue, saturation and value; hue wraps around, the others stop at their limits.

    Args:
        picture: RGB.
        gains: Of hue, saturation and value.
        out: Where the result is written; a new array when None.
    """
    out = np.empty_like(picture) if out is None else out
    if (gains == 1).all():
        out[:] = picture
        return out
    matrix = np.diag(gains)
    # Strips stay in the processor's cache, which halves the time.
    for top in range(0, len(picture), STRIP):
        hsv = cv2.cvtColor(picture[top : top + STRIP], cv2.COLOR_RGB2HSV)
        # A matrix product is five times faster than three lookup tables; it rounds and stops at 255,
        # which a hue never reaches, and the way back takes hues beyond a full turn as they are meant.
        hsv = cv2.transform(hsv, matrix)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=out[top : top + STRIP])
    return out


def mirror(sample: Sample, *, left_right: bool, up_down: bool) -> Sample:
    """Mirror a sample."""
    if not left_right and not up_down:
        return sample
    height, width = sample.picture.shape[:2]
    boxes_N4 = sample.boxes_N4.copy()
    if left_right:
        boxes_N4[:, [0, 2]] = width - boxes_N4[:, [2, 0]]
    if up_down:
        boxes_N4[:, [1, 3]] = height - boxes_N4[:, [3, 1]]
    axes = -1 if left_right and up_down else int(left_right)
    return Sample(np.asarray(cv2.flip(sample.picture, axes), np.uint8), boxes_N4, sample.labels_N)
