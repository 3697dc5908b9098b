"""Matches drawn: a row for each method, a column for each level, a cell for each prior that is taken.

A cell has the colour of its object and is the fuller the higher the soft label; where it is large
enough, the label stands in it. Several priors of a cell lie side by side.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from detloom.data.reading import Picture
from detloom.explain.matches import Explained, Match, Method
from detloom.pictures import colour, font, grid, text_on

__all__ = ["sheet"]

PANEL = 480
# A cell this large, in pixels of the panel, has room for its soft label.
NUMBERED = 26
FAINTEST, FULLEST = 70, 235


def sheet(explained: Explained) -> Picture:
    """Return the picture of all methods."""
    panels, titles = [], []
    for method in explained.methods:
        for stride in explained.strides:
            matches = [match for match in method.matches if match.stride == stride]
            panels.append(_panel(explained, matches, stride))
            titles.append(f"{method.title}\n{method.role}, stride {stride}: {_counted(matches, method)}")
    return grid(panels, titles=titles, columns=len(explained.strides), cell=(PANEL, PANEL))


def _counted(matches: Sequence[Match], method: Method) -> str:
    objects = len({match.target for match in matches})
    return f"{len(matches)} of {len(method.matches)}, {objects} object{'s' if objects != 1 else ''}"


def _panel(explained: Explained, matches: Sequence[Match], stride: int) -> Picture:
    height, width = explained.canvas_HW3.shape[:2]
    scale = PANEL / max(height, width)
    image = Image.fromarray(np.ascontiguousarray(explained.canvas_HW3))
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    # Pale, so that what lies on it is seen.
    image = Image.blend(image, Image.new("RGB", image.size, (255, 255, 255)), 0.35)
    canvas = ImageDraw.Draw(image, "RGBA")
    for index, (x1, y1, x2, y2) in enumerate(explained.boxes):
        canvas.rectangle((x1 * scale, y1 * scale, x2 * scale, y2 * scale), outline=colour(index), width=2)
    most = max((match.place for match in matches), default=0) + 1
    side = stride * scale
    for match in matches:
        _cell(canvas, match, scale=scale, side=side, most=most)
    return np.asarray(image, np.uint8)


def _cell(canvas: ImageDraw.ImageDraw, match: Match, *, scale: float, side: float, most: int) -> None:
    """Draw one prior; the priors of a cell are strips of it."""
    left = match.center[0] * scale - side / 2 + match.place * side / most
    top = match.center[1] * scale - side / 2
    fill = colour(match.target)
    # A NaN is drawn as nothing learned.
    quality = 0.0 if math.isnan(match.quality) else match.quality
    opacity = round(FAINTEST + (FULLEST - FAINTEST) * min(max(quality, 0.0), 1.0))
    canvas.rectangle((left, top, left + side / most - 1, top + side - 1), fill=(*fill, opacity), outline=(*fill, 255))
    if side / most >= NUMBERED:
        middle = (left + side / most / 2, top + side / 2)
        canvas.text(middle, f"{match.quality:.2f}", fill=text_on(fill), font=font(10), anchor="mm")
