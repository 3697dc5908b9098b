"""Plots of a report, drawn with pillow: differences with their intervals, and learning curves.

A picture is RGB, ``uint8 [H, W, 3]``.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from detloom.data.reading import Picture
from detloom.pictures import BLACK, WHITE, colour, font, shortened
from detloom.plots import FINE, FRAME, GRID, smoothed, tick_step
from detloom.study.reporting import Report
from detloom.study.results import CellResult

__all__ = ["mean_curve", "plot_curves", "plot_differences"]

SURE, UNSURE = (20, 90, 160), (150, 150, 150)
NAMES, PLOT, ROW = 230, 520, 30


def plot_differences(report: Report) -> Picture:
    """Return each cell's difference to the baseline with its interval: blue where there is evidence of one."""
    shown = [(cell.name, each) for cell, each in report.cells if each.difference is not None]
    height = 70 + ROW * max(1, len(shown)) + 40
    image = Image.new("RGB", ((NAMES + PLOT + 40) * FINE, height * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    text, small = font(14 * FINE), font(12 * FINE)
    title = f"difference in AP to '{report.about['baseline']}', {report.about['confidence']:.0%} intervals"
    canvas.text((12 * FINE, 12 * FINE), title, fill=BLACK, font=text)
    reach = max([0.01, *(abs(end) for _, each in shown if (d := each.difference) for end in (d.low, d.high))])
    step = tick_step(reach)
    reach = step * math.ceil(reach / step)

    def x(value: float) -> float:
        return (NAMES + (value / reach + 1) / 2 * PLOT) * FINE

    bottom = (height - 40) * FINE
    for tick in np.arange(-round(reach / step), round(reach / step) + 1).tolist():
        value = tick * step
        canvas.line([(x(value), 50 * FINE), (x(value), bottom)], fill=FRAME if tick == 0 else GRID, width=FINE)
        canvas.text(
            (x(value), bottom + 6 * FINE), f"{value:+.3g}" if tick else "0", fill=FRAME, font=small, anchor="mt"
        )
    for row, (name, each) in enumerate(shown):
        assert each.difference is not None  # noqa: S101 - as chosen above
        y = (65 + row * ROW) * FINE
        is_sure = each.statement.startswith(("higher", "lower"))
        line = SURE if is_sure else UNSURE
        label = shortened(name, text, (NAMES - 24) * FINE)
        canvas.text(((NAMES - 12) * FINE, y), label, fill=BLACK, font=text, anchor="rm")
        canvas.line([(x(each.difference.low), y), (x(each.difference.high), y)], fill=line, width=3 * FINE)
        middle = x(each.difference.mean)
        canvas.ellipse([middle - 5 * FINE, y - 5 * FINE, middle + 5 * FINE, y + 5 * FINE], fill=line)
    if not shown:
        canvas.text((x(0), 65 * FINE), "nothing could be compared", fill=FRAME, font=text, anchor="mm")
    return smoothed(image)


def plot_curves(report: Report) -> Picture:
    """Return AP on the validation split over epochs: each cell's mean over its seeds."""
    curves = [(cell.name, points) for cell, _ in report.cells if (points := mean_curve(cell))]
    left, top, plot, high = 60, 50, 480, 320
    width, height = left + plot + 250, max(top + high + 50, top + 24 * len(curves) + 20)
    image = Image.new("RGB", (width * FINE, height * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    text, small = font(14 * FINE), font(12 * FINE)
    canvas.text((12 * FINE, 12 * FINE), "AP on the validation split, mean over seeds", fill=BLACK, font=text)
    last = max([1, *(epoch for _, points in curves for epoch, _ in points)])
    reach = max([0.01, *(ap for _, points in curves for _, ap in points)])
    step = tick_step(reach)
    reach = step * math.ceil(reach / step)

    def at(epoch: float, ap: float) -> tuple[float, float]:
        return (left + epoch / last * plot) * FINE, (top + (1 - ap / reach) * high) * FINE

    for tick in range(round(reach / step) + 1):
        canvas.line([at(0, tick * step), at(last, tick * step)], fill=GRID, width=FINE)
        edge, y = at(0, tick * step)
        canvas.text((edge - 6 * FINE, y), f"{tick * step:.3g}", fill=FRAME, font=small, anchor="rm")
    for epoch in sorted({0, round(last / 2), last}):
        canvas.text((at(epoch, 0)[0], at(0, 0)[1] + 6 * FINE), str(epoch), fill=FRAME, font=small, anchor="mt")
    canvas.text((at(last / 2, 0)[0], (top + high + 26) * FINE), "epoch", fill=BLACK, font=text, anchor="mt")
    for index, (name, points) in enumerate(curves):
        canvas.line([at(*point) for point in points], fill=colour(index), width=2 * FINE, joint="curve")
        for point in points:
            px, py = at(*point)
            canvas.ellipse([px - 2 * FINE, py - 2 * FINE, px + 2 * FINE, py + 2 * FINE], fill=colour(index))
        px, py = (left + plot + 20) * FINE, (top + 12 + index * 24) * FINE
        canvas.line([(px, py), (px + 22 * FINE, py)], fill=colour(index), width=3 * FINE)
        label = shortened(name, text, 190 * FINE)
        canvas.text((px + 30 * FINE, py), label, fill=BLACK, font=text, anchor="lm")
    if not curves:
        canvas.text(at(last / 2, reach / 2), "no epoch was evaluated", fill=FRAME, font=text, anchor="mm")
    return smoothed(image)


def mean_curve(cell: CellResult) -> list[tuple[float, float]]:
    """Return epoch and mean AP, where all the cell's runs that have a curve were evaluated."""
    runs = [{epoch["epoch"]: epoch["AP"] for epoch in run.curve} for run in cell.runs if run.curve]
    points: list[tuple[float, float]] = []
    for epoch in runs[0] if runs else ():
        values: Sequence[float | None] = [run.get(epoch) for run in runs]
        measured = [value for value in values if value is not None]
        if epoch is not None and len(measured) == len(runs):
            points.append((epoch, sum(measured) / len(measured)))
    return points
