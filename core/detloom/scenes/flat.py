"""Things that lie flat and are to be found: coins, keys and leaves, each drawn anew."""

import math

import cv2
import numpy as np

from detloom.scenes.relief import Array, Canvas, Relief, as_float, noise, raise_from

__all__ = ["draw_coin", "draw_key", "draw_leaf"]

GOLD = (0.86, 0.68, 0.30)
SILVER = (0.76, 0.77, 0.79)
COPPER = (0.76, 0.45, 0.28)
BRASS = (0.80, 0.66, 0.36)
LEAF_COLOURS = (
    ((0.22, 0.45, 0.14), (0.40, 0.60, 0.20)),
    ((0.35, 0.50, 0.12), (0.70, 0.68, 0.20)),
    ((0.80, 0.62, 0.12), (0.88, 0.40, 0.10)),
    ((0.70, 0.20, 0.10), (0.88, 0.48, 0.12)),
    ((0.45, 0.26, 0.12), (0.62, 0.42, 0.20)),
    ((0.14, 0.32, 0.16), (0.24, 0.44, 0.22)),
)


def draw_coin(rng: np.random.Generator, side: int) -> Relief:
    """Draw a coin: gold, silver, copper or of two metals, with a rim, an emblem and some wear."""
    canvas = Canvas(side)
    radius_SS = np.hypot(canvas.u_SS, canvas.v_SS)
    angle_SS = np.arctan2(canvas.v_SS, canvas.u_SS)
    rim_SS = canvas.fill(np.abs(radius_SS - 0.87) - 0.06)
    emblem_SS = cv2.GaussianBlur(_emblem(rng, canvas), (0, 0), side / 110)
    height_SS = 0.06 * raise_from(radius_SS - 0.96, 0.06) + 0.05 * rim_SS + 0.06 * emblem_SS
    if rng.random() < 0.6:  # a circle of pearls inside the rim
        pearls = int(rng.integers(20, 36))
        height_SS += 0.03 * canvas.fill(np.abs(radius_SS - 0.74) - 0.03) * (np.cos(angle_SS * pearls) > 0)
    metals = [GOLD, SILVER, COPPER]
    outer = metals[rng.integers(3)]
    colour_SS3 = canvas.paint(outer)
    if rng.random() < 0.25:
        inner_SS = canvas.fill(radius_SS - 0.62)[..., None]
        inner = SILVER if outer != SILVER else GOLD
        colour_SS3 = colour_SS3 * (1 - inner_SS) + canvas.paint(inner) * inner_SS
    wear_SS = 1 + 0.16 * noise(rng, side, side, (4, 4), 3) - 0.22 * (1 - rim_SS) * (1 - emblem_SS) * rng.random()
    # Turning leaves fine circles; they catch light as two opposite fans.
    fan_SS = 1 + 0.13 * np.cos(2 * angle_SS + rng.uniform(0, math.tau))
    colour_SS3 = colour_SS3 * (wear_SS * fan_SS)[..., None] * rng.uniform(0.85, 1.1)
    return Relief(
        colour_SS3.astype(np.float32),
        height_SS.astype(np.float32),
        canvas.fill(radius_SS - 0.96),
        shine=0.35,
        metal=0.8,
        thickness=0.12,
    )


