"""Where the nodes of a graph lie in a drawing: by depth from left to right, by the size of their maps from top down.

A **column** is the greatest number of nodes between the picture and the node. A **band** holds the nodes of one
stride; it has as many **lanes** as flows run side by side. A node that is read later in its band keeps its lane until
then, so that a flow that goes around others is seen to do so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from detloom.paths.graph import Node, PathGraph

__all__ = ["Band", "Layout", "Place", "lay_out"]


@dataclass(frozen=True, slots=True)
class Place:
    """Of a node: its column, and its row among the lanes of all bands."""

    column: int
    row: int


@dataclass(frozen=True, slots=True)
class Band:
    """The lanes of one stride.

    Attributes:
        stride: Of the maps.
        first: Its first row.
        lanes: How many rows it has.
    """

    stride: int
    first: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a graph.

    Attributes:
        places: One for each node.
        ends: One for each output, beside the node that makes it.
        bands: From the top down.
        columns: How many there are.
        rows: How many there are.
    """

    places: tuple[Place, ...]
    ends: tuple[Place, ...]
    bands: tuple[Band, ...]
    columns: int
    rows: int


def lay_out(graph: PathGraph) -> Layout:
    """Return the places of all nodes and outputs."""
    ends = [Node("product", output.name, (output.node,)) for output in graph.outputs]
    nodes = [*graph.nodes, *ends]
    strides = _strides(nodes)
    columns: list[int] = []
    for node in nodes:
        columns.append(1 + max((columns[read] for read in node.inputs), default=-1))
    lanes = _lanes(nodes, strides, columns)
    bands: list[Band] = []
    for stride in sorted(set(strides)):
        count = 1 + max(lane for lane, its in zip(lanes, strides, strict=True) if its == stride)
        bands.append(Band(stride, bands[-1].first + bands[-1].lanes if bands else 0, count))
    first = {band.stride: band.first for band in bands}
    places = [Place(column, first[stride] + lane) for column, stride, lane in zip(columns, strides, lanes, strict=True)]
    return Layout(
        places=tuple(places[: len(graph.nodes)]),
        ends=tuple(places[len(graph.nodes) :]),
        bands=tuple(bands),
        columns=1 + max(columns),
        rows=bands[-1].first + bands[-1].lanes,
    )


def _strides(nodes: Sequence[Node]) -> list[int]:
    """Return a stride for each node; what makes no map lies beside what it reads."""
    strides: list[int] = []
    for node in nodes:
        strides.append(node.stride or (strides[node.inputs[0]] if node.inputs else 1))
    return strides


def _lanes(nodes: Sequence[Node], strides: Sequence[int], columns: Sequence[int]) -> list[int]:
    """Return a lane of its band for each node: that of what it reads if it is free, else the first free one."""
    until = list(columns)
    for index, node in enumerate(nodes):
        for read in node.inputs:
            if strides[read] == strides[index]:
                until[read] = max(until[read], columns[index] - 1)
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
    lanes: list[int] = [0] * len(nodes)
    for index in sorted(range(len(nodes)), key=lambda each: (columns[each], each)):
        stride, start, end = strides[index], columns[index], until[index]
        reads = [lanes[read] for read in nodes[index].inputs if strides[read] == stride]
        lane = next(
            lane
            for lane in (*reads, *range(len(nodes)))
            if all(end < a or b < start for a, b in taken.get((stride, lane), []))
        )
        lanes[index] = lane
        taken.setdefault((stride, lane), []).append((start, end))
    return lanes
