"""A picture of a table with things on it, and the boxes of what is to be found.

Boxes are those of the visible pixels: what another thing or the picture's edge hides is not in them.

Shape letters: H and W rows and columns, N labelled things.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from detloom.scenes.clutter import CLUTTER
from detloom.scenes.flat import draw_coin, draw_key, draw_leaf
from detloom.scenes.relief import Array, Light, Sprite, lay, noise
from detloom.scenes.solid import draw_die, draw_mug
from detloom.scenes.surface import draw_surface

__all__ = ["CLASSES", "Scene", "draw_scene"]

CLASSES = ("coin", "die", "key", "leaf", "mug")

SHAPES = ((240, 320), (240, 320), (320, 240), (288, 288))  # rows, columns
FLAT = {"coin": (draw_coin, 0.15), "key": (draw_key, 0.40), "leaf": (draw_leaf, 0.36)}
SOLID = {"die": (draw_die, 0.105), "mug": (draw_mug, 0.30)}
SMALLEST_SIDE = 8  # pixels
SMALLEST_SHARE = 0.35  # of a thing that must be seen, for it to be labelled


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and its labels.

    Attributes:
        picture_HW3: RGB, uint8.
        boxes_N4: xyxy pixels.
        labels_N: Index into ``CLASSES``.
        area_N: Visible pixels.
    """

    picture_HW3: NDArray[np.uint8]
    boxes_N4: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    area_N: NDArray[np.int64]