def draw_key(rng: np.random.Generator, side: int) -> Relief:
    """Draw a key: a bow with a hole, a blade with a groove, teeth along one side; the tip to the right."""
    canvas = Canvas(side)
    u_SS, v_SS = canvas.u_SS, canvas.v_SS
    bow_u, bow = -0.60, rng.uniform(0.30, 0.37)
    hole = rng.uniform(0.25, 0.62) * bow
    hole_u = bow_u - (bow - hole) * rng.uniform(0.1, 0.5)
    shape = rng.integers(4)
    if shape == 0:
        bow_SS = canvas.disc(bow_u, 0, bow)
    elif shape == 1:
        bow_SS = canvas.box(bow_u, 0, bow * 0.92, bow * 0.95, bow * 0.4)
    elif shape == 2:  # a trefoil
        lobes = [
            canvas.disc(bow_u + bow * 0.5 * math.cos(a), bow * 0.62 * math.sin(a), bow * 0.55) for a in (2.1, -2.1, 0)
        ]
        bow_SS = np.minimum.reduce([*lobes, canvas.disc(bow_u, 0, bow * 0.6)])
        hole, hole_u = 0.26 * bow, bow_u
    else:  # an oval across
        bow_SS = (np.hypot((u_SS - bow_u) / 0.8, v_SS / 1.15) - bow) * 0.8
    hole_SS = canvas.disc(hole_u, 0, hole)
    tip = rng.uniform(0.82, 0.95)
    half = rng.uniform(0.085, 0.115)
    blade_SS = np.maximum(
        canvas.box((tip - 0.4) / 2, 0, (tip + 0.4) / 2, half, 0.02), (u_SS - tip) + np.abs(v_SS) * 0.8
    )
    cuts_SS = np.full_like(u_SS, 9.0)
    if rng.random() < 0.65:  # a cut blade: notches of several depths
        for start in np.arange(0.02, tip - 0.14, 0.125):
            depth = rng.uniform(0.01, half * 1.1)
            notch_SS = (half - depth) - v_SS + np.abs(u_SS - start - 0.06) * 1.1
            cuts_SS = np.minimum(cuts_SS, notch_SS)
        body_SS = np.maximum(blade_SS, -cuts_SS)
    else:  # an old key: a bit with teeth at the end of a round blade
        teeth = [
            canvas.box(tip - 0.06 - k * 0.13, half + 0.07, 0.045, rng.uniform(0.06, 0.14), 0.01)
            for k in range(int(rng.integers(2, 4)))
        ]
        body_SS = np.minimum.reduce([blade_SS, *teeth])
    metal_SS = np.minimum(body_SS, bow_SS)
    distance_SS = np.maximum(metal_SS, -hole_SS)
    groove_SS = (
        canvas.fill(np.abs(v_SS + half * 0.25) - half * 0.22)
        * canvas.fill(-(u_SS + 0.25))
        * canvas.fill(u_SS - tip + 0.1)
    )
    height_SS = 0.05 * raise_from(distance_SS, 0.05) - 0.03 * cv2.GaussianBlur(groove_SS, (0, 0), side / 150)
    colour_SS3 = canvas.paint((BRASS, SILVER, SILVER, COPPER)[rng.integers(4)])
    metal = 0.85
    if rng.random() < 0.3:  # a plastic cap on the bow
        cap = rng.uniform(0.05, 0.75, 3)
        cap_SS = canvas.fill(bow_SS)[..., None]
        colour_SS3 = colour_SS3 * (1 - cap_SS) + canvas.paint((cap[0], cap[1], cap[2])) * cap_SS
        height_SS = height_SS + 0.04 * raise_from(bow_SS, 0.08)
        metal = 0.5
    wear_SS = 1 + 0.14 * noise(rng, side, side, (5, 5), 3) + 0.05 * noise(rng, side, side, (60, 3))
    return Relief(
        (colour_SS3 * wear_SS[..., None] * rng.uniform(0.8, 1.05)).astype(np.float32),
        height_SS.astype(np.float32),
        canvas.fill(distance_SS),
        shine=0.4,
        metal=metal,
        thickness=0.05,
    )


def draw_leaf(rng: np.random.Generator, side: int) -> Relief:
    """Draw a leaf: long, lobed or like a hand, with veins, blemishes, and a stalk to the left."""
    canvas = Canvas(side)
    bend = rng.uniform(-0.22, 0.22)
    v_SS = canvas.v_SS - bend * (canvas.u_SS**2 - 0.35)
    if rng.random() < 0.3:
        distance_SS, veins_SS = _hand(rng, canvas, v_SS)
    else:
        distance_SS, veins_SS = _blade(rng, canvas, v_SS)
    stalk_SS = canvas.fill(np.maximum(np.abs(v_SS) - 0.018, np.abs(canvas.u_SS + 0.64) - 0.34))
    alpha_SS = np.maximum(canvas.fill(distance_SS), stalk_SS)
    veins_SS = as_float(cv2.GaussianBlur(veins_SS, (0, 0), max(side / 220, 0.3)))
    puff_SS = 0.05 * np.tanh(np.clip(-distance_SS, 0, None) * 6) + 0.04 * noise(rng, side, side, (4, 4), 2)
    height_SS = puff_SS - 0.035 * veins_SS
    inner, outer = (np.asarray(c, dtype=np.float32) for c in LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))])
    blend_SS = np.clip(
        0.5 + 1.2 * noise(rng, side, side, (2.5, 2.5), 3) + 0.5 * (1 + distance_SS * 5).clip(-1, 1), 0, 1
    )
    colour_SS3 = inner + (outer - inner) * blend_SS[..., None]
    blemish_SS = (noise(rng, side, side, (14, 14), 2) > 0.55) * rng.uniform(0, 0.4)
    colour_SS3 = colour_SS3 * (1 - blemish_SS[..., None]) + 0.30 * veins_SS[..., None] * (outer * 0.6 + 0.35)
    return Relief(
        (colour_SS3 * rng.uniform(0.85, 1.12)).astype(np.float32),
        height_SS.astype(np.float32),
        alpha_SS.astype(np.float32),
        shine=rng.uniform(0.02, 0.2),
        thickness=rng.uniform(0.03, 0.10),
    )


