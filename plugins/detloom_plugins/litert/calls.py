"""One call of an ATen operator, as those who say what it means see it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detloom_plugins.litert.graph import Node, Operation

__all__ = ["Call", "Handler", "Ref", "Refused"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of the graph that is read: its name and its shape, with a batch of one."""

    name: str
    shape: tuple[int, ...]


class Refused(Exception):  # noqa: N818 - no error of the program: the verdict on one operator
    """An operator that cannot be written; says why, and what to change."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an ATen operator.

    Attributes:
        name: Of the result.
        path: Of the module.
        arguments: By the names of the operator's schema, with its defaults: values of the graph, tensors that are
            constant, plain data.
        shape: Of the result; of the first, where there are several.
        nodes: That the meaning adds its operations to.
    """

    name: str
    path: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    nodes: list[Node]

    def value(self, *names: str) -> Ref:
        """Return the argument that is a map, by the first of these names that the operator has."""
        found = next(self.arguments[name] for name in names if name in self.arguments)
        if not isinstance(found, Ref):
            raise Refused("it is computed from constants alone")
        if len(found.shape) != 4:  # batch, channels, height, width
            raise Refused(f"its input has {len(found.shape)} axes, not batch, channels, height and width")
        return found

    def tensor(self, name: str) -> Tensor | None:
        """Return an argument that is constant, or None where it is absent."""
        found = self.arguments[name]
        if found is None or isinstance(found, Tensor):
            return None if found is None else found.detach().double()
        raise Refused(f"its {name} is computed from the picture, not constant")

    def add(self, operation: Operation, *inputs: Ref, shape: Sequence[int] | None = None, part: str = "") -> Ref:
        """Add an operation and return its output.

        Args:
            operation: What it does.
            inputs: In its order.
            shape: Of its output; by default that of the call's result.
            part: Tells several operations of one call apart; the last has none.
        """
        name = f"{self.name}.{part}" if part else self.name
        self.nodes.append(Node(name, operation, tuple(each.name for each in inputs), self.path))
        return Ref(name, tuple(self.shape if shape is None else shape))


Handler = Callable[[Call], "Ref | tuple[Ref, ...]"]
"""Adds the operations of one call and returns its result, or its results."""
