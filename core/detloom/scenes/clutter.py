"""Things that lie about and are not to be found; some look like a coin or a key."""

import math

import numpy as np

from detloom.scenes.relief import Canvas, Relief, noise, raise_from

__all__ = ["CLUTTER"]

STRONG = (
    (0.10, 0.25, 0.60),
    (0.75, 0.15, 0.12),
    (0.10, 0.10, 0.11),
    (0.12, 0.45, 0.25),
    (0.85, 0.60, 0.10),
    (0.90, 0.90, 0.88),
)


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    return STRONG[rng.integers(len(STRONG))]


def draw_pen(rng: np.random.Generator, side: int) -> Relief:
    """Draw a ball pen with a clip."""
    canvas = Canvas(side)
    u_SS, v_SS = canvas.u_SS, canvas.v_SS
    half = rng.uniform(0.045, 0.06)
    body_SS = canvas.box(-0.05, 0, 0.85, half, half)
    tip_SS = np.maximum(np.abs(v_SS) - (0.97 - u_SS) * 0.3, np.abs(u_SS - 0.85) - 0.12)
    clip_SS = canvas.box(-0.58, -half * 0.2, 0.28, half * 0.3, 0.01)
    distance_SS = np.minimum(body_SS, np.maximum(tip_SS, np.abs(v_SS) - half))
    colour_SS3 = canvas.paint(_colour(rng))
    metal_SS = np.maximum(canvas.fill(-(u_SS - 0.66)), canvas.fill(clip_SS))[..., None]
    colour_SS3 = colour_SS3 * (1 - metal_SS) + canvas.paint((0.75, 0.75, 0.77)) * metal_SS
    height_SS = 0.06 * raise_from(distance_SS, half) + 0.03 * canvas.fill(clip_SS)
    return Relief(colour_SS3, height_SS, canvas.fill(distance_SS), shine=0.5, thickness=0.09)


def draw_pencil(rng: np.random.Generator, side: int) -> Relief:
    """Draw a hexagonal pencil with a sharpened tip."""
    canvas = Canvas(side)
    u_SS, v_SS = canvas.u_SS, canvas.v_SS
    half = rng.uniform(0.04, 0.055)
    distance_SS = np.maximum(np.maximum(np.abs(v_SS) - half, -0.95 - u_SS), np.abs(v_SS) * 4.5 + u_SS - 0.96)
    wood_SS = canvas.fill(-(np.abs(v_SS) * 0.5 + u_SS - 0.72))[..., None]
    lead_SS = canvas.fill(-(u_SS - 0.89))[..., None]
    rubber_SS = canvas.fill(u_SS + 0.83)[..., None]
    colour_SS3 = canvas.paint(_colour(rng))
    for mask_SS, colour in (
        (wood_SS, (0.82, 0.66, 0.46)),
        (lead_SS, (0.15, 0.15, 0.16)),
        (rubber_SS, (0.80, 0.48, 0.46)),
    ):
        colour_SS3 = colour_SS3 * (1 - mask_SS) + canvas.paint(colour) * mask_SS
    height_SS = 0.05 * np.clip(1 - np.abs(v_SS) / half, 0, 0.5) * 2
    return Relief(colour_SS3, height_SS.astype(np.float32), canvas.fill(distance_SS), shine=0.15, thickness=0.08)


def draw_clip(rng: np.random.Generator, side: int) -> Relief:
    """Draw a paper clip of bent wire."""
    canvas = Canvas(side)
    turn = np.linspace(-math.pi / 2, math.pi / 2, 12)

    def bow(u: float, radius: float, v: float, sign: int) -> np.ndarray:
        return np.stack((u + sign * radius * np.cos(turn), v + sign * radius * np.sin(turn)), axis=1)

    path = np.concatenate(
        (
            [[-0.4, 0.3]],
            bow(0.6, 0.28, 0.02, 1)[::-1],
            bow(-0.62, 0.22, -0.04, -1)[::-1],
            bow(0.45, 0.15, 0.03, 1)[::-1],
            [[-0.3, -0.12]],
        )
    ).astype(np.float32)
    wire_SS = canvas.stroke(path, 0.07)
    colour = _colour(rng) if rng.random() < 0.4 else (0.72, 0.73, 0.75)
    return Relief(canvas.paint(colour), 0.05 * wire_SS, wire_SS, shine=0.5, metal=0.6, thickness=0.07)


def draw_note(rng: np.random.Generator, side: int) -> Relief:
    """Draw a slip of paper with writing on it."""
    canvas = Canvas(side)
    half_v = rng.uniform(0.45, 0.85)
    distance_SS = canvas.box(0, 0, 0.85, half_v, 0.01)
    papers = ((0.95, 0.94, 0.90), (0.96, 0.90, 0.50), (0.95, 0.70, 0.75), (0.66, 0.84, 0.92))
    colour_SS3 = canvas.paint(papers[rng.integers(len(papers))])
    ink = np.asarray(rng.uniform(0.05, 0.35, 3), dtype=np.float32)
    for v in np.arange(-half_v + 0.18, half_v - 0.1, rng.uniform(0.14, 0.24)):
        end = rng.uniform(-0.1, 0.7)
        u = np.arange(-0.7, end, 0.025, dtype=np.float32)
        if len(u) < 2:
            continue
        wobble = v + 0.035 * np.sin(u * 60 + rng.uniform(0, 6)) * np.abs(np.sin(u * 11 + rng.uniform(0, 6)))
        line_SS = canvas.stroke(np.stack((u, wobble), axis=1).astype(np.float32), 0.02)[..., None] * 0.75
        colour_SS3 = colour_SS3 * (1 - line_SS) + ink * line_SS
    curl_SS = 0.03 * noise(rng, side, side, (2, 2), 2)
    return Relief(colour_SS3.astype(np.float32), curl_SS, canvas.fill(distance_SS), shine=0.0, thickness=0.025)


