"""Where an identity branch would repeat a path that the network has already.

A residual addition, and a concatenation of layers of different depth, give each layer gradients of its own. An identity
inside such a layer sends its input along the same way once more, and the difference is lost. So a RepConv whose output
reaches an addition or a concatenation, before another convolution, may have an identity only where nothing else comes
together there: where the other parts are all made from its own output.

The flow is read symbolically (torch.fx) in evaluation mode. A part that cannot be read inside stays a whole; where the
model's own forward cannot be read, its parts are read one by one, and what joins them is not seen.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 4.2 and figure 4, "planned re-parameterized convolution".
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from detloom_plugins.layers import RepConv

__all__ = ["repeated_paths"]

_ADDITIONS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
_CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.stack})
_CONVOLUTIONS = frozenset({functional.conv1d, functional.conv2d, functional.conv3d, functional.linear, torch.matmul})


def repeated_paths(model: nn.Module) -> dict[str, str]:
    """Return, for each RepConv whose identity repeats a path, what it does.

    The values read on after "its identity", such as ``reaches the addition with its own input in backbone.stage2``.
    """
    if not any(isinstance(each, RepConv) and each.identity is not None for each in model.modules()):
        return {}
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, dict(shared)).eval()
    found: dict[str, str] = {}
    for prefix, module, graph in _graphs(twin, ""):
        for node in graph.nodes:
            layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, RepConv) and layer.identity is not None:
                where = _repeated(node, module)
                if where:
                    found[f"{prefix}{node.target}"] = where
    return found


def _graphs(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """Return the flow of a module, or of its parts where its own forward cannot be read."""
    try:
        defaults = {
            each.name: each.default
            for each in inspect.signature(module.forward).parameters.values()
            if each.default is not each.empty
        }
        yield prefix, module, _Tracer().trace(module, concrete_args=defaults or None)
    except Exception:  # noqa: BLE001 - a forward may do anything; what is not seen is said above
        for name, part in module.named_children():
            yield from _graphs(part, f"{prefix}{name}.")


class _Tracer(fx.Tracer):
    """Records a forward down to torch's own layers; a RepConv stays a whole, as does what cannot be read."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a part is a whole."""
        return isinstance(m, RepConv) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Look inside a part, or take it as a whole where its forward asks for values."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # noqa: BLE001 - a forward may do anything; what was recorded so far remains true
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def _repeated(layer: fx.Node, model: nn.Module) -> str | None:
    """Return where the layer's output meets what is not made from it, or None."""
    made_from_it = {layer, *_reached(layer, lambda node: list(node.users))}
    for node in _before_next_convolution(layer, model):
        kind = _kind(node)
        others = [each for each in node.all_input_nodes if each not in made_from_it] if kind else []
        if others:
            before_it = _reached(layer, lambda node: node.all_input_nodes)
            whose = "its own input" if any(each in before_it for each in others) else "other layers"
            return f"reaches the {kind} with {whose} in {_owner(node)}"
    return None


def _before_next_convolution(layer: fx.Node, model: nn.Module) -> list[fx.Node]:
    """Return what a layer's output reaches without passing through weights."""
    return _reached(layer, lambda node: list(node.users) if node is layer or not _has_weights(node, model) else [])


def _reached(start: fx.Node, following: Callable[[fx.Node], list[fx.Node]]) -> list[fx.Node]:
    """Return all nodes after ``start``, nearest first."""
    waiting = following(start)
    seen: dict[fx.Node, None] = {}
    for node in waiting:  # grows as it goes
        if node not in seen:
            seen[node] = None
            waiting += following(node)
    return list(seen)


def _has_weights(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return any(tensor.dim() > 1 for tensor in model.get_submodule(str(node.target)).parameters())
    return node.target in _CONVOLUTIONS


def _kind(node: fx.Node) -> str | None:
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _ADDITIONS:
        return "addition"
    return "concatenation" if node.target in _CONCATENATIONS else None


def _owner(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    return path or "the model"