def _blade(rng: np.random.Generator, canvas: Canvas, v_SS: Array) -> tuple[Array, Array]:
    t_SS = np.clip((canvas.u_SS + 0.62) / 1.57, 0, 1)
    width = rng.uniform(0.24, 0.44)
    outline_SS = width * np.clip(np.sin(math.pi * t_SS ** rng.uniform(0.62, 1.0)), 0, 1) ** rng.uniform(0.8, 1.2)
    kind = rng.random()
    if kind < 0.3:  # lobes as of an oak
        outline_SS = outline_SS * (0.72 + 0.36 * np.cos(t_SS * math.tau * rng.uniform(2.6, 4.2) + 1.0))
    elif kind < 0.65:  # a saw's edge
        outline_SS = outline_SS * (0.92 + 0.12 * ((t_SS * rng.uniform(12, 20)) % 1))
    distance_SS = np.abs(v_SS) - outline_SS
    outside_SS = np.maximum(-0.62 - canvas.u_SS, canvas.u_SS - 0.95)
    distance_SS = np.maximum(distance_SS, outside_SS)
    ribs = rng.uniform(6, 10)
    phase_SS = ((t_SS - 0.55 * np.abs(v_SS)) * ribs) % 1
    side_veins_SS = (np.abs(phase_SS - 0.5) < 0.045 * ribs / 8) * (t_SS > 0.03) * 0.8
    middle_SS = canvas.fill(np.abs(v_SS) - 0.020 * (1.15 - t_SS))
    return distance_SS, np.maximum(middle_SS, side_veins_SS)


def _hand(rng: np.random.Generator, canvas: Canvas, v_SS: Array) -> tuple[Array, Array]:
    u_SS = canvas.u_SS + 0.12
    radius_SS, angle_SS = np.hypot(u_SS, v_SS), np.arctan2(v_SS, u_SS)
    outline_SS = np.full_like(u_SS, 0.24)
    veins_SS = np.zeros_like(u_SS)
    for direction, length in ((0.0, 0.98), (0.95, 0.80), (-0.95, 0.80), (1.95, 0.52), (-1.95, 0.52)):
        reach = length * rng.uniform(0.88, 1.02)
        off_SS = np.abs((angle_SS - direction + math.pi) % math.tau - math.pi)
        jag_SS = 1 + 0.10 * np.cos(off_SS * 26)
        outline_SS = np.maximum(outline_SS, reach * np.clip(1 - (off_SS / 0.62) * jag_SS, 0, 1) ** 0.62)
        along_SS = u_SS * math.cos(direction) + v_SS * math.sin(direction)
        across_SS = np.abs(v_SS * math.cos(direction) - u_SS * math.sin(direction))
        veins_SS = np.maximum(veins_SS, canvas.fill(across_SS - 0.016) * (along_SS > 0) * (along_SS < reach))
    return (radius_SS - outline_SS) * 0.7, veins_SS


def _emblem(rng: np.random.Generator, canvas: Canvas) -> Array:
    """Draw what stands in the middle of a coin: a number, a star, a head or a ring of leaves."""
    kind = rng.integers(4)
    radius_SS = np.hypot(canvas.u_SS, canvas.v_SS)
    angle_SS = np.arctan2(canvas.v_SS, canvas.u_SS)
    if kind == 0:
        mask_SS = np.zeros((canvas.side, canvas.side), dtype=np.uint8)
        text = str(rng.choice(["1", "2", "5", "10", "20", "50"]))
        scale = canvas.side / 55
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, max(1, round(scale * 3)))
        scale *= min(1.0, canvas.side * 0.55 / max(width, height))
        weight = max(1, round(scale * 3))
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, weight)
        corner = ((canvas.side - width) // 2, (canvas.side + height) // 2)
        cv2.putText(mask_SS, text, corner, cv2.FONT_HERSHEY_DUPLEX, scale, 255, weight, cv2.LINE_AA)
        return as_float(mask_SS) / np.float32(255)
    if kind == 1:
        points = int(rng.integers(5, 9))
        wave_SS = np.abs(((angle_SS * points / math.tau) % 1) - 0.5) * 2
        return canvas.fill(radius_SS - (0.25 + 0.33 * wave_SS))
    if kind == 2:  # a head in profile: skull, nose, neck
        head = [
            canvas.disc(-0.04, -0.12, 0.30),
            canvas.disc(0.22, -0.02, 0.12),
            canvas.box(-0.08, 0.28, 0.16, 0.24, 0.05),
        ]
        bust = canvas.box(-0.06, 0.50, 0.36, 0.08, 0.07)
        return canvas.fill(np.minimum.reduce([*head, bust]))
    leaves_SS = canvas.fill(np.abs(radius_SS - 0.48) - 0.11 * np.abs(np.sin(angle_SS * int(rng.integers(7, 12)))))
    return np.maximum(leaves_SS, canvas.fill(canvas.box(0, 0, 0.10, 0.26, 0.05)))
