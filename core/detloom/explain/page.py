"""Matches as one HTML page that needs nothing else: methods side by side, each prior with its figures."""

import base64
import io
import json
from dataclasses import asdict
from importlib.resources import files

import numpy as np
from PIL import Image

from detloom.explain.matches import Explained
from detloom.pictures import colour

__all__ = ["page"]

# What a template has in the place of the data.
PLACE = "/* DATA */ null"


def page(explained: Explained) -> str:
    """Return the page."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(explained.canvas_HW3)).save(content, "JPEG", quality=90)
    height, width = explained.canvas_HW3.shape[:2]
    data = {
        "source": explained.source,
        "picture": "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode(),
        "width": width,
        "height": height,
        "boxes": explained.boxes,
        "labels": explained.labels,
        "colours": [f"rgb{colour(index)}" for index in range(len(explained.boxes))],
        "strides": explained.strides,
        "methods": [asdict(method) for method in explained.methods],
    }
    # NaN is no JSON; a closing tag inside a name would end the script.
    text = json.dumps(_without_nan(data)).replace("</", "<\\/")
    return (files("detloom.explain") / "page.html").read_text(encoding="utf-8").replace(PLACE, text)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
