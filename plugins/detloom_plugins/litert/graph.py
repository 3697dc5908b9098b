"""A network as a list of operations that LiteRT has, in torch's order of axes.

A value is the output of one operation, or the picture; it has a name, unique in the graph. Each operation knows its
meaning in real numbers, by which ranges are observed and the reading is proved, and how it is written. Weights are
float64, so that what is merged into them is not rounded before the file is; they follow the type of the pictures.

Shape letters: see ``detloom.export.network``.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from detloom_plugins.litert.writer import Value, Writer

__all__ = ["Graph", "Node", "Operation", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """What an 8-bit number ``q`` of a tensor means: ``(q - zero_point) * scale``."""

    scale: float
    zero_point: int


class Operation(ABC):
    """What a node does.

    Attributes:
        demanded: The scale that its 8-bit output has by definition of the format.
    """

    demanded: ClassVar[Scale | None] = None

    @property
    def shares_scale(self) -> bool:
        """Return whether 8-bit numbers pass through, so that inputs and output must have the same scale."""
        return False

    @abstractmethod
    def run(self, *inputs: Tensor) -> Tensor:
        """Return the output in real numbers, for any batch."""

    @abstractmethod
    def write(self, writer: "Writer", inputs: "Sequence[Value]", output: "Value") -> None:
        """Add the operators that compute the output; all values are of one type of number."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation on values.

    Attributes:
        name: Of its output.
        operation: What it does.
        inputs: Names of values.
        path: The module that it belongs to; empty for none.
    """

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    path: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which they can be computed.

    Attributes:
        picture: Name of the input.
        nodes: By the name of their output.
        outputs: Names of values, in the order of the network's maps.
    """

    picture: str
    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]

    def readers(self) -> Counter[str]:
        """Return how often each value is read; as an output it is read once more."""
        return Counter([name for node in self.nodes.values() for name in node.inputs] + list(self.outputs))

    def values(self, pictures_BCHW: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each value with its name, the picture first; none is kept for longer than it is needed."""
        waiting = self.readers()
        held = {self.picture: pictures_BCHW}
        yield self.picture, pictures_BCHW
        for name, node in self.nodes.items():
            with torch.no_grad():
                held[name] = node.operation.run(*(held[each] for each in node.inputs))
            yield name, held[name]
            for each in node.inputs:
                waiting[each] -= 1
                if not waiting[each]:
                    held.pop(each, None)

    def run(self, pictures_BCHW: Tensor) -> list[Tensor]:
        """Return the outputs."""
        wanted = set(self.outputs)
        found = {name: value for name, value in self.values(pictures_BCHW) if name in wanted}
        return [found[name] for name in self.outputs]

    def with_nodes(self, nodes: Sequence[Node], renamed: Mapping[str, str]) -> "Graph":
        """Return a graph of other nodes.

        Args:
            nodes: In an order in which they can be computed; those that nobody reads are left out.
            renamed: For values that are gone, those that take their places.
        """

        def present(name: str) -> str:
            while name in renamed:
                name = renamed[name]
            return name

        outputs = tuple(map(present, self.outputs))
        wanted = set(outputs)
        kept: list[Node] = []
        for node in reversed(nodes):
            if node.name in wanted:
                inputs = tuple(map(present, node.inputs))
                wanted |= set(inputs)
                kept.append(replace(node, inputs=inputs))
        return Graph(self.picture, {node.name: node for node in reversed(kept)}, outputs)
