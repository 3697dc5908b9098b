"""The picture of a search, drawn with pillow: the front of two objectives, or the best so far of one.

A picture is RGB, ``uint8 [H, W, 3]``.
"""

import itertools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from detloom.data.reading import Picture
from detloom.pictures import BLACK, WHITE, font
from detloom.plots import FINE, FRAME, GRID, smoothed, tick_step
from detloom.search.front import best, front
from detloom.search.space import Objective, Trial, known

__all__ = ["plot_front"]

BETTER, OTHER = (20, 90, 160), (170, 170, 170)
LEFT, TOP, WIDE, HIGH = 80, 50, 560, 380


def plot_front(history: Sequence[Trial], objectives: Sequence[Objective]) -> Picture:
    """Return what was found: the first objective over the second, or over the trials where it is alone.

    The front is blue, and numbers are those of its trials.
    """
    trials = known(history)
    if len(objectives) > 1:
        chosen, across, blue = front(history, objectives), objectives[1].name, "the front: no point is better in all"
    else:
        chosen, across, blue = _records(history, objectives), "trial", "the best until then"
    image = Image.new("RGB", ((LEFT + WIDE + 40) * FINE, (TOP + HIGH + 60) * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    text, small = font(14 * FINE), font(12 * FINE)
    canvas.text((12 * FINE, 10 * FINE), f"{objectives[0].name} over {across}", fill=BLACK, font=text)
    canvas.text((12 * FINE, 28 * FINE), f"blue: {blue}, with the numbers of its trials", fill=BETTER, font=small)
    if not trials:
        canvas.text(((LEFT + WIDE / 2) * FINE, (TOP + HIGH / 2) * FINE), "no trial has a result", fill=FRAME, font=text)
        return smoothed(image)

    def along(trial: Trial) -> float:
        return trial.values[1] if len(objectives) > 1 else float(trial.number)

    xs, ys = _scale(list(map(along, trials))), _scale([trial.values[0] for trial in trials])

    def at(trial: Trial) -> tuple[float, float]:
        return _x(along(trial), xs), _y(trial.values[0], ys)

    _draw_axes(canvas, xs, ys)
    canvas.text(((LEFT + WIDE / 2) * FINE, (TOP + HIGH + 32) * FINE), across, fill=BLACK, font=text, anchor="mt")
    for trial in trials:
        _dot(canvas, at(trial), OTHER)
    is_wanted_high = len(objectives) > 1 and objectives[1].is_maximised
    # Of three objectives the front is a surface, of which two say no line.
    steps = sorted({at(trial) for trial in chosen}) if len(objectives) < 3 else []
    for (x, y), (later, other_y) in itertools.pairwise(steps):
        # The steps are the edge of what the front is better than.
        corner = (x, other_y) if is_wanted_high else (later, y)
        canvas.line([(x, y), corner, (later, other_y)], fill=BETTER, width=2 * FINE)
    # Points of equal values have one dot and one text.
    numbers: dict[tuple[float, float], list[str]] = {}
    for trial in chosen:
        numbers.setdefault(at(trial), []).append(str(trial.number))
    for (x, y), equal in numbers.items():
        _dot(canvas, (x, y), BETTER)
        canvas.text((x + 7 * FINE, y - 7 * FINE), ", ".join(equal), fill=BETTER, font=small, anchor="lb")
    return smoothed(image)


def _records(history: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the trials that were the best so far."""
    trials = known(history)
    return [trial for place, trial in enumerate(trials) if best(trials[: place + 1], objectives) is trial]


def _scale(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - margin, high + margin


def _draw_axes(canvas: ImageDraw.ImageDraw, xs: tuple[float, float], ys: tuple[float, float]) -> None:
    small = font(12 * FINE)
    for tick in _ticks(ys):
        canvas.line([(LEFT * FINE, _y(tick, ys)), ((LEFT + WIDE) * FINE, _y(tick, ys))], fill=GRID, width=FINE)
        canvas.text(((LEFT - 8) * FINE, _y(tick, ys)), f"{tick:,.10g}", fill=FRAME, font=small, anchor="rm")
    for tick in _ticks(xs):
        canvas.text((_x(tick, xs), (TOP + HIGH + 8) * FINE), f"{tick:,.10g}", fill=FRAME, font=small, anchor="mt")


def _ticks(ends: tuple[float, float]) -> list[float]:
    # Twice as many as elsewhere, as the ends are no ticks themselves.
    step = tick_step((ends[1] - ends[0]) / 2)
    return [step * place for place in range(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1)]


def _x(value: float, ends: tuple[float, float]) -> float:
    return (LEFT + (value - ends[0]) / (ends[1] - ends[0]) * WIDE) * FINE


def _y(value: float, ends: tuple[float, float]) -> float:
    return (TOP + (1 - (value - ends[0]) / (ends[1] - ends[0])) * HIGH) * FINE


def _dot(canvas: ImageDraw.ImageDraw, place: tuple[float, float], fill: tuple[int, int, int]) -> None:
    x, y = place
    canvas.ellipse([x - 4 * FINE, y - 4 * FINE, x + 4 * FINE, y + 4 * FINE], fill=fill)