def draw_button(rng: np.random.Generator, side: int) -> Relief:
    """Draw a shirt button: round as a coin, with holes."""
    canvas = Canvas(side)
    radius_SS = np.hypot(canvas.u_SS, canvas.v_SS)
    count = int(rng.choice([2, 4]))
    holes = [
        canvas.disc(0.22 * math.cos(k * math.tau / count), 0.22 * math.sin(k * math.tau / count), 0.10)
        for k in range(count)
    ]
    holes_SS = canvas.fill(np.minimum.reduce(holes))
    height_SS = 0.10 * raise_from(radius_SS - 0.95, 0.2) - 0.08 * canvas.fill(radius_SS - 0.62)
    colour = np.asarray(_colour(rng), dtype=np.float32) * 0.7 + rng.uniform(0, 0.25, 3).astype(np.float32)
    colour_SS3 = canvas.paint((colour[0], colour[1], colour[2])) * (1 - 0.8 * holes_SS[..., None])
    return Relief(colour_SS3, height_SS.astype(np.float32), canvas.fill(radius_SS - 0.95), shine=0.3, thickness=0.14)


def draw_cap(rng: np.random.Generator, side: int) -> Relief:
    """Draw a bottle cap: a crimped edge, one colour, no emblem."""
    canvas = Canvas(side)
    radius_SS = np.hypot(canvas.u_SS, canvas.v_SS)
    crimps_SS = 0.045 * np.cos(np.arctan2(canvas.v_SS, canvas.u_SS) * 21)
    distance_SS = radius_SS - 0.9 - crimps_SS
    height_SS = 0.22 * raise_from(radius_SS - 0.86, 0.22) + crimps_SS * canvas.fill(-(radius_SS - 0.72)) * 0.8
    colour_SS3 = canvas.paint(_colour(rng))
    ring_SS = canvas.fill(np.abs(radius_SS - 0.5) - 0.04)[..., None] * (rng.random() < 0.5)
    colour_SS3 = colour_SS3 * (1 - ring_SS) + canvas.paint((0.92, 0.92, 0.9)) * ring_SS
    return Relief(
        colour_SS3.astype(np.float32),
        height_SS.astype(np.float32),
        canvas.fill(distance_SS),
        shine=0.45,
        metal=0.3,
        thickness=0.24,
    )


def draw_match(rng: np.random.Generator, side: int) -> Relief:
    """Draw a match."""
    canvas = Canvas(side)
    head_SS = (np.hypot((canvas.u_SS - 0.88) / 1.7, canvas.v_SS) - 0.05) * 1.2
    distance_SS = np.minimum(canvas.box(0, 0, 0.9, 0.03, 0.005), head_SS)
    head_SS = canvas.fill(head_SS)[..., None]
    colour_SS3 = canvas.paint((0.85, 0.72, 0.52)) * (1 - head_SS) + canvas.paint((0.55, 0.12, 0.10)) * head_SS
    colour_SS3 = colour_SS3 * (1 + 0.1 * noise(rng, side, side, (50, 3)))[..., None]
    return Relief(
        colour_SS3.astype(np.float32), 0.05 * raise_from(distance_SS, 0.04), canvas.fill(distance_SS), thickness=0.05
    )


def draw_string(rng: np.random.Generator, side: int) -> Relief:
    """Draw a piece of string or cable."""
    canvas = Canvas(side)
    t = np.linspace(0, 1, 60)
    wave = [np.sin(t * rng.uniform(3, 9) + rng.uniform(0, 6)) * rng.uniform(0.15, 0.45) for _ in range(2)]
    path = np.stack((t * 1.6 - 0.8 + 0.3 * wave[0], wave[1]), axis=1).astype(np.float32)
    line_SS = canvas.stroke(np.clip(path, -0.97, 0.97), rng.uniform(0.03, 0.07))
    return Relief(canvas.paint(_colour(rng)), 0.05 * line_SS, line_SS, shine=0.2, thickness=0.05)


def draw_washer(rng: np.random.Generator, side: int) -> Relief:
    """Draw a steel washer: a coin's metal, a key's hole."""
    canvas = Canvas(side)
    radius_SS = np.hypot(canvas.u_SS, canvas.v_SS)
    distance_SS = np.maximum(radius_SS - 0.95, rng.uniform(0.4, 0.6) - radius_SS)
    colour_SS3 = canvas.paint((0.62, 0.63, 0.66)) * (1 + 0.15 * noise(rng, side, side, (4, 4), 3))[..., None]
    return Relief(
        colour_SS3.astype(np.float32),
        0.06 * raise_from(distance_SS, 0.06),
        canvas.fill(distance_SS),
        shine=0.3,
        metal=0.85,
        thickness=0.1,
    )


# What is drawn, and its length as a share of the shorter side of the picture.
CLUTTER = (
    (draw_pen, 0.60),
    (draw_pencil, 0.65),
    (draw_clip, 0.16),
    (draw_note, 0.36),
    (draw_button, 0.085),
    (draw_cap, 0.135),
    (draw_match, 0.22),
    (draw_string, 0.50),
    (draw_washer, 0.10),
)
