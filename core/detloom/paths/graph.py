"""A network reduced to what matters to gradient paths: its layers, and where flows meet.

A node's inputs lie before it, so that a walk from the last node to the first is the way of the gradient.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Form", "Node", "Output", "PathGraph", "merged", "only"]

Form = Literal["picture", "layer", "addition", "concatenation", "product"]


@dataclass(frozen=True, slots=True)
class Node:
    """A layer, or a place where flows meet.

    Attributes:
        form: ``picture`` is where the network begins; ``layer`` is one use of learned weights that mix channels or
            positions; the others join flows, ``product`` in any way that neither adds nor concatenates.
        name: Dotted path of the module; the uses of shared weights have one name.
        inputs: Indices of the nodes that it reads, once for each time that it does.
        stride: Pixels of the picture for a cell of its map; None where it makes no map.
    """

    form: Form
    name: str
    inputs: tuple[int, ...] = ()
    stride: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A map that a loss reads, by the index of the node that makes it."""

    name: str
    node: int


@dataclass(frozen=True, slots=True)
class PathGraph:
    """Nodes in the order of the forward pass, and the outputs.

    Attributes:
        nodes: Each after its inputs.
        outputs: Where gradients start.
        unreached: Names of layers that no gradient comes to.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    unreached: tuple[str, ...] = ()

    def layers(self) -> Iterator[tuple[int, Node]]:
        """Yield the uses of layers with their indices."""
        return ((index, node) for index, node in enumerate(self.nodes) if node.form == "layer")


def merged(graph: PathGraph) -> PathGraph:
    """Return the graph with sums of sums and concatenations of concatenations as one meeting each; no path changes.

    A sum of three is written as two additions. A sum that something else reads, too, remains an input of the next, as
    in a chain of residuals; a concatenation is only its parts, whoever reads it.
    """
    ends = {output.node for output in graph.outputs}
    reads = Counter(read for node in graph.nodes for read in node.inputs)
    left = reads.copy()
    inputs: list[tuple[int, ...]] = []
    for node in graph.nodes:
        spread: list[int] = []
        for read in node.inputs:
            is_alike = graph.nodes[read].form == node.form
            is_alone = reads[read] == 1 and read not in ends
            if is_alike and (node.form == "concatenation" or (node.form == "addition" and is_alone)):
                left[read] -= 1
                spread += inputs[read]
            else:
                spread.append(read)
        inputs.append(tuple(spread))
    gone = {index for index, count in left.items() if not count and reads[index] and index not in ends}
    return _without(graph, inputs, gone)


def only(graph: PathGraph, names: Collection[str]) -> PathGraph:
    """Return the graph of some outputs; layers that none of them reads are unreached."""
    outputs = tuple(output for output in graph.outputs if output.name in names)
    needed = {output.node for output in outputs}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index in needed:
            needed.update(graph.nodes[index].inputs)
    kept = {graph.nodes[index].name for index in needed}
    lost = dict.fromkeys(node.name for _, node in graph.layers() if node.name not in kept)
    return _without(
        PathGraph(graph.nodes, outputs, (*graph.unreached, *lost)),
        [node.inputs for node in graph.nodes],
        set(range(len(graph.nodes))) - needed,
    )


def _without(graph: PathGraph, inputs: Sequence[tuple[int, ...]], gone: set[int]) -> PathGraph:
    left = [index for index in range(len(graph.nodes)) if index not in gone]
    place = {index: new for new, index in enumerate(left)}
    return PathGraph(
        tuple(replace(graph.nodes[index], inputs=tuple(place[read] for read in inputs[index])) for index in left),
        tuple(replace(output, node=place[output.node]) for output in graph.outputs),
        graph.unreached,
    )
