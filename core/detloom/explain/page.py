"""Matches as one HTML page that needs nothing else: methods side by side, each prior with its figures."""

from dataclasses import asdict
from importlib.resources import files

from detloom.explain.matches import Explained
from detloom.html_page import filled
from detloom.pictures import colour, jpeg_url

__all__ = ["page"]


def page(explained: Explained) -> str:
    """Return the page."""
    height, width = explained.canvas_HW3.shape[:2]
    data = {
        "source": explained.source,
        "picture": jpeg_url(explained.canvas_HW3, quality=90),
        "width": width,
        "height": height,
        "boxes": explained.boxes,
        "labels": explained.labels,
        "colours": [f"rgb{colour(index)}" for index in range(len(explained.boxes))],
        "strides": explained.strides,
        "methods": [asdict(method) for method in explained.methods],
    }
    return filled(files("detloom.explain") / "page.html", data)
