"""The picture and the page."""

import json
import re

import numpy as np
import pytest

from detloom.paths.analysis import analyse
from detloom.paths.drawing import at, shade, sheet, size_of
from detloom.paths.graph import Node, Output, PathGraph
from detloom.paths.layout import lay_out
from detloom.paths.meetings import meetings
from detloom.paths.page import page

GRAPH = PathGraph(
    (
        Node("picture", "picture", (), 1),
        Node("layer", "backbone.one", (0,), 2),
        Node("layer", "backbone.two", (1,), 2),
        Node("addition", "backbone", (1, 2), 2),
        Node("layer", "head.</script>", (3,), 2),
    ),
    (Output("lead 2", 4),),
)


@pytest.mark.parametrize(("panel", "lengths"), [(0, [2, 2, 1]), (1, [3, 2, 1])])
def test_layer_has_the_colour_of_its_length(panel: int, lengths: list[int]) -> None:
    layout = lay_out(GRAPH)

    drawn_HW3 = sheet(GRAPH, analyse(GRAPH), "small")

    width, height = size_of(layout)
    assert drawn_HW3.shape == (2 * height, width, 3)
    for index, length in zip((1, 2, 4), lengths, strict=True):
        x, y = at(layout, layout.places[index])
        # Beside the number, inside the outline.
        pixel = drawn_HW3[round(y) - 6 + panel * height, round(x) - 8].astype(int)
        wanted = shade((length - 1) / (max(lengths) - 1))
        # Making the drawing smaller rounds.
        assert np.abs(pixel - wanted).max() <= 2


def test_flow_around_a_layer_has_a_lane_of_its_own() -> None:
    layout = lay_out(GRAPH)

    assert layout.places[2].row != layout.places[1].row
    assert [band.stride for band in layout.bands] == [1, 2]


def test_page_needs_nothing_else_and_no_name_ends_its_script() -> None:
    text = page(GRAPH, analyse(GRAPH), list(meetings(GRAPH)), "small")

    assert text.count("</script>") == 1
    # The name of the standard that drawings are written in is no place to fetch from.
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    data = json.loads(re.search(r"const data = (.*);\n", text)[1])  # type: ignore[index] # a page without data fails here
    assert [layer["name"] for layer in data["layers"]] == ["backbone.one", "backbone.two", "head.</script>"]
    assert len(data["flows"]) == 6


def test_page_writes_numbers_of_paths_that_scripts_cannot_hold() -> None:
    nodes = [Node("picture", "picture", (), 1), Node("layer", "a", (0,), 1)]
    nodes += [Node("addition", "a", (last, last), 1) for last in range(1, 71)]
    graph = PathGraph(tuple(nodes), (Output("map", 71),))

    text = page(graph, analyse(graph), [], "many")

    assert '"counted": "1.18e+21"' in text
