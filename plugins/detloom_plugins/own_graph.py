"""What a module does itself, its parts being wholes, and modules whose forward is written anew.

A module that is written anew is a ``torch.fx.GraphModule``: it has its parts under their names, and performs the
recorded operations. It takes no arguments for which its forward has a default, other than that, and says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from detloom.detector import Detector
from detloom.interfaces import Backbone, Head, Neck
from detloom_plugins.flow import default_arguments, evaluated, first_words
from detloom_plugins.sharing import Sharing

__all__ = ["OwnForward", "own_forwards", "own_graph", "rewritten"]

_ROLES = {Backbone: "backbone", Neck: "neck", Head: "head", Detector: "detector"}


@dataclass(frozen=True, slots=True)
class OwnForward:
    """The forward of one module of a model.

    Attributes:
        path: Dotted name of the module.
        module: It, in evaluation mode.
        graph: Its operations; empty where they cannot be read.
        unread: Why they cannot be read, if so.
        objection: Why they may not be written anew, if so.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    unread: str
    objection: str


def own_forwards(model: nn.Module) -> Iterator[OwnForward]:
    """Yield the forward of each module of a model but torch's own."""
    sharing = Sharing(model)
    modules = dict(model.named_modules())
    for path, module in evaluated(model).named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        objection = _objection(module) or sharing.objection(modules[path])
        graph, unread = fx.Graph(), ""
        try:
            graph = own_graph(module)
        except Exception as error:  # noqa: BLE001 - a forward may do anything; the reason is handed on
            unread = f"its forward cannot be read by itself: {first_words(error)}"
        yield OwnForward(path, module, graph, unread, objection)


def own_graph(module: nn.Module) -> fx.Graph:
    """Return the operations of a module's forward, its parts as wholes."""
    return _Tracer().trace(module, concrete_args=default_arguments(module) or None)


def rewritten(module: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a module that has the parts of another and performs the operations of a graph."""
    graph.lint()
    return fx.GraphModule(module, graph, class_name=type(module).__name__)


class _Tracer(fx.Tracer):
    """Looks into no part."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return that a part is a whole."""
        del m, module_qualified_name
        return True


def _objection(module: nn.Module) -> str:
    for kind, role in _ROLES.items():
        if isinstance(module, kind):
            return f"it is the {role}, of which more is used than its forward; put this into a module of its own"
    return ""
