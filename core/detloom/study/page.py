"""A report as one HTML page that needs nothing else: a table to sort and filter, curves, detections side by side."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from detloom.data.reading import read_picture
from detloom.errors import DataError
from detloom.html_page import filled
from detloom.pictures import colour, jpeg_url
from detloom.study.matches import Matches
from detloom.study.reporting import COLUMNS, Report, as_data, rows

__all__ = ["page"]

MOST_PICTURES, LONGEST_SIDE, MOST_BOXES, LEAST_SCORE = 6, 480, 60, 0.05


def page(report: Report) -> str:
    """Return the page."""
    data = as_data(report)
    content = {
        **data,
        "columns": COLUMNS,
        "rows": rows(report),
        "colours": [f"rgb{colour(index)}" for index in range(len(report.cells))],
        "pictures": _pictures(report),
    }
    return filled(files("detloom.study") / "page.html", content)


def _pictures(report: Report) -> dict[str, Any]:
    """Return some pictures of the validation split, and what the first finished run of each cell found there."""
    first = [next(iter(cell.finished.values()), None) for cell, _ in report.cells]
    found = [None if run is None else Matches.read(run.matches) for run in first]
    known = next((each for each in found if each is not None), None)
    if known is None:
        return {"names": [], "images": []}
    with_objects = np.flatnonzero(known.objects_IC.any(1))
    places = np.linspace(0, len(with_objects) - 1, min(MOST_PICTURES, len(with_objects))).round().astype(int)
    images = []
    for index in with_objects[places].tolist():
        picture = _picture(Path(known.pictures[index]))
        if picture is not None:
            images.append({**picture, "found": [None if each is None else _boxes(each, index) for each in found]})
    names = [{"name": name, "colour": f"rgb{colour(index)}"} for index, name in enumerate(known.names)]
    return {"names": names, "images": images, "seeds": [None if run is None else run.seed for run in first]}


def _picture(path: Path) -> dict[str, Any] | None:
    try:
        picture_HW3 = read_picture(path)
    except DataError:
        # It has gone since; the numbers remain right.
        return None
    height, width = picture_HW3.shape[:2]
    source = jpeg_url(picture_HW3, quality=80, longest_side=LONGEST_SIDE)
    return {"name": path.name, "source": source, "width": width, "height": height}


def _boxes(matches: Matches, index: int) -> list[dict[str, Any]]:
    """Return the best boxes of an image, and whether each is right at an overlap of a half."""
    place_N = np.flatnonzero((matches.image_N == index) & (matches.score_N >= LEAST_SCORE))[:MOST_BOXES]
    return [
        {
            "box": [round(float(edge), 1) for edge in matches.boxes_N4[place]],
            "score": round(float(matches.score_N[place]), 3),
            "label": int(matches.label_N[place]),
            "right": bool(matches.right_N[place] & 1),
        }
        for place in place_N.tolist()
    ]
