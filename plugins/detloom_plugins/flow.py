"""What a model does with its parts, read symbolically (torch.fx) in evaluation mode.

The model's own forward is read first, down to the parts that are wholes. A part whose forward cannot be read, because
it asks for values, say, stands as a whole there; its parts are then read one by one, and what joins them is not known.
Arguments of the model that have a default are taken to be that.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

__all__ = ["Flow", "Reading", "default_arguments", "evaluated", "first_words", "read_flows"]

Choice = Callable[[nn.Module], bool]


@dataclass(frozen=True, slots=True)
class Flow:
    """What the forward of one module does.

    Attributes:
        path: Dotted name of the module in the model.
        module: It, in evaluation mode.
        graph: Its operations and calls of parts, which are named relative to it.
        read: Dotted names, in the model, of parameters and buffers that are read outside of wholes.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    read: frozenset[str]

    def calls(self) -> list[fx.Node]:
        """Return the calls of wholes, in order."""
        return [node for node in self.graph.nodes if node.op == "call_module"]

    def path_of(self, node: fx.Node) -> str:
        """Return the dotted name, in the model, of the part that a node calls."""
        return _joined(self.path, str(node.target))

    def called(self, node: fx.Node) -> nn.Module | None:
        """Return the part that a node calls, if it calls one."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def callers(self, node: fx.Node) -> list[str]:
        """Return the dotted names of the modules whose forwards a call of a part lies in, outermost first."""
        stack = node.meta.get("nn_module_stack") or {}
        inside = [path for path, _ in stack.values() if path and path != str(node.target)]
        return [self.path, *(_joined(self.path, path) for path in inside)]

    def source(self, node: fx.Node) -> fx.Node | None:
        """Return what made a call's input, looking through identities that are read once."""
        source = node.args[0] if node.args else None
        while isinstance(source, fx.Node) and isinstance(self.called(source), nn.Identity) and len(source.users) == 1:
            source = source.args[0] if source.args else None
        return source if isinstance(source, fx.Node) else None

    def owner(self, *nodes: fx.Node) -> str:
        """Return the dotted name of the innermost module that holds the parts which nodes call, and is run itself."""
        paths = [self.path_of(node) for node in nodes]
        callers = set.intersection(*(set(self.callers(node)) for node in nodes))
        holding = [each for each in callers if not each or all(path.startswith(f"{each}.") for path in paths)]
        return max(holding, key=len)


@dataclass(slots=True)
class Reading:
    """The flows of a model: of itself, or of those parts of it whose surroundings cannot be read.

    Attributes:
        flows: What was read.
        unread: By dotted name of each module that could not be read, the reason.
    """

    flows: list[Flow] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)

    def times(self) -> Counter[str]:
        """Return how often each whole is called."""
        return Counter(flow.path_of(node) for flow in self.flows for node in flow.calls())

    def obstacle(self, path: str) -> str:
        """Return why what happens around a part is not known, or nothing."""
        around = [each for each in self.unread if not each or f"{path}.".startswith(f"{each}.")]
        if not around:
            return ""
        innermost = max(around, key=len)
        return f"the flow through {innermost or 'the model'} cannot be read: {self.unread[innermost]}"


def read_flows(model: nn.Module, is_whole: Choice) -> Reading:
    """Return what a model does with its wholes; the model's own modes do not change."""
    reading = Reading()
    waiting = [("", evaluated(model))]
    for path, module in waiting:  # grows as it goes
        if type(module) in (nn.ModuleList, nn.ModuleDict):
            waiting += _children(path, module)  # it has no forward; those derived from it may
            continue
        if path and is_whole(module):
            continue
        tracer = _Tracer(is_whole)
        try:
            graph = tracer.trace(module, concrete_args=default_arguments(module) or None)
        except Exception as error:  # noqa: BLE001 - a forward may do anything; the reason is handed on
            reading.unread[path] = first_words(error)
            waiting += _children(path, module)
            continue
        reading.flows.append(Flow(path, module, graph, frozenset(_joined(path, each) for each in tracer.read)))
        for part, reason in tracer.unread.items():
            reading.unread[_joined(path, part)] = reason
            waiting += _children(_joined(path, part), module.get_submodule(part))
    return reading


def evaluated(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode, which has the model's own tensors."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, dict(shared)).eval()


def default_arguments(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of a module's forward that have a default."""
    return {
        each.name: each.default
        for each in inspect.signature(module.forward).parameters.values()
        if each.default is not each.empty
    }


def first_words(error: Exception) -> str:
    """Return what an error says first; tracing adds advice for those who wrote the forward."""
    return str(error).strip().split("\n")[0].split(". ")[0].removesuffix(".") or type(error).__name__


class _Tracer(fx.Tracer):
    """Records a forward down to wholes; what cannot be read becomes one."""

    def __init__(self, is_whole: Choice) -> None:
        super().__init__()
        self.is_whole = is_whole
        self.read: set[str] = set()
        self.unread: dict[str, str] = {}
        self.names: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the flow of a module."""
        self.names = {id(tensor): name for name, tensor in chain(root.named_parameters(), root.named_buffers())}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a part is a whole."""
        del module_qualified_name
        return self.is_whole(m)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute of a module, and note which tensors are read."""
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            self.read.add(self.names[id(attr_val)])
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Look inside a part, or take it as a whole where its forward asks for values."""
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # noqa: BLE001 - a forward may do anything; the reason is handed on
            path = self.path_of_module(m)
            self.module_stack = stack
            self._forget_since(before)
            self.unread = {each: why for each, why in self.unread.items() if not each.startswith(f"{path}.")}
            self.unread[path] = first_words(error)
            return self.create_proxy("call_module", path, args, kwargs)

    def _forget_since(self, count: int) -> None:
        """Take out what was recorded of a part before it could be read no further."""
        for node in reversed(list(self.graph.nodes)[count:]):
            # Tensors that were read are kept by the tracer, and may be asked for again.
            if node.op != "get_attr":
                self.graph.erase_node(node)


def _children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((_joined(path, name), part) for name, part in module.named_children())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
