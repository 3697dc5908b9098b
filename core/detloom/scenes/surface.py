"""What things lie on: wood, cloth, stone, paper, felt, a chequered table-cloth."""

import math

import cv2
import numpy as np

from detloom.scenes.relief import Array, as_float, noise

__all__ = ["draw_surface"]

WOODS = ((0.62, 0.44, 0.28), (0.45, 0.30, 0.19), (0.74, 0.60, 0.43), (0.30, 0.20, 0.14))
CLOTHS = ((0.78, 0.75, 0.68), (0.28, 0.33, 0.42), (0.55, 0.30, 0.28), (0.45, 0.48, 0.40))
STONES = ((0.24, 0.25, 0.27), (0.52, 0.51, 0.49), (0.70, 0.69, 0.67), (0.36, 0.35, 0.33))
FELTS = ((0.13, 0.33, 0.22), (0.18, 0.22, 0.40), (0.42, 0.12, 0.16), (0.60, 0.58, 0.55))
STRIPES = ((0.70, 0.20, 0.20), (0.20, 0.32, 0.55), (0.30, 0.45, 0.30))


def draw_surface(rng: np.random.Generator, height: int, width: int) -> Array:
    """Draw a table top, ``[height, width, 3]`` in [0, 1], under even light."""
    kind = (_wood, _wood, _cloth, _stone, _marble, _felt, _chequered)[rng.integers(7)]
    return np.clip(kind(rng, height, width), 0.02, 1).astype(np.float32)


def _pick(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> Array:
    colour = np.asarray(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.12) + rng.uniform(-0.03, 0.03, 3)
    return colour.astype(np.float32)


def _wood(rng: np.random.Generator, height: int, width: int) -> Array:
    upright = rng.random() < 0.5
    rows, columns = (width, height) if upright else (height, width)
    y_HW = np.mgrid[0:rows, 0:columns][0].astype(np.float32)
    plank = rng.uniform(45, 110)
    along_HW = noise(rng, rows, columns, (rows / 14, 2.5), 3)
    rings_HW = np.sin((y_HW + 9 * along_HW + 14 * noise(rng, rows, columns, (3, 1.5))) * rng.uniform(0.25, 0.6))
    fine_HW = noise(rng, rows, columns, (rows / 1.6, 7))
    tone = rng.uniform(0.82, 1.15, math.ceil(rows / plank) + 1).astype(np.float32)
    index_HW = (y_HW // plank).astype(np.int64)
    seam_HW = 1 - 0.55 * np.clip(1.6 - np.abs((y_HW % plank) - 0.8), 0, 1)
    bright_HW = (1 + 0.10 * along_HW + 0.06 * rings_HW + 0.05 * fine_HW) * tone[index_HW] * seam_HW
    wood_HW3 = _pick(rng, WOODS) * bright_HW[..., None]
    return np.ascontiguousarray(wood_HW3.transpose(1, 0, 2)) if upright else wood_HW3


def _cloth(rng: np.random.Generator, height: int, width: int) -> Array:
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32)
    pitch = rng.uniform(1.6, 2.6)
    warp_HW = noise(rng, height, width, (4, 4)) * 2
    weave_HW = np.sin((x_HW + warp_HW) * math.tau / (2 * pitch)) * np.sin((y_HW + warp_HW) * math.tau / (2 * pitch))
    folds_HW = noise(rng, height, width, (rng.uniform(1, 3), rng.uniform(1, 3)), 2)
    bright_HW = 1 + 0.08 * weave_HW + 0.16 * folds_HW + 0.05 * noise(rng, height, width, (90, 90))
    return as_float(_pick(rng, CLOTHS) * bright_HW[..., None])


def _stone(rng: np.random.Generator, height: int, width: int) -> Array:
    grain_HW = as_float(rng.standard_normal((height, width)))
    bright_HW = 1 + 0.22 * noise(rng, height, width, (5, 5), 6) + 0.06 * grain_HW
    return _pick(rng, STONES) * bright_HW[..., None]


def _marble(rng: np.random.Generator, height: int, width: int) -> Array:
    turbulence_HW = noise(rng, height, width, (3, 3), 5)
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    veins_HW = np.abs(np.sin((x_HW * math.cos(angle) + y_HW * math.sin(angle)) * 0.03 + 5 * turbulence_HW))
    base = np.asarray((0.88, 0.87, 0.85), dtype=np.float32) * rng.uniform(0.8, 1.05)
    return as_float(base * (1 - 0.22 * np.exp(-veins_HW * 7) + 0.05 * turbulence_HW)[..., None])


def _felt(rng: np.random.Generator, height: int, width: int) -> Array:
    fuzz_HW = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 0.8)
    return _pick(rng, FELTS) * (1 + 0.22 * fuzz_HW + 0.10 * noise(rng, height, width, (4, 4), 2))[..., None]


def _chequered(rng: np.random.Generator, height: int, width: int) -> Array:
    y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32)
    angle, pitch = rng.uniform(-0.5, 0.5), rng.uniform(22, 46)
    u_HW = (x_HW * math.cos(angle) + y_HW * math.sin(angle)) % pitch < pitch / 2
    v_HW = (y_HW * math.cos(angle) - x_HW * math.sin(angle)) % pitch < pitch / 2
    share_HW = (u_HW.astype(np.float32) + v_HW) / 2
    cloth, stripe = as_float((0.90, 0.88, 0.84)), _pick(rng, STRIPES)
    folds_HW = 1 + 0.07 * noise(rng, height, width, (80, 80)) + 0.1 * noise(rng, height, width, (3, 3))
    return as_float((cloth + (stripe - cloth) * share_HW[..., None]) * folds_HW[..., None])