@dataclass(slots=True)
class _Placed:
    sprite: Sprite
    x: float
    y: float
    label: int
    pixels: int = 0


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a table, light it, lay things on it, and take a picture of it."""
    height, width = SHAPES[rng.integers(len(SHAPES))]
    light = _light(rng)
    picture_HW3 = draw_surface(rng, height, width)
    owner_HW = np.full((height, width), -1, dtype=np.int16)
    strength = rng.uniform(0.35, 0.62)
    things = _things(rng, height, width, light)
    for index, thing in enumerate(things):
        _paste(picture_HW3, owner_HW, thing, index, strength)
    boxes, labels, areas = [], [], []
    for index, thing in enumerate(things):
        if thing.label < 0:
            continue
        rows, columns = np.nonzero(owner_HW == index)
        if len(rows) < SMALLEST_SHARE * thing.pixels or len(rows) == 0:
            continue
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        if min(box[2] - box[0], box[3] - box[1]) < SMALLEST_SIDE:
            continue
        boxes.append(box)
        labels.append(thing.label)
        areas.append(len(rows))
    return Scene(
        _photograph(rng, picture_HW3),
        np.asarray(boxes, dtype=np.int64).reshape(-1, 4),
        np.asarray(labels, dtype=np.int64),
        np.asarray(areas, dtype=np.int64),
    )


def _light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(0, math.tau), rng.uniform(0.75, 1.2)
    return Light(
        x=math.cos(azimuth) * math.cos(elevation),
        y=math.sin(azimuth) * math.cos(elevation),
        z=math.sin(elevation),
        ambient=rng.uniform(0.35, 0.6),
        softness=rng.uniform(0.08, 0.35),
        tilt=rng.uniform(0.12, 0.85),
    )


def _things(rng: np.random.Generator, height: int, width: int, light: Light) -> list[_Placed]:
    """Choose what lies where: flat things in any order, then standing ones from back to front."""
    unit = min(height, width) * math.exp(rng.uniform(math.log(0.62), math.log(1.45)))
    taken: list[tuple[float, float, float]] = []
    flat: list[_Placed] = []
    solid: list[_Placed] = []
    for _ in range(int(rng.integers(0, 6))):
        draw, share = CLUTTER[rng.integers(len(CLUTTER))]
        size = unit * share * rng.uniform(0.85, 1.2)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        flat.append(_Placed(lay(draw(rng, _canvas(size)), size, rng.uniform(0, math.tau), light), x, y, -1))
    count = 0 if rng.random() < 0.02 else int(rng.integers(2, 9))
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        name = CLASSES[label]
        share = (FLAT | SOLID)[name][1]
        size = unit * share * rng.uniform(0.82, 1.25)
        place = _free_place(rng, height, width, size, taken, crowded=0.5 if name in FLAT else 0.85)
        if place is None:
            continue
        taken.append((*place, size))
        if name in FLAT:
            sprite = lay(FLAT[name][0](rng, _canvas(size)), size, rng.uniform(0, math.tau), light)
            flat.append(_Placed(sprite, *place, label))
        else:
            solid.append(_Placed(SOLID[name][0](rng, size, light), *place, label))
    order = rng.permutation(len(flat))
    return [flat[i] for i in order] + sorted(solid, key=lambda thing: thing.y)


def _canvas(size: float) -> int:
    # Drawn a little larger than it is shown, so that turning it loses nothing.
    return int(np.clip(round(size * 1.5), 48, 260))


def _free_place(
    rng: np.random.Generator,
    height: int,
    width: int,
    size: float,
    taken: list[tuple[float, float, float]],
    *,
    crowded: float,
) -> tuple[float, float] | None:
    """Return a place where nothing is hidden for the most part, or None where none is found."""
    margin = 0.1 * size
    for _ in range(12):
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(math.hypot(x - a, y - b) > crowded * (size + other) / 2 for a, b, other in taken):
            return x, y
    return None


def _paste(picture_HW3: Array, owner_HW: NDArray[np.int16], thing: _Placed, index: int, strength: float) -> None:
    sprite = thing.sprite
    height, width = owner_HW.shape
    rows, columns = sprite.alpha_HW.shape
    left, top = round(thing.x - columns / 2), round(thing.y - rows / 2)
    thing.pixels = int(np.count_nonzero(sprite.alpha_HW > 0.5))
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    if x0 >= x1 or y0 >= y1:
        return
    there = (slice(y0, y1), slice(x0, x1))
    part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha_HW = sprite.alpha_HW[part][..., None]
    picture_HW3[there] *= 1 - strength * sprite.shadow_HW[part][..., None]
    picture_HW3[there] += (sprite.colour_HW3[part] - picture_HW3[there]) * alpha_HW
    owner_HW[there][sprite.alpha_HW[part] > 0.5] = index


def _photograph(rng: np.random.Generator, picture_HW3: Array) -> NDArray[np.uint8]:
    """Add what a room and a camera add: uneven light, tint, vignette, blur, noise."""
    height, width = picture_HW3.shape[:2]
    y_HW, x_HW = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    fall_HW = (
        1
        + rng.uniform(-0.22, 0.22) * x_HW
        + rng.uniform(-0.22, 0.22) * y_HW
        - rng.uniform(0, 0.14) * (x_HW**2 + y_HW**2)
    )
    if rng.random() < 0.25:  # the shadow of something outside the picture
        angle = rng.uniform(0, math.tau)
        ramp_HW = x_HW * math.cos(angle) + y_HW * math.sin(angle) + 0.25 * noise(rng, height, width, (2, 2))
        fall_HW = fall_HW * (
            1 - rng.uniform(0.2, 0.45) / (1 + np.exp(-(ramp_HW - rng.uniform(-0.3, 0.8)) * rng.uniform(5, 25)))
        )
    warmth = rng.uniform(-0.09, 0.11)
    tint = np.asarray((1 + warmth, 1.0, 1 - warmth), dtype=np.float32) * rng.uniform(0.85, 1.18)
    lit_HW3 = np.clip(picture_HW3 * fall_HW[..., None] * tint, 0, 1.3)
    lit_HW3 = np.clip(lit_HW3, 0, 1) ** rng.uniform(0.8, 1.2)
    blur = rng.choice([0.0, 0.5, 0.7, 1.1], p=[0.3, 0.35, 0.25, 0.1])
    if blur:
        lit_HW3 = cv2.GaussianBlur(lit_HW3, (0, 0), float(blur))
    grain = rng.uniform(0.004, 0.03)
    lit_HW3 = lit_HW3 + grain * rng.standard_normal(lit_HW3.shape, dtype=np.float32)
    return np.asarray(np.clip(lit_HW3 * 255 + 0.5, 0, 255), dtype=np.uint8)
