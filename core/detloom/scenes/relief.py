"""Flat things as height maps, and the light that falls on them.

A thing lies on a table that the camera sees from above, tilted by some angle. It is drawn unlit
on a square canvas, laid on the table (turned, scaled, squashed by the tilt), then lit: so the
highlights of a turned coin stay on the side of the lamp.

Shape letters: H and W rows and columns, S the side of a canvas. Colours are RGB in [0, 1].
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "Canvas", "Light", "Relief", "Sprite", "as_float", "lay", "noise", "raise_from"]

Array: TypeAlias = NDArray[np.float32]

CONTACT_SHADOW = 0.5


@dataclass(frozen=True, slots=True)
class Light:
    """A lamp and a camera, the same for all things of a picture.

    Attributes:
        x: Towards the lamp, to the right; with ``y`` and ``z`` a unit vector.
        y: Towards the lamp, down the picture.
        z: Towards the lamp, up from the table.
        ambient: Light that comes from everywhere, 0 to 1.
        softness: Blur of a shadow in pixels per pixel of height.
        tilt: Angle between the camera and the vertical in radians.
    """

    x: float
    y: float
    z: float
    ambient: float
    softness: float
    tilt: float

    @property
    def squash(self) -> float:
        """Return how much the tilt shortens what lies on the table, down the picture."""
        return math.cos(self.tilt)

    @property
    def rise(self) -> float:
        """Return how many pixels up the picture one pixel of height is."""
        return math.sin(self.tilt)

    def shadow_of(self, height: float) -> tuple[float, float]:
        """Return where the shadow of a point at a height falls, from the foot of that point, in pixels."""
        return -self.x / self.z * height, -self.y / self.z * height * self.squash


@dataclass(frozen=True, slots=True)
class Relief:
    """A thing as drawn on its canvas: unlit, unturned.

    Attributes:
        colour_SS3: What it reflects.
        height_SS: In canvas units (the canvas is 2 wide).
        alpha_SS: Where it is.
        shine: Strength of highlights, 0 to 1.
        metal: How much it mirrors the room, 0 to 1.
        thickness: Of its edge, in canvas units.
    """

    colour_SS3: Array
    height_SS: Array
    alpha_SS: Array
    shine: float = 0.1
    metal: float = 0.0
    thickness: float = 0.05


@dataclass(frozen=True, slots=True)
class Sprite:
    """A lit thing, ready to be pasted with its centre somewhere.

    Attributes:
        colour_HW3: Lit colour.
        alpha_HW: Where it is.
        shadow_HW: How much of the lamp it takes from the table.
    """

    colour_HW3: Array
    alpha_HW: Array
    shadow_HW: Array


def as_float(values: ArrayLike) -> Array:
    """Return numbers as float32, which everything here is drawn in."""
    return np.asarray(values, dtype=np.float32)


class Canvas:
    """Coordinates from -1 to 1 over a square, and soft shapes on them.

    Distances are signed (negative inside) and in the same units.
    """

    def __init__(self, side: int) -> None:
        line = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
        self.side = side
        self.u_SS, self.v_SS = np.meshgrid(line, line)

    def fill(self, distance_SS: Array) -> Array:
        """Return 1 inside, 0 outside, with an edge one pixel wide."""
        return as_float(np.clip(0.5 - distance_SS * (self.side / 2), 0, 1))

    def disc(self, u: float, v: float, radius: float) -> Array:
        """Return the distance to a disc."""
        return as_float(np.hypot(self.u_SS - u, self.v_SS - v) - radius)

    def box(self, u: float, v: float, half_u: float, half_v: float, corner: float = 0.0) -> Array:
        """Return the distance to a box with round corners."""
        a_SS = np.abs(self.u_SS - u) - (half_u - corner)
        b_SS = np.abs(self.v_SS - v) - (half_v - corner)
        outside_SS = np.hypot(np.maximum(a_SS, 0), np.maximum(b_SS, 0))
        return as_float(outside_SS + np.minimum(np.maximum(a_SS, b_SS), 0) - corner)

    def paint(self, colour: tuple[float, float, float]) -> Array:
        """Return a sheet of one colour."""
        return np.tile(as_float(colour), (self.side, self.side, 1))

    def stroke(self, points: Array, width: float) -> Array:
        """Return where a line through points lies, as 0 to 1."""
        mask_SS = np.zeros((self.side, self.side), dtype=np.uint8)
        scaled = np.round((points + 1) * (self.side / 2) * 16).astype(np.int32)
        thickness = max(1, round(width * self.side / 2))
        cv2.polylines(
            mask_SS,
            [scaled.reshape(-1, 1, 2)],
            isClosed=False,
            color=255,
            thickness=thickness,
            lineType=cv2.LINE_AA,
            shift=4,
        )
        return as_float(mask_SS) / np.float32(255)


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[float, float], octaves: int = 1) -> Array:
    """Return smooth noise, about -1 to 1, with so many cells down and across."""
    total_HW = np.zeros((height, width), dtype=np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        rows = min(height, max(2, round(cells[0] * 2**octave) + 1))
        columns = min(width, max(2, round(cells[1] * 2**octave) + 1))
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        total_HW += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        norm += weight
        weight *= 0.5
    return total_HW / np.float32(norm)


def raise_from(distance_SS: Array, bevel: float) -> Array:
    """Return a plateau whose edge is rounded over ``bevel``, 0 to 1."""
    inside_SS = np.clip(-distance_SS / bevel, 0, 1)
    return as_float(np.sqrt(np.clip(1 - (1 - inside_SS) ** 2, 0, 1)))


def lay(relief: Relief, size: float, angle: float, light: Light) -> Sprite:
    """Turn, scale, squash and light a relief; ``size`` is the canvas's side in pixels of the picture."""
    scale = size / relief.alpha_SS.shape[0]
    thickness = relief.thickness * size / 2
    shift_x, shift_y = light.shadow_of(thickness)
    blur = 0.8 + light.softness * thickness
    reach = math.ceil(size * 0.72 + max(abs(shift_x), abs(shift_y)) + 3 * blur) + 2
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    half = relief.alpha_SS.shape[0] / 2 - 0.5
    turn = np.array([[cos, -sin], [sin * light.squash, cos * light.squash]])
    affine = np.hstack((turn, (np.array([reach, reach]) - turn @ np.array([half, half]))[:, None]))

    def warp(plane: Array) -> Array:
        moved = cv2.warpAffine(plane, affine, (2 * reach + 1, 2 * reach + 1), flags=cv2.INTER_AREA)
        return as_float(moved)

    alpha_HW = warp(relief.alpha_SS)
    height_HW = as_float(warp(relief.height_SS * relief.alpha_SS) * (size / 2))
    # Colours travel multiplied by alpha, so that nothing of the empty canvas bleeds into the edge.
    colour_HW3 = warp(relief.colour_SS3 * relief.alpha_SS[..., None]) / np.maximum(alpha_HW, 1e-3)[..., None]
    lit_HW3 = _shade(as_float(colour_HW3), height_HW, light, shine=relief.shine, metal=relief.metal)

    edge = light.rise * thickness
    if edge > 0.7:  # the side of a thick thing shows below it
        side_HW = alpha_HW
        for step in range(1, round(edge) + 1):
            side_HW = np.maximum(side_HW, _moved(alpha_HW, 0, step))
        below_HW3 = _moved(lit_HW3, 0, round(edge)) * 0.55
        lit_HW3 = lit_HW3 * alpha_HW[..., None] + below_HW3 * (1 - alpha_HW[..., None])
        shadow_base_HW = _moved(alpha_HW, 0, round(edge))
        alpha_HW = side_HW
    else:
        shadow_base_HW = alpha_HW
    cast_HW = cv2.GaussianBlur(_moved(shadow_base_HW, shift_x, shift_y), (0, 0), blur)
    contact_HW = cv2.GaussianBlur(shadow_base_HW, (0, 0), 0.8 + 0.25 * thickness) * CONTACT_SHADOW
    return Sprite(np.clip(lit_HW3, 0, 1.2), alpha_HW, np.maximum(cast_HW, contact_HW).astype(np.float32))


