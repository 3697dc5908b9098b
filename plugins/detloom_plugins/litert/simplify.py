"""Takes out of a graph what a file need not hold: copies, cuts of what was just joined, what an operator can carry.

Each step is exact; the values that are left have the numbers that they had.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from detloom_plugins.litert.convolution import Conv, Fusable, TransposedConv
from detloom_plugins.litert.graph import Graph, Node
from detloom_plugins.litert.movement import Concat, Pad, ResizeNearest, Slice
from detloom_plugins.litert.pointwise import Activation, Combine, Sigmoid
from detloom_plugins.litert.pooling import AveragePool, MaxPool, Mean
from detloom_plugins.litert.windows import Pads

__all__ = ["simplify"]

Shapes = Mapping[str, tuple[int, ...]]
_CARRIED: Mapping[str, Fusable] = {"RELU": "relu", "RELU6": "relu6"}


def simplify(graph: Graph, shapes: Shapes) -> Graph:
    """Return a graph of the same outputs with fewer nodes.

    Args:
        graph: As it was read.
        shapes: Of its values.
    """
    return _with_known_signs(_fused(_without_moves(graph, shapes)))


def _without_moves(graph: Graph, shapes: Shapes) -> Graph:
    """Leave out joins of one part, cuts that take everything, and cuts of what a join has just put there."""
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for name, read in graph.nodes.items():
        node = replace(read, inputs=tuple(renamed.get(each, each) for each in read.inputs))
        if isinstance(node.operation, Slice):
            node = _cut_of_part(node, nodes, shapes)
        if _takes_everything(node, shapes):
            renamed[name] = node.inputs[0]
        else:
            nodes[name] = node
    return _with_own_outputs(graph.with_nodes(list(nodes.values()), renamed), shapes)


def _takes_everything(node: Node, shapes: Shapes) -> bool:
    match node.operation:
        case Slice(axis=axis, start=0, stop=stop, step=1):
            return stop >= shapes[node.inputs[0]][axis]
        case Concat():
            return len(node.inputs) == 1
        case Pad(pads=pads):
            return not any(pads)
    return False


def _cut_of_part(node: Node, nodes: Mapping[str, Node], shapes: Shapes) -> Node:
    """Return a cut of one part of a join, where it lies in one, instead of a cut of the join."""
    cut, joined = node.operation, nodes.get(node.inputs[0])
    if joined is None or not isinstance(cut, Slice) or joined.operation != Concat(cut.axis):
        return node
    offset = 0
    for part in joined.inputs:
        length = shapes[part][cut.axis]
        if offset <= cut.start and cut.stop <= offset + length:
            inside = replace(cut, start=cut.start - offset, stop=cut.stop - offset)
            return _cut_of_part(replace(node, operation=inside, inputs=(part,)), nodes, shapes)
        offset += length
    return node


def _with_own_outputs(graph: Graph, shapes: Shapes) -> Graph:
    """Give each output a value of its own: a file names no tensor twice, nor its input."""
    nodes, outputs = dict(graph.nodes), list(graph.outputs)
    for index, name in enumerate(outputs):
        if name == graph.picture or name in outputs[:index]:
            copy = f"{name}.copy{index}"
            nodes[copy] = Node(copy, Slice(1, 0, shapes[name][1]), (name,), "")
            outputs[index] = copy
    return Graph(graph.picture, nodes, tuple(outputs))


def _fused(graph: Graph) -> Graph:
    """Let operators carry the affine map or activation after them, and convolutions the zeros before them."""
    readers = graph.readers()
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        before = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
        fused = None
        if before is not None and readers[before.name] == 1:
            fused = next((made for join in _JOINS if (made := join(before, node))), None)
        nodes[name] = fused or node
    return graph.with_nodes(list(nodes.values()), {})


def _with_affine(before: Node, node: Node) -> Node | None:
    affine = node.operation
    if not (isinstance(affine, Conv) and affine.is_affine):
        return None
    match before.operation:
        case Conv(activation="none") | TransposedConv():
            fused = before.operation.then(affine.weight_OIKL.flatten(), affine.bias_O)
            if isinstance(fused, Conv):
                fused = replace(fused, activation=affine.activation)
            elif affine.activation != "none":
                return None
            return replace(before, name=node.name, operation=fused)
    return None


def _with_activation(before: Node, node: Node) -> Node | None:
    match node.operation, before.operation:
        case Activation(kind="RELU" | "RELU6" as kind), (Conv(activation="none") | Combine(activation="none")) as made:
            return replace(before, name=node.name, operation=replace(made, activation=_CARRIED[kind]))
    return None


def _with_zeros(before: Node, node: Node) -> Node | None:
    match node.operation, before.operation:
        case Conv() as conv, Pad(pads=pads, number=0):
            around = Pads(*(mine + its for mine, its in zip(conv.window.pads, pads, strict=True)))
            return replace(
                node, operation=replace(conv, window=replace(conv.window, pads=around)), inputs=before.inputs
            )
    return None


_JOINS: tuple[Callable[[Node, Node], Node | None], ...] = (_with_affine, _with_activation, _with_zeros)


def _with_known_signs(graph: Graph) -> Graph:
    """Mark pools of maps without negative numbers, around which zeros may be put."""
    nodes: dict[str, Node] = {}
    never_negative: set[str] = {graph.picture}
    for name, read in graph.nodes.items():
        node = read
        passes_on = isinstance(read.operation, (MaxPool, AveragePool, Mean, Concat, Slice, ResizeNearest))
        is_never_negative = passes_on and never_negative.issuperset(read.inputs)
        if isinstance(read.operation, MaxPool):
            node = replace(read, operation=replace(read.operation, is_never_negative=is_never_negative))
        if is_never_negative or _clears_negatives(read):
            never_negative.add(name)
        nodes[name] = node
    return Graph(graph.picture, nodes, graph.outputs)


def _clears_negatives(node: Node) -> bool:
    match node.operation:
        case Activation(kind="RELU" | "RELU6") | Sigmoid():
            return True
        case Conv(activation="relu" | "relu6") | Combine(activation="relu" | "relu6"):
            return True
    return False
