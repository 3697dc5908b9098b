"""Things that stand on the table and are to be found: mugs and dice, each drawn anew.

Points are (x to the right, y towards the viewer, z up) in pixels; the camera sees them at
``(x, y * squash - z * rise)``. Everything is drawn twice as large and halved in the end.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from detloom.scenes.relief import Array, Light, Sprite, as_float, noise

__all__ = ["draw_die", "draw_mug"]

LARGER = 2
FRACTION_BITS = 4
CONTACT_SHADOW = 0.7
AROUND = ((-1, -1), (1, -1), (1, 1), (-1, 1))
GLAZES = (
    (0.92, 0.91, 0.88),
    (0.16, 0.22, 0.36),
    (0.70, 0.18, 0.14),
    (0.18, 0.44, 0.42),
    (0.90, 0.72, 0.24),
    (0.18, 0.18, 0.19),
    (0.55, 0.64, 0.52),
    (0.86, 0.55, 0.45),
    (0.45, 0.55, 0.72),
)
DRINKS = ((0.16, 0.08, 0.04), (0.42, 0.25, 0.14), (0.55, 0.28, 0.08), (0.72, 0.56, 0.42))
PLASTICS = (
    ((0.93, 0.92, 0.88), (0.08, 0.08, 0.09)),
    ((0.93, 0.92, 0.88), (0.70, 0.10, 0.10)),
    ((0.75, 0.12, 0.12), (0.95, 0.94, 0.92)),
    ((0.13, 0.13, 0.15), (0.93, 0.93, 0.92)),
    ((0.12, 0.30, 0.62), (0.94, 0.94, 0.92)),
    ((0.14, 0.45, 0.24), (0.94, 0.94, 0.90)),
    ((0.90, 0.78, 0.55), (0.22, 0.12, 0.06)),
)
PIPS = {
    1: ((0, 0),),
    2: ((-1, -1), (1, 1)),
    3: ((-1, -1), (0, 0), (1, 1)),
    4: ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    5: ((-1, -1), (-1, 1), (0, 0), (1, -1), (1, 1)),
    6: ((-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1)),
}


def draw_mug(rng: np.random.Generator, size: float, light: Light) -> Sprite:
    """Draw a mug as wide as ``size``: body, handle, rim, and a drink or nothing in it."""
    radius = size / 2 * LARGER
    height = radius * rng.uniform(1.5, 2.1)
    foot = radius * rng.uniform(0.80, 0.98)
    squash = light.squash
    glaze = _pick(rng, GLAZES) * rng.uniform(0.9, 1.05)
    inside = np.asarray(GLAZES[0], dtype=np.float32) if rng.random() < 0.5 else glaze
    bottom = height * light.rise / 2  # the middle of the mug is the middle of the sprite
    top = -bottom
    paper = _Paper(radius * 1.62, radius * 1.62 * squash + bottom)
    handle = _handle_path(radius, height, azimuth := rng.uniform(0, math.tau), light, bottom)
    thick = radius * rng.uniform(0.17, 0.24)
    is_behind = math.sin(azimuth) < 0.1
    if is_behind:
        _draw_handle(paper, handle, thick, glaze, light)
    paper.over(
        _wall(rng, paper, light, glaze, radius=radius, height=height, bottom=bottom),
        paper.hull(_tube((radius, top), (foot, bottom), squash)),
    )
    paper.over(np.clip(inside * 0.5 + glaze * 0.5 + 0.12, 0, 1), paper.ellipse(top, radius, radius * squash))
    lip = radius * 0.90
    hollow_HW = paper.ellipse(top, lip, lip * squash)
    away_HW = (paper.y_HW - top) / (lip * squash)
    lamp_HW = np.clip(0.45 - 0.4 * (paper.x_HW / lip * light.x + away_HW * light.y), 0.1, 1)
    paper.over(inside * (0.35 + 0.6 * lamp_HW * (0.8 + 0.2 * np.clip(away_HW, -1, 1)))[..., None], hollow_HW)
    if rng.random() < 0.75:
        drink, depth = _pick(rng, DRINKS), height * rng.uniform(0.15, 0.45)
    else:
        drink, depth = inside * 0.62, height * 0.9
    level = top + depth * light.rise
    foam_HW = 1 + 0.12 * noise(rng, hollow_HW.shape[0], hollow_HW.shape[1], (9, 9), 2)
    meniscus_HW = 1.2 - 0.3 * paper.ellipse(level, lip * 0.9, lip * 0.9 * squash)
    paper.over(
        drink * (foam_HW * meniscus_HW)[..., None], paper.ellipse(level, lip * 0.98, lip * 0.98 * squash) * hollow_HW
    )
    if not is_behind:
        _draw_handle(paper, handle, thick, glaze, light)

    base = _ring(foot / LARGER, bottom / LARGER, squash)
    x, y = light.shadow_of(height / LARGER)
    cast = _ring(radius / LARGER, bottom / LARGER, squash) + as_float([x, y])
    return paper.sprite(base, cast, blur=light.softness * height / LARGER * 0.22)


def draw_die(rng: np.random.Generator, size: float, light: Light) -> Sprite:
    """Draw a die whose edge is ``size``: a top, one or two sides, pips that add up to seven."""
    edge = size * LARGER
    yaw = rng.uniform(0, math.pi / 2)
    plastic, pip = (np.asarray(c, dtype=np.float32) for c in PLASTICS[rng.integers(len(PLASTICS))])
    axes = np.array([[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]) * (edge / 2)
    lamp = np.array([light.x, light.y, light.z])

    def seen(points_N3: NDArray[np.float64]) -> Array:
        flat_N2 = np.stack((points_N3[:, 0], points_N3[:, 1] * light.squash - points_N3[:, 2] * light.rise), axis=1)
        return flat_N2.astype(np.float32)

    signs_83 = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    paper = _Paper(edge * 0.95, edge * 0.95)
    paper.over(np.clip(plastic * 0.8 + 0.10, 0, 1), paper.hull(seen(signs_83 @ axes), round_by=edge * 0.10))
    values = [int(value) + 1 if rng.random() < 0.5 else 6 - int(value) for value in rng.permutation(3)]
    for axis in range(3):
        for sign in (1, -1):
            normal = axes[axis] * sign / (edge / 2)
            if normal[1] * light.rise + normal[2] * light.squash < 0.05:
                continue
            first, second = axes[(axis + 1) % 3], axes[(axis + 2) % 3]
            quad_43 = np.array([axes[axis] * sign + first * a + second * b for a, b in AROUND])
            bright = light.ambient * 0.9 + (1 - light.ambient) * max(0.0, float(normal @ lamp)) * 1.15 + 0.06
            face_HW3, face_HW = _face(values[axis] if sign > 0 else 7 - values[axis], plastic, pip)
            paper.stick(face_HW3 * bright, face_HW, seen(quad_43))

    base = seen(np.array([axes[0] * a + axes[1] * b - axes[2] for a, b in AROUND]) / LARGER)
    cast = base + np.array(light.shadow_of(edge / LARGER), dtype=np.float32)
    return paper.sprite(base, cast, blur=light.softness * edge / LARGER * 0.35)


class _Paper:
    """Where a standing thing is drawn; coordinates from its middle, in enlarged pixels."""

    def __init__(self, half_width: float, half_height: float) -> None:
        self.columns = math.ceil(half_width / LARGER) * LARGER
        self.rows = math.ceil(half_height / LARGER) * LARGER
        y_HW, x_HW = np.mgrid[-self.rows : self.rows, -self.columns : self.columns]
        self.x_HW: Array = x_HW.astype(np.float32) + 0.5
        self.y_HW: Array = y_HW.astype(np.float32) + 0.5
        self.colour_HW3: Array = np.zeros((*self.x_HW.shape, 3), dtype=np.float32)
        self.alpha_HW: Array = np.zeros(self.x_HW.shape, dtype=np.float32)

    def over(self, colour: Array, mask_HW: Array) -> None:
        """Paint a colour, or a picture of colours, where the mask is."""
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if len(rows) == 0:
            return
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        new = colour[part] if colour.ndim == 3 else colour
        self.colour_HW3[part] += (new - self.colour_HW3[part]) * mask_HW[part][..., None]
        self.alpha_HW[part] = np.maximum(self.alpha_HW[part], mask_HW[part])

    def stick(self, face_HW3: Array, face_HW: Array, quad_42: Array) -> None:
        """Paste a square picture on the four corners given."""
        side = face_HW.shape[0]
        corners_42 = np.array([[0, 0], [side, 0], [side, side], [0, side]], dtype=np.float32)
        turn = cv2.getPerspectiveTransform(corners_42, self._pixels(quad_42))
        size = (2 * self.columns, 2 * self.rows)
        where_HW = np.asarray(cv2.warpPerspective(face_HW, turn, size), dtype=np.float32)
        colour_HW3 = np.asarray(cv2.warpPerspective(face_HW3 * face_HW[..., None], turn, size), dtype=np.float32)
        self.colour_HW3 = self.colour_HW3 * (1 - where_HW[..., None]) + colour_HW3

    def ellipse(self, y: float, across: float, down: float) -> Array:
        """Return the mask of an ellipse in the middle, at a height of the picture."""
        distance_HW = (np.hypot(self.x_HW / across, (self.y_HW - y) / down) - 1) * min(across, down)
        return as_float(np.clip(0.5 - distance_HW, 0, 1))

    def hull(self, points_N2: Array, *, round_by: float = 0.0) -> Array:
        """Return the mask of the hull of points, its corners rounded."""
        hull_N2 = cv2.convexHull(points_N2.astype(np.float32))[:, 0]
        centre_2 = hull_N2.mean(axis=0)
        hull_N2 = hull_N2 - (hull_N2 - centre_2) * (round_by / max(float(np.abs(hull_N2 - centre_2).max()), 1e-3)) * 1.2
        mask_HW = np.zeros(self.x_HW.shape, dtype=np.uint8)
        corners_N12 = _fixed_point(self._pixels(hull_N2))
        cv2.fillPoly(mask_HW, [corners_N12], 255, lineType=cv2.LINE_AA, shift=FRACTION_BITS)
        if round_by:
            cv2.polylines(
                mask_HW,
                [corners_N12],
                isClosed=True,
                color=255,
                thickness=round(round_by * 2),
                lineType=cv2.LINE_AA,
                shift=FRACTION_BITS,
            )
        return as_float(mask_HW) / np.float32(255)

    def line(self, path_N2: Array, width: float) -> Array:
        """Return the mask of a line along a path."""
        mask_HW = np.zeros(self.x_HW.shape, dtype=np.uint8)
        points_N12 = _fixed_point(self._pixels(path_N2))
        cv2.polylines(
            mask_HW,
            [points_N12],
            isClosed=False,
            color=255,
            thickness=max(1, round(width)),
            lineType=cv2.LINE_AA,
            shift=FRACTION_BITS,
        )
        return as_float(mask_HW) / np.float32(255)

    def sprite(self, base_N2: Array, cast_N2: Array, *, blur: float) -> Sprite:
        """Return the thing at its size, with the shadow that reaches from its foot to its cast outline.

        The outlines are in pixels of the picture, from the middle.
        """
        size = (self.columns // LARGER * 2, self.rows // LARGER * 2)
        alpha_HW = cv2.resize(self.alpha_HW, size, interpolation=cv2.INTER_AREA)
        colour_HW3 = cv2.resize(self.colour_HW3 * self.alpha_HW[..., None], size, interpolation=cv2.INTER_AREA)
        colour_HW3 = np.clip(colour_HW3 / np.maximum(alpha_HW, 1e-3)[..., None], 0, 1.2)
        outline_N2 = np.concatenate((base_N2, cast_N2))
        reach_x = max(0, math.ceil(float(np.abs(outline_N2[:, 0]).max()) + 3 * blur) - size[0] // 2)
        reach_y = max(0, math.ceil(float(np.abs(outline_N2[:, 1]).max()) + 3 * blur) - size[1] // 2)
        middle_2 = np.array([size[0] / 2 + reach_x, size[1] / 2 + reach_y], dtype=np.float32)
        shape = (size[1] + 2 * reach_y, size[0] + 2 * reach_x)
        foot = float(np.abs(base_N2[:, 0]).max())
        shadow_HW = _soft_hull(shape, outline_N2 + middle_2, blur)
        contact_HW = _soft_hull(shape, base_N2 * 1.02 + middle_2, foot * 0.08) * CONTACT_SHADOW
        margin = ((reach_y, reach_y), (reach_x, reach_x))
        return Sprite(
            np.pad(colour_HW3, (*margin, (0, 0))), np.pad(alpha_HW, margin), np.maximum(shadow_HW, contact_HW)
        )

    def _pixels(self, points_N2: Array) -> Array:
        return points_N2 + np.array([self.columns, self.rows], dtype=np.float32) - np.float32(0.5)


def _face(value: int, plastic: Array, pip: Array) -> tuple[Array, Array]:
    v_HW, u_HW = np.mgrid[0:64, 0:64].astype(np.float32) - 31.5
    outside_HW = np.hypot(np.maximum(np.abs(u_HW) - 20, 0), np.maximum(np.abs(v_HW) - 20, 0)) - 9
    face_HW = np.clip(0.5 - outside_HW / 2, 0, 1)
    face_HW3 = np.broadcast_to(plastic, (64, 64, 3)) * (1 + 0.04 * (u_HW + v_HW) / 64)[..., None]
    for a, b in PIPS[value]:
        dot_HW = np.clip(5.6 - np.hypot(u_HW - a * 15.5, v_HW - b * 15.5), 0, 1)[..., None]
        face_HW3 = face_HW3 * (1 - dot_HW) + pip * dot_HW
    return face_HW3.astype(np.float32), face_HW.astype(np.float32)


def _wall(
    rng: np.random.Generator, paper: _Paper, light: Light, glaze: Array, *, radius: float, height: float, bottom: float
) -> Array:
    """Return the colour of the outer wall: glaze, a pattern round it, light across it, a gleam."""
    across_HW = np.clip(paper.x_HW / radius, -1, 1)
    front_HW = np.sqrt(1 - across_HW**2)
    angle_HW = np.arcsin(across_HW)
    level_HW = (bottom + front_HW * radius * light.squash - paper.y_HW) / max(height * light.rise, 1e-3)
    kind = rng.integers(4)
    second, low, share = _pick(rng, GLAZES), rng.uniform(0.15, 0.6), rng.uniform(0, 1)
    if kind == 0:  # a band
        mark_HW = (level_HW > low) & (level_HW < low + 0.08 + 0.22 * share)
    elif kind == 1:  # dots
        count = 2 + 2 * share
        mark_HW = np.hypot((angle_HW * count) % 1 - 0.5, (level_HW * count) % 1 - 0.5) < 0.2 + 0.2 * low
    elif kind == 2:  # dipped in another glaze
        mark_HW = level_HW < low
    else:
        mark_HW = np.zeros(level_HW.shape, dtype=np.bool_)
    lamp_HW = np.maximum(across_HW * light.x + front_HW * light.y + 0.25, 0)
    bright_HW = light.ambient * 0.8 + 0.1 + 0.75 * (1 - light.ambient) * lamp_HW
    gleam_HW: Array = 0.35 * np.exp(-(((angle_HW - math.atan2(light.x, max(light.y, 0.2))) / 0.13) ** 2))
    return as_float(np.where(mark_HW[..., None], second, glaze) * bright_HW[..., None] + gleam_HW[..., None])


def _handle_path(radius: float, height: float, azimuth: float, light: Light, bottom: float) -> Array:
    turn_N = np.linspace(-math.pi / 2, math.pi / 2, 24)
    out_N = radius * 0.92 + radius * 0.55 * np.cos(turn_N) ** 0.7
    z_N = height * 0.54 + height * 0.30 * np.sin(turn_N)
    y_N = out_N * math.sin(azimuth) * light.squash - z_N * light.rise + bottom
    return np.stack((out_N * math.cos(azimuth), y_N), axis=1).astype(np.float32)


def _draw_handle(paper: _Paper, path_N2: Array, thick: float, glaze: Array, light: Light) -> None:
    # Three lines, each narrower and nearer to the lamp, look like a round bar.
    for share, bright, gleam, shift in ((1.0, 0.50, 0.0, 0.0), (0.72, 0.78, 0.0, 0.08), (0.22, 1.15, 0.12, 0.22)):
        moved_N2 = path_N2 + np.array([light.x, light.y], dtype=np.float32) * (thick * shift)
        paper.over(np.clip(glaze * bright + gleam, 0, 1), paper.line(moved_N2, thick * share))


def _ring(radius: float, y: float, squash: float) -> Array:
    angle_N = np.linspace(0, math.tau, 48, endpoint=False)
    return np.stack((np.cos(angle_N) * radius, np.sin(angle_N) * radius * squash + y), axis=1).astype(np.float32)


def _tube(top: tuple[float, float], bottom: tuple[float, float], squash: float) -> Array:
    return np.concatenate((_ring(*top, squash), _ring(*bottom, squash)))


def _soft_hull(shape: tuple[int, int], points_N2: Array, blur: float) -> Array:
    mask_HW = np.zeros(shape, dtype=np.uint8)
    cv2.fillConvexPoly(
        mask_HW, _fixed_point(as_float(cv2.convexHull(points_N2))[:, 0]), 255, lineType=cv2.LINE_AA, shift=FRACTION_BITS
    )
    return cv2.GaussianBlur(mask_HW.astype(np.float32) / 255, (0, 0), max(blur, 0.4)).astype(np.float32)


def _fixed_point(points_N2: Array) -> NDArray[np.int32]:
    return np.asarray(np.round(points_N2 * 2**FRACTION_BITS), dtype=np.int32).reshape(-1, 1, 2)


def _pick(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> Array:
    return np.asarray(colours[rng.integers(len(colours))], dtype=np.float32)
