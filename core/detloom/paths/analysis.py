"""How gradients come to each layer: lengths, numbers, times and sources of their paths.

A gradient path leads from an output against the forward pass to a layer. Its **length** is the number of layers on it,
the layer itself counted: the layer that makes an output has 1. Two paths are distinct if they take a different
edge somewhere, so that three poolings side by side are three paths. A **step** (the timestamp of the ELAN paper) is a
length that at least one path has: gradients of different steps have passed a different number of layers. A **source**
is a layer, or an output, from which a gradient comes without another layer between.

References: Wang et al., CSPNet (2020), section 3, equations 2 and 3, for sources: counted from the loss, the k-th layer
of a dense block is updated with the gradients of k sources; Wang, Liao and Yeh, Designing network design strategies
through gradient path analysis (2022), section 3, for steps, sources, and the shortest and longest path.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from detloom.paths.graph import PathGraph

__all__ = ["Analysis", "LayerPaths", "Reach", "Stage", "analyse"]


@dataclass(frozen=True, slots=True)
class Reach:
    """The paths from an output, or from several, to a layer.

    Attributes:
        paths: How many there are.
        steps: The lengths that they have, ascending and each once.
    """

    paths: int
    steps: tuple[int, ...]

    @property
    def shortest(self) -> int:
        """Return the length of the shortest path in layers."""
        return self.steps[0]

    @property
    def longest(self) -> int:
        """Return the length of the longest path in layers."""
        return self.steps[-1]


@dataclass(frozen=True, slots=True)
class LayerPaths:
    """What comes to a layer.

    Attributes:
        name: Dotted path of the module.
        stage: Its part of the detector and the size of its maps.
        uses: How often the forward pass has it.
        total: The paths from all outputs.
        by_output: The paths from each output that reaches it.
        sources: Names of the layers and outputs whose gradients come directly.
    """

    name: str
    stage: str
    uses: int
    total: Reach
    by_output: Mapping[str, Reach]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """The layers of one part whose maps have one size.

    Attributes:
        name: As in ``LayerPaths.stage``.
        layers: How many there are.
        shortest: The least of their shortest paths.
        longest: The greatest of their longest paths.
        sources: How many sources they have together.
        shared: By name of each other stage, how many of these sources it has, too.
    """

    name: str
    layers: int
    shortest: int
    longest: int
    sources: int
    shared: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Of a whole network.

    Attributes:
        outputs: Names, in the order of the head's maps.
        layers: In the order of the forward pass.
        stages: In the order of the forward pass.
        alike: Groups of two and more layers with the same sources, which so get their gradients from the same places.
        unreached: Layers that no gradient comes to.
    """

    outputs: tuple[str, ...]
    layers: tuple[LayerPaths, ...]
    stages: tuple[Stage, ...]
    alike: tuple[tuple[str, ...], ...]
    unreached: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Return the length of the longest gradient path of the network."""
        return max((layer.total.longest for layer in self.layers), default=0)

    @property
    def longest_shortest(self) -> int:
        """Return the length of the shortest path to the layer that is farthest from all outputs."""
        return max((layer.total.shortest for layer in self.layers), default=0)


def analyse(graph: PathGraph) -> Analysis:
    """Return the paths of every layer."""
    uses: dict[str, list[int]] = {}
    for index, node in graph.layers():
        uses.setdefault(node.name, []).append(index)
    walked = {output.name: _walked(graph, output.node) for output in graph.outputs}
    sources = _sources(graph)
    layers = []
    for name, indices in uses.items():
        by_output = {
            output: _reach(lengths[index] for index in indices)
            for output, lengths in walked.items()
            if any(lengths[index][1] for index in indices)
        }
        stages = dict.fromkeys(_stage(graph, index) for index in indices)
        total = _reach(lengths[index] for lengths in walked.values() for index in indices)
        met = tuple(dict.fromkeys(source for index in indices for source in sources[index]))
        layers.append(LayerPaths(name, " and ".join(stages), len(indices), total, by_output, met))
    return Analysis(
        outputs=tuple(output.name for output in graph.outputs),
        layers=tuple(layers),
        stages=tuple(_stages(layers)),
        alike=tuple(_alike(layers)),
        unreached=graph.unreached,
    )


def _walked(graph: PathGraph, start: int) -> list[tuple[int, int]]:
    """Return for each node, itself included, the lengths of the paths from an output, and their number.

    Lengths are a set in the bits of an integer: a layer shifts it by one, flows that part and meet again unite it.
    """
    lengths, counts = [0] * len(graph.nodes), [0] * len(graph.nodes)
    lengths[start], counts[start] = 1, 1
    for index in range(start, -1, -1):
        node = graph.nodes[index]
        if node.form == "layer":
            lengths[index] <<= 1
        for read in node.inputs:
            lengths[read] |= lengths[index]
            counts[read] += counts[index]
    return list(zip(lengths, counts, strict=True))


def _reach(parts: Iterable[tuple[int, int]]) -> Reach:
    bits, paths = 0, 0
    for lengths, count in parts:
        bits |= lengths
        paths += count
    return Reach(paths, tuple(length for length in range(bits.bit_length()) if bits >> length & 1))


def _sources(graph: PathGraph) -> list[tuple[str, ...]]:
    """Return for each node the layers and outputs whose gradients come to it with no layer between."""
    met: list[dict[str, None]] = [{} for _ in graph.nodes]
    for output in graph.outputs:
        met[output.node][output.name] = None
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        handed_on = {node.name: None} if node.form == "layer" else met[index]
        for read in node.inputs:
            met[read].update(handed_on)
    return [tuple(each) for each in met]


def _stage(graph: PathGraph, index: int) -> str:
    node = graph.nodes[index]
    part = node.name.partition(".")[0]
    return part if node.stride is None else f"{part} 1/{node.stride}"


def _stages(layers: Sequence[LayerPaths]) -> Iterator[Stage]:
    members: dict[str, list[LayerPaths]] = {}
    for layer in layers:
        members.setdefault(layer.stage, []).append(layer)
    sources = {name: {source for each in group for source in each.sources} for name, group in members.items()}
    for name, group in members.items():
        shared = {other: len(sources[name] & met) for other, met in sources.items() if other != name}
        yield Stage(
            name=name,
            layers=len(group),
            shortest=min(each.total.shortest for each in group),
            longest=max(each.total.longest for each in group),
            sources=len(sources[name]),
            shared={other: count for other, count in shared.items() if count},
        )


def _alike(layers: Sequence[LayerPaths]) -> Iterator[tuple[str, ...]]:
    groups: dict[frozenset[str], list[str]] = {}
    for layer in layers:
        groups.setdefault(frozenset(layer.sources), []).append(layer.name)
    return (tuple(names) for names in groups.values() if len(names) > 1)
