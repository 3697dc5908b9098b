"""The network as one HTML page that needs nothing else: choose what colours it, point at a layer to read it."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from detloom.html_page import filled
from detloom.paths.analysis import Analysis
from detloom.paths.drawing import MARKS, SHADES, Point, at, flow_points, parts, size_of, strip
from detloom.paths.graph import PathGraph
from detloom.paths.layout import lay_out
from detloom.paths.meetings import Meeting
from detloom.paths.telling import as_data, counted

__all__ = ["page"]


def page(graph: PathGraph, analysis: Analysis, joined: Sequence[Meeting], title: str) -> str:
    """Return the page."""
    layout = lay_out(graph)
    centers = [at(layout, place) for place in layout.places]
    told = as_data(analysis, joined)
    for layer, drawn in zip(analysis.layers, told["layers"], strict=True):
        # A script's numbers are exact up to 2**53 alone.
        drawn["counted"] = counted(layer.total.paths)
        for output, reach in layer.by_output.items():
            drawn["by_output"][output]["counted"] = counted(reach.paths)
    place = {layer.name: index for index, layer in enumerate(analysis.layers)}
    data: dict[str, Any] = {
        **told,
        "title": title,
        "size": size_of(layout),
        "shades": [f"rgb{shade}" for shade in SHADES],
        "parts": {name: f"rgb{outline}" for name, outline in parts(graph).items()},
        "bands": [{"name": f"1/{band.stride}", "strip": strip(layout, band)} for band in layout.bands],
        "nodes": [
            {
                "form": node.form,
                "name": node.name,
                "mark": MARKS.get(node.form, ""),
                "layer": place.get(node.name) if node.form == "layer" else None,
                "at": center,
            }
            for node, center in zip(graph.nodes, centers, strict=True)
        ],
        "flows": [
            _line(centers[read], end) for node, end in zip(graph.nodes, centers, strict=True) for read in node.inputs
        ]
        + [
            _line(centers[output.node], at(layout, end)) for output, end in zip(graph.outputs, layout.ends, strict=True)
        ],
        "ends": [
            {"name": output.name, "at": at(layout, end)} for output, end in zip(graph.outputs, layout.ends, strict=True)
        ],
    }
    return filled(files("detloom.paths") / "page.html", data)


def _line(start: Point, end: Point) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in flow_points(start, end))
