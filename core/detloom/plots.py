"""Plots of an evaluation, drawn with pillow: small, legible, no plotting package needed.

Shape letters: C classes, K classes and the background, R recalls.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from detloom.data.reading import Picture
from detloom.ops.curves import Curves
from detloom.pictures import BLACK, WHITE, Colour, colour, font, shortened, text_on

__all__ = ["plot_confusion", "plot_precision_recall", "smoothed", "tick_step"]

# Lines are drawn larger and shrunk, which smooths them.
FINE = 2
GRID, FRAME, FAINT = (225, 225, 225), (90, 90, 90), (196, 208, 226)
DARK_BLUE = (8, 48, 107)

MOST_NAMED_CURVES = 15
MOST_NUMBERED_CLASSES = 20


def plot_precision_recall(curves: Curves, names: Sequence[str]) -> Picture:
    """Return precision over recall: a line for each class with objects, and their mean."""
    plot, left, top = 440, 64, 46
    shown = [index for index in range(len(names)) if curves.objects_C[index]]
    shown.sort(key=lambda index: -float(curves.ap_C[index]))
    width, height = left + plot + 250, top + plot + 56
    image = Image.new("RGB", (width * FINE, height * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    text, small = font(14 * FINE), font(12 * FINE)

    def at(recall: float, precision: float) -> tuple[float, float]:
        return (left + recall * plot) * FINE, (top + (1 - precision) * plot) * FINE

    for tick in range(6):
        value = tick / 5
        canvas.line([at(value, 0), at(value, 1)], fill=GRID, width=FINE)
        canvas.line([at(0, value), at(1, value)], fill=GRID, width=FINE)
        x, y = at(value, 0)
        canvas.text((x, y + 6 * FINE), f"{value:.1f}", fill=FRAME, font=small, anchor="mt")
        x, y = at(0, value)
        canvas.text((x - 6 * FINE, y), f"{value:.1f}", fill=FRAME, font=small, anchor="rm")
    canvas.rectangle([*at(0, 1), *at(1, 0)], outline=FRAME, width=FINE)
    canvas.text((at(0.5, 0)[0], (top + plot + 30) * FINE), "recall", fill=BLACK, font=text, anchor="mt")
    canvas.text(at(0, 1.03), "precision at IoU 0.5", fill=BLACK, font=text, anchor="ls")

    is_named = len(shown) <= MOST_NAMED_CURVES
    legend: list[tuple[Colour, str, str]] = []
    for index in shown:
        line = colour(index) if is_named else FAINT
        points = [at(*point) for point in zip(curves.recalls_R, curves.precision_CR[index], strict=True)]
        canvas.line(points, fill=line, width=(2 if is_named else 1) * FINE, joint="curve")
        legend.append((line, names[index], f"{curves.ap_C[index]:.3f}"))
    if not is_named:
        ends = (*legend[: MOST_NAMED_CURVES // 2], (WHITE, "...", ""), *legend[-(MOST_NAMED_CURVES // 2) :])
        legend = list(ends)
    if shown:
        mean_R = curves.precision_CR[shown].mean(0)
        points = [at(*point) for point in zip(curves.recalls_R, mean_R, strict=True)]
        canvas.line(points, fill=BLACK, width=3 * FINE, joint="curve")
        legend.insert(0, (BLACK, f"mean of {len(shown)}", f"{curves.ap_C[shown].mean():.3f}"))
    else:
        canvas.text(at(0.5, 0.5), "nothing is annotated", fill=FRAME, font=text, anchor="mm")

    x, right = (left + plot + 20) * FINE, (width - 16) * FINE
    canvas.text((right, at(0, 1.03)[1]), "AP50", fill=BLACK, font=small, anchor="rs")
    for row, (line, name, value_text) in enumerate(legend):
        y = (top + 14 + row * 24) * FINE
        canvas.line([(x, y), (x + 22 * FINE, y)], fill=line, width=3 * FINE)
        room = right - x - 90 * FINE
        canvas.text((x + 30 * FINE, y), shortened(name, text, room), fill=BLACK, font=text, anchor="lm")
        canvas.text((right, y), value_text, fill=BLACK, font=text, anchor="rm")
    return smoothed(image)


def plot_confusion(counts_KK: NDArray[np.int64], names: Sequence[str], score: float) -> Picture:
    """Return the confusion: rows as annotated, columns as detected, shaded by the share of a row."""
    labels = [*names, "background"]
    num = len(labels)
    is_numbered = num <= MOST_NUMBERED_CLASSES + 1
    cell = max(34, min(90, 520 // num)) if is_numbered else max(8, 720 // num)
    letters = font(14 if is_numbered else max(8, min(12, cell)))
    margin = min(180, round(max(letters.getlength(label) for label in labels)) + 16)
    left, top = margin + 26, margin + 60
    width, height = left + num * cell + 20, top + num * cell + 20
    image = Image.new("RGB", (width, height), WHITE)
    canvas = ImageDraw.Draw(image)
    canvas.text((12, 8), f"IoU 0.5, score {score:.2f} and more", fill=BLACK, font=font(15))
    canvas.text((12, 28), "rows: annotated, columns: detected; shade: share of the row", fill=FRAME, font=font(12))
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    numbers = font(max(9, min(15, cell // 3)))
    for row in range(num):
        for column in range(num):
            box = [left + column * cell, top + row * cell, left + (column + 1) * cell, top + (row + 1) * cell]
            share, count = float(share_KK[row, column]), int(counts_KK[row, column])
            shade = _shade(share)
            canvas.rectangle(box, fill=shade, outline=GRID if is_numbered else None)
            if is_numbered and count:
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                canvas.text(middle, str(count), fill=text_on(shade), font=numbers, anchor="mm")
    canvas.rectangle([left, top, left + num * cell, top + num * cell], outline=FRAME)
    for index, label in enumerate(labels):
        # Names need ten pixels.
        if not is_numbered and cell < 10 and index % 2 and index < num - 1:
            continue
        center = (index + 0.5) * cell
        name = shortened(label, letters, margin - 10)
        canvas.text((left - 8, top + center), name, fill=BLACK, font=letters, anchor="rm")
        strip = Image.new("RGB", (margin, 2 * (cell // 2) + 12), WHITE)
        ImageDraw.Draw(strip).text((0, strip.height / 2), name, fill=BLACK, font=letters, anchor="lm")
        turned = strip.rotate(90, expand=True)
        mask = Image.eval(turned.convert("L"), lambda value: 255 - value)
        image.paste(turned, (round(left + center - turned.width / 2), top - margin - 6), mask)
    return np.asarray(image, np.uint8)


def _shade(share: float) -> Colour:
    """Return white for nothing, dark blue for all."""
    red, green, blue = (round(255 + (dark - 255) * share**0.7) for dark in DARK_BLUE)
    return red, green, blue


def smoothed(image: Image.Image) -> Picture:
    """Return a picture that was drawn ``FINE`` times as large, in its own size."""
    width, height = image.width // FINE, image.height // FINE
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.uint8)


def tick_step(reach: float) -> float:
    """Return the distance of ticks, a round number, of which about four reach so far."""
    raw = reach / 4
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
