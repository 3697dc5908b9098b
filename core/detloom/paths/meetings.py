"""Where flows meet: residuals, sums, concatenations, gates, and what each of them joins.

An input is **carried** if another input of the same meeting is made from it: it goes around the layers between.
An addition with a carried input is a residual; a concatenation with one is a chain, as in a dense block, VoVNet and
ELAN. Layers that feed one addition get the same gradient; those that feed one concatenation get the same source's
gradient, each the part of its own channels.

Reference: Wang et al., CSPNet (2020), section 3, for what concatenated layers share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from detloom.paths.graph import Form, PathGraph

__all__ = ["Meeting", "Structure", "meetings"]

Structure = Literal[
    "residual", "sum", "chained concatenation", "parallel concatenation", "gate", "product of separate flows"
]
_CARRIED: dict[Form, Structure] = {
    "addition": "residual",
    "concatenation": "chained concatenation",
    "product": "gate",
}
_SEPARATE: dict[Form, Structure] = {
    "addition": "sum",
    "concatenation": "parallel concatenation",
    "product": "product of separate flows",
}


@dataclass(frozen=True, slots=True)
class Meeting:
    """One place where flows meet.

    Attributes:
        name: Dotted path of the module whose forward joins them.
        structure: What it amounts to.
        feeders: For each input, the layers that it comes from with no layer between; ``picture`` is the network's
            own input.
        carried: Positions of the inputs that another input is made from.
        around: Least and most layers that a carried input goes around; None without one.
    """

    name: str
    structure: Structure
    feeders: tuple[tuple[str, ...], ...]
    carried: tuple[int, ...]
    around: tuple[int, int] | None


def meetings(graph: PathGraph) -> Iterator[Meeting]:
    """Yield every meeting, in the order of the forward pass."""
    before, feeders = _ancestors(graph), _feeders(graph)
    for index, node in enumerate(graph.nodes):
        if node.form in ("picture", "layer"):
            continue
        carried = tuple(
            place
            for place, read in enumerate(node.inputs)
            if any(other != read and before[other] >> read & 1 for other in node.inputs)
        )
        lengths = 0
        for place in carried:
            lengths |= _between(graph, node.inputs[place], index)
        yield Meeting(
            name=node.name,
            structure=(_CARRIED if carried else _SEPARATE)[node.form],
            feeders=tuple(feeders[read] for read in node.inputs),
            carried=carried,
            around=_ends(lengths) if carried else None,
        )


def _ancestors(graph: PathGraph) -> list[int]:
    """Return for each node the set of those that it is made from, in the bits of an integer."""
    sets: list[int] = []
    for node in graph.nodes:
        joined = 0
        for read in node.inputs:
            joined |= sets[read] | 1 << read
        sets.append(joined)
    return sets


def _feeders(graph: PathGraph) -> Sequence[tuple[str, ...]]:
    """Return for each node the layers that its value comes from directly: itself, if it is one."""
    found: list[tuple[str, ...]] = []
    for node in graph.nodes:
        if node.form in ("layer", "picture"):
            found.append((node.name,))
        else:
            found.append(tuple(dict.fromkeys(name for read in node.inputs for name in found[read])))
    return found


def _between(graph: PathGraph, start: int, end: int) -> int:
    """Return the numbers of layers between two nodes as bits, without the direct edge."""
    lengths = {start: 1}
    for index in range(start + 1, end):
        node = graph.nodes[index]
        joined = 0
        for read in node.inputs:
            joined |= lengths.get(read, 0)
        if joined:
            lengths[index] = joined << 1 if node.form == "layer" else joined
    joined = 0
    for read in graph.nodes[end].inputs:
        if read != start:
            joined |= lengths.get(read, 0)
    return joined


def _ends(bits: int) -> tuple[int, int]:
    return (bits & -bits).bit_length() - 1, bits.bit_length() - 1
