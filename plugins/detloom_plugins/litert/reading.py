"""Reads a network: torch.export's graph of ATen operators becomes a graph of LiteRT's, one by one.

What each ATen operator means stands in ``layers`` and ``arithmetic``. One that stands in neither is refused, by name
and with its module; nothing is left to run elsewhere.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from detloom.errors import ExportError, reason
from detloom.export.network import Network
from detloom_plugins.litert.calls import Call, Ref, Refused
from detloom_plugins.litert.graph import Graph, Node
from detloom_plugins.litert.meanings import MEANINGS

__all__ = ["Reading", "Refusal", "read"]


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
            # What nobody reads are torch's own checks of types.
            if node.op == "call_function" and node.users:
                self._known[node.name] = self._result(node)
            elif node.op == "output":
                outputs = tuple(map(self._output, self._looked_up(node.args[0])))
        graph = Graph(self._picture, {node.name: node for node in self._nodes}, outputs)
        return Reading(graph, tuple(self._refusals))

    def _take_placeholders(self) -> None:
        held = {**self._program.constants, **self._program.state_dict}
        for spec in self._program.graph_signature.input_specs:
            name = spec.arg.name
            if spec.target is None:
                self._picture = name
                node = next(each for each in self._program.graph.nodes if each.name == name)
                self._known[name] = Ref(name, tuple(node.meta["val"].shape))
            else:
                self._known[name] = _exact(held[spec.target])

    def _result(self, node: fx.Node) -> Any:
        target, arguments = cast("Callable[..., Any]", node.target), self._looked_up(_by_name(node))
        if not _refs(arguments):
            # Weights that are computed from weights.
            with torch.no_grad():
                return target(*self._looked_up(node.args), **self._looked_up(node.kwargs))
        if target is operator.getitem:
            return target(*self._looked_up(node.args))
        return self._meaning(node, arguments)

    def _meaning(self, node: fx.Node, arguments: Mapping[str, Any]) -> Any:
        path = _path(node)
        called = str(node.target)
        shapes = _shapes(node)
        call = Call(node.name, path, arguments, shapes[0], self._nodes)
        try:
            return MEANINGS.get(_base(called), _unknown)(call)
        except Refused as refused:
            remedy = refused.remedy or _REMEDIES.get(_base(called), OTHER_REMEDY)
            self._refusals.append(Refusal(path, called, refused.why, remedy))
            refs = tuple(Ref(f"{node.name}.{index}", shape) for index, shape in enumerate(shapes))
            return refs[0] if isinstance(node.meta["val"], Tensor) else refs

    def _looked_up(self, arguments: Any) -> Any:
        return fx.map_arg(arguments, lambda node: self._known[node.name])

    def _output(self, found: Any) -> str:
        if isinstance(found, Ref):
            return found.name
        self._refusals.append(Refusal("", "output", "a map does not depend on the picture", "leave it out"))
        return ""


OTHER_REMEDY = "replace it, or leave it to the head's decode, which runs on the host"
_REMEDIES: Mapping[str, str] = {
    "elu": "use the activation silu, leaky-relu or relu",
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


def _exact(tensor: Tensor) -> Tensor:
    """Return a constant as exact as what is computed from it is to be."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def _unknown(call: Call) -> Ref:  # noqa: ARG001 - takes what those take that know their operator
    raise Refused("LiteRT files are not written with it")


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
