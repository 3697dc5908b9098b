"""Reads a network: torch.export's graph of ATen operators becomes a graph of LiteRT's, one by one.

What each ATen operator means stands in ``layers`` and ``arithmetic``. One that stands in neither is refused, by name
and with its module; nothing is left to run elsewhere.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from detloom.errors import ExportError, reason
from detloom.export.network import Network
from detloom_plugins.litert.graph import Graph, Node, Operation

__all__ = ["Call", "Handler", "Reading", "Ref", "Refusal", "Refused", "read"]


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
class Refusal:
    """An operator that cannot be written.

    Attributes:
        module: Path of its module; empty for none.
        operator: As torch calls it.
        reason: Why.
        remedy: What to change.
    """

    module: str
    operator: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A network as it was read; where something was refused, the graph is not whole."""

    graph: Graph
    refusals: tuple[Refusal, ...]


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
            return None if found is None else found.detach().to(torch.float32)
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


def read(network: Network) -> Reading:
    """Return a network's graph and what in it cannot be written.

    Raises:
        ExportError: torch cannot trace the network.
    """
    example_BCHW = network.example_BCHW()
    try:
        with torch.no_grad():
            # Without further decomposition: it leaves one name for each operator, and none that works in place.
            program = torch.export.export(network.module, (example_BCHW,)).run_decompositions({})
    except Exception as error:
        raise ExportError(
            f"torch.export cannot trace the network: {reason(error)}. Its forward must not depend on the values of "
            "maps; write such parts with tensor operations, or leave them to the head's decode"
        ) from error
    return _Reader(program).reading()


class _Reader:
    """Walks a traced program once."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._refusals: list[Refusal] = []
        # What each node of torch's graph is: a value, a constant, or several of these.
        self._known: dict[str, Any] = {}
        self._picture = ""

    def reading(self) -> Reading:
        self._take_placeholders()
        outputs: tuple[str, ...] = ()
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._known[node.name] = self._result(node)
            elif node.op == "output":
                outputs = tuple(self._output(fx.map_arg(each, self._look_up)) for each in node.args[0])
        graph = Graph(self._picture, {node.name: node for node in self._nodes}, outputs)
        return Reading(graph, tuple(self._refusals))

    def _take_placeholders(self) -> None:
        for spec in self._program.graph_signature.input_specs:
            name = spec.arg.name
            if spec.target is None:
                self._picture = name
                node = next(each for each in self._program.graph.nodes if each.name == name)
                self._known[name] = Ref(name, tuple(node.meta["val"].shape))
            else:
                held = self._program.state_dict
                self._known[name] = held[spec.target] if spec.target in held else self._program.constants[spec.target]

    def _result(self, node: fx.Node) -> Any:
        arguments = fx.map_arg(_by_name(node), self._look_up)
        if not _refs(arguments):
            with torch.no_grad():
                return node.target(*fx.map_arg(node.args, self._look_up), **fx.map_arg(node.kwargs, self._look_up))  # type: ignore[operator] - the target of a call is callable
        if node.target is operator.getitem:
            found, index = (fx.map_arg(each, self._look_up) for each in node.args)
            return found[index]
        return self._meaning(node, arguments)

    def _meaning(self, node: fx.Node, arguments: Mapping[str, Any]) -> Any:
        from detloom_plugins.litert.meanings import MEANINGS

        path = _path(node)
        called = str(node.target)
        shapes = _shapes(node)
        call = Call(node.name, path, arguments, shapes[0], self._nodes)
        try:
            handler = MEANINGS.get(_base(called))
            if handler is None:
                raise Refused("LiteRT files are not written with it", _REMEDIES.get(_base(called), ""))
            return handler(call)
        except Refused as refused:
            remedy = refused.remedy or "replace it, or leave it to the head's decode, which runs on the host"
            self._refusals.append(Refusal(path, called, refused.why, remedy))
            refs = tuple(Ref(f"{node.name}.{index}", shape) for index, shape in enumerate(shapes))
            return refs[0] if isinstance(node.meta["val"], Tensor) else refs

    def _look_up(self, node: fx.Node) -> Any:
        return self._known[node.name]

    def _output(self, found: Any) -> str:
        if isinstance(found, Ref):
            return found.name
        self._refusals.append(Refusal("", "output", "a map does not depend on the picture", "leave it out"))
        return ""


_REMEDIES: Mapping[str, str] = {
    "mish": "use the activation silu, leaky-relu or relu",
    "softplus": "use the activation silu, leaky-relu or relu",
    "softmax": "leave it to the head's decode, which runs on the host",
    "_softmax": "leave it to the head's decode, which runs on the host",
    "argmax": "leave it to the head's decode, which runs on the host",
    "topk": "leave it to the head's decode, which runs on the host",
    "layer_norm": "use a backbone with batch norm, which folds into convolutions",
    "native_layer_norm": "use a backbone with batch norm, which folds into convolutions",
    "group_norm": "use batch norm, which folds into convolutions",
    "native_group_norm": "use batch norm, which folds into convolutions",
}


def _base(called: str) -> str:
    """Return ``conv2d`` of ``aten.conv2d.default``."""
    parts = called.split(".")
    return parts[1] if parts[0] == "aten" and len(parts) > 1 else called


def _by_name(node: fx.Node) -> dict[str, Any]:
    """Return a call's arguments by the names in the operator's schema, with defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(index): each for index, each in enumerate(node.args)} | dict(node.kwargs)
    given = dict(zip((each.name for each in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    defaults = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    return {**defaults, **given}


def _refs(found: Any) -> bool:
    """Return whether there is a value of the graph in arguments."""
    if isinstance(found, Mapping):
        return any(_refs(each) for each in found.values())
    if isinstance(found, (list, tuple)):
        return any(_refs(each) for each in found)
    return isinstance(found, Ref)


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    made = node.meta["val"]
    return [tuple(each.shape) for each in ((made,) if isinstance(made, Tensor) else made)]


def _path(node: fx.Node) -> str:
    """Return the path of the innermost module that a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""