def _shade(colour_HW3: Array, height_HW: Array, light: Light, *, shine: float, metal: float) -> Array:
    slope_y, slope_x = np.gradient(height_HW)
    length_HW = np.sqrt(slope_x**2 + slope_y**2 + 1)
    nx, ny, nz = -slope_x / length_HW, -slope_y / length_HW, 1 / length_HW
    diffuse_HW = np.maximum(nx * light.x + ny * light.y + nz * light.z, 0) / light.z
    # The half vector between the lamp and a camera straight above.
    half = math.sqrt(light.x**2 + light.y**2 + (light.z + 1) ** 2)
    facing_HW = np.clip((nx * light.x + ny * light.y + nz * (light.z + 1)) / half, 0, 1)
    highlight_HW = facing_HW**24 * shine
    body_HW = light.ambient + (1 - light.ambient) * diffuse_HW
    if metal:
        room_HW = 0.72 + 0.34 * np.sin(2.6 * (nx * light.x + ny * light.y) + 1.9 * ny + 0.4)
        body_HW = (1 - metal) * body_HW + metal * body_HW * room_HW * 1.15
    return as_float(colour_HW3 * body_HW[..., None] + highlight_HW[..., None])


def _moved(plane: Array, x: float, y: float) -> Array:
    shift = np.array([[1, 0, x], [0, 1, y]], dtype=np.float32)
    return as_float(cv2.warpAffine(plane, shift, (plane.shape[1], plane.shape[0])))
