"""Which 8-bit scale each value has: its range's, one that the format demands, or one that several values share.

Joining, cutting, pooling, padding and enlarging pass 8-bit numbers through as they are, so what goes in and what comes
out must mean the same. Where a scale is given beforehand, as the picture's, and others differ, a change of scale is put
between.

Reference: Jacob et al. 2018, arXiv:1712.05877, section 2.1 and appendix A.3.
"""

from collections.abc import Collection, Mapping

from detloom_plugins.litert.graph import Graph, Node, Scale
from detloom_plugins.litert.pointwise import Requantise

__all__ = ["PICTURE", "Range", "choose_scales", "scale_of", "separate"]

Range = tuple[float, float]
"""Least and largest number that a value is to hold."""

PICTURE = Scale(1 / 255, -128)
"""Of the picture: ``q`` is the pixel, of 0 to 255, less 128."""

LEAST_WIDTH = 1e-6


def scale_of(numbers: Range) -> Scale:
    """Return the scale that reaches from the least to the largest number and holds zero exactly."""
    low, high = min(numbers[0], 0.0), max(numbers[1], 0.0)
    scale = max(high - low, LEAST_WIDTH) / 255
    return Scale(scale, min(max(round(-128 - low / scale), -128), 127))


def separate(graph: Graph, floats: Collection[str]) -> Graph:
    """Return a graph with a change of scale wherever numbers of different given scales would come together.

    Args:
        graph: What is to be written.
        floats: Names of the nodes that compute in float32.
    """
    nodes: list[Node] = []
    given = _given(graph, floats)
    changed: dict[str, str] = {}
    for name, node in graph.nodes.items():
        inputs = node.inputs
        if node.operation.shares_scale and name not in floats and given.get(name) is None:
            for each in inputs:
                if given.get(each) is not None and each not in changed:
                    changed[each] = f"{each}.requantised"
                    nodes.append(Node(changed[each], Requantise(), (each,), node.path))
            inputs = tuple(changed.get(each, each) for each in inputs)
        nodes.append(Node(name, node.operation, inputs, node.path))
    return graph.with_nodes(nodes, {})


def choose_scales(graph: Graph, ranges: Mapping[str, Range], floats: Collection[str]) -> dict[str, Scale]:
    """Return the scale of each value that has 8 bits.

    Args:
        graph: Separated.
        ranges: Of all its values.
        floats: Names of the nodes that compute in float32.
    """
    given = _given(graph, floats)
    leaders: dict[str, str] = {}

    def leader(name: str) -> str:
        while name in leaders:
            name = leaders[name]
        return name

    for name, node in graph.nodes.items():
        if node.operation.shares_scale and name not in floats:
            for each in node.inputs:
                if leader(each) != leader(name):
                    leaders[leader(each)] = leader(name)
    shared: dict[str, Range] = {}
    for name in (graph.picture, *graph.nodes):
        low, high = shared.get(leader(name), (0.0, 0.0))
        shared[leader(name)] = (min(low, ranges[name][0]), max(high, ranges[name][1]))
    return {name: given.get(name) or scale_of(shared[leader(name)]) for name in (graph.picture, *graph.nodes)}


def _given(graph: Graph, floats: Collection[str]) -> dict[str, Scale | None]:
    """Return the scales that are no choice: the picture's, demanded ones, and those that they are passed on as."""
    given: dict[str, Scale | None] = {graph.picture: PICTURE}
    for name, node in graph.nodes.items():
        if name in floats:
            continue
        given[name] = node.operation.demanded
        passed = {given.get(each) for each in node.inputs}
        if node.operation.shares_scale and len(passed) == 1:
            (given[name],) = passed
    return given
