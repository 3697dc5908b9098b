"""The network drawn twice, layers coloured by their shortest and by their longest gradient path."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from detloom.data.reading import Picture
from detloom.paths.analysis import Analysis, LayerPaths
from detloom.paths.graph import Node, PathGraph
from detloom.paths.layout import Band, Layout, Place, lay_out
from detloom.pictures import colour, font, text_on

__all__ = ["MARKS", "at", "flow_points", "parts", "shade", "sheet", "size_of", "strip"]

Colour = tuple[int, int, int]
Point = tuple[float, float]

MARKS = {"addition": "+", "concatenation": "c", "product": "x", "picture": ""}

# Drawn larger and made smaller, so that lines are smooth.
FINE = 2
COLUMN, ROW, BAND_GAP = 36, 30, 16
LEFT, TOP, RIGHT, BOTTOM = 64, 66, 70, 14
BOX, MARK = (28, 21), 15
# The heading needs it.
LEAST_WIDTH = 760
BENDS = 12
SHADES: Sequence[Colour] = ((255, 243, 191), (253, 174, 97), (221, 73, 104), (114, 31, 129), (28, 16, 68))
WHITE, BLACK, INK, FLOW = (255, 255, 255), (0, 0, 0), (90, 90, 90), (165, 165, 165)
BANDS: Sequence[Colour] = ((247, 247, 250), (238, 239, 244))


def sheet(graph: PathGraph, analysis: Analysis, title: str) -> Picture:
    """Return both drawings, one below the other."""
    layout = lay_out(graph)
    panels = [
        _panel(graph, analysis, layout, f"{title}: {words}", length_of)
        for words, length_of in (
            ("shortest gradient path of each layer, in layers", _shortest),
            ("longest gradient path of each layer, in layers", _longest),
        )
    ]
    return np.concatenate(panels)


def shade(share: float) -> Colour:
    """Return a colour between pale for 0 and dark for 1."""
    place = min(max(share, 0.0), 1.0) * (len(SHADES) - 1)
    low = min(int(place), len(SHADES) - 2)
    red, green, blue = (round(a + (b - a) * (place - low)) for a, b in zip(SHADES[low], SHADES[low + 1], strict=True))
    return red, green, blue


def parts(graph: PathGraph) -> dict[str, Colour]:
    """Return a colour for each part of the detector that has layers."""
    names = dict.fromkeys(node.name.partition(".")[0] for _, node in graph.layers())
    return {name: colour(index + 3) for index, name in enumerate(names)}


def at(layout: Layout, place: Place) -> Point:
    """Return the middle of a place in pixels."""
    return LEFT + (place.column + 0.5) * COLUMN, _row_at(layout, place.row)


def strip(layout: Layout, band: Band) -> tuple[float, float]:
    """Return the top and the bottom of a band in pixels."""
    last = band.first + band.lanes - 1
    return _row_at(layout, band.first) - ROW / 2 - 4, _row_at(layout, last) + ROW / 2 + 4


def size_of(layout: Layout) -> tuple[int, int]:
    """Return width and height of a drawing in pixels."""
    width = max(LEFT + layout.columns * COLUMN + RIGHT, LEAST_WIDTH)
    return width, round(_row_at(layout, layout.rows - 1) + ROW / 2 + BOTTOM)


def flow_points(start: Point, end: Point) -> list[Point]:
    """Return the line of a flow: along the lane of its start, and in a curve to its end in the last column."""
    (x0, y0), (x1, y1) = start, end
    turn = max(x0, x1 - COLUMN)
    bend = [step / BENDS for step in range(BENDS + 1)]
    return [(x0, y0), *((turn + (x1 - turn) * t, y0 + (y1 - y0) * t * t * (3 - 2 * t)) for t in bend)]


def _shortest(layer: LayerPaths) -> int:
    return layer.total.shortest


def _longest(layer: LayerPaths) -> int:
    return layer.total.longest


def _panel(
    graph: PathGraph, analysis: Analysis, layout: Layout, title: str, length_of: Callable[[LayerPaths], int]
) -> Picture:
    lengths = {layer.name: length_of(layer) for layer in analysis.layers}
    most = max(lengths.values(), default=1)
    width, height = size_of(layout)
    image = Image.new("RGB", (width * FINE, height * FINE), WHITE)
    canvas = ImageDraw.Draw(image)
    _heading(canvas, title, most, parts(graph))
    for index, band in enumerate(layout.bands):
        top, bottom = strip(layout, band)
        canvas.rectangle(_fine((0, top, width, bottom)), fill=BANDS[index % 2])
        canvas.text(_spot((10, (top + bottom) / 2)), f"1/{band.stride}", fill=INK, font=font(15 * FINE), anchor="lm")
    centers = [at(layout, place) for place in layout.places]
    for node, end in zip(graph.nodes, centers, strict=True):
        for read in node.inputs:
            _flow(canvas, centers[read], end)
    for output, place in zip(graph.outputs, layout.ends, strict=True):
        x, y = at(layout, place)
        _flow(canvas, centers[output.node], (x - 12, y))
        canvas.text(_spot((x - 10, y)), output.name, fill=BLACK, font=font(13 * FINE), anchor="lm")
    outlines = parts(graph)
    for node, center in zip(graph.nodes, centers, strict=True):
        if node.form != "layer":
            _node(canvas, node, center)
            continue
        length = lengths[node.name]
        fill = shade((length - 1) / max(most - 1, 1))
        _layer(canvas, center, length, fill=fill, outline=outlines[node.name.partition(".")[0]])
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.uint8)


def _heading(canvas: ImageDraw.ImageDraw, title: str, most: int, outlines: dict[str, Colour]) -> None:
    canvas.text(_spot((10, 6)), title, fill=BLACK, font=font(17 * FINE))
    steps, left, y = 60, 34, 36
    canvas.text(_spot((left - 6, y + 7)), "1", fill=INK, font=font(13 * FINE), anchor="rm")
    for step in range(steps):
        x = left + step * 3
        canvas.rectangle(_fine((x, y, x + 3, y + 14)), fill=shade(step / (steps - 1)))
    x = left + steps * 3 + 6
    canvas.text(_spot((x, y + 7)), str(most), fill=INK, font=font(13 * FINE), anchor="lm")
    x += 50
    for name, outline in outlines.items():
        canvas.rounded_rectangle(_fine((x, y, x + 20, y + 14)), 4 * FINE, fill=WHITE, outline=outline, width=2 * FINE)
        canvas.text(_spot((x + 26, y + 7)), name, fill=INK, font=font(13 * FINE), anchor="lm")
        x += 40 + round(font(13).getlength(name))
    text = "+ addition   c concatenation   x product"
    canvas.text(_spot((x + 10, y + 7)), text, fill=INK, font=font(13 * FINE), anchor="lm")


def _node(canvas: ImageDraw.ImageDraw, node: Node, center: Point) -> None:
    """Draw a place where flows meet, or the picture."""
    x, y = center
    half = MARK / 2
    fill = INK if node.form == "picture" else WHITE
    canvas.ellipse(_fine((x - half, y - half, x + half, y + half)), fill=fill, outline=INK, width=FINE)
    canvas.text(_spot((x, y - 0.5)), MARKS[node.form], fill=BLACK, font=font(12 * FINE), anchor="mm")


def _layer(canvas: ImageDraw.ImageDraw, center: Point, length: int, *, fill: Colour, outline: Colour) -> None:
    x, y = center
    box = _fine((x - BOX[0] / 2, y - BOX[1] / 2, x + BOX[0] / 2, y + BOX[1] / 2))
    canvas.rounded_rectangle(box, 5 * FINE, fill=fill, outline=outline, width=2 * FINE)
    canvas.text(_spot(center), str(length), fill=text_on(fill), font=font(12 * FINE), anchor="mm")


def _flow(canvas: ImageDraw.ImageDraw, start: Point, end: Point) -> None:
    points = [(x * FINE, y * FINE) for x, y in flow_points(start, end)]
    canvas.line(points, fill=FLOW, width=2 * FINE, joint="curve")


def _row_at(layout: Layout, row: int) -> float:
    """Return the middle of a row in pixels; bands have gaps between them."""
    before = sum(band.first <= row for band in layout.bands) - 1
    return TOP + BAND_GAP / 2 + (row + 0.5) * ROW + before * BAND_GAP


def _fine(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(number * FINE for number in numbers)


def _spot(point: Point) -> Point:
    return point[0] * FINE, point[1] * FINE
