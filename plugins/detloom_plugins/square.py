"""Squares as products: ``x ** 2`` as ``x * x``.

Converters to chips know multiplication; a power is refused by some of them, whatever its exponent. No network of the
bundled recipes computes one, apart from decoding, which a host does.

Reference: TensorFlow Lite 8-bit quantization specification, whose operators have MUL and no POW.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.own_graph import own_forwards, own_graph, rewritten

__all__ = ["SquarePass"]

_POWERS = frozenset({operator.pow, torch.pow, "pow"})
_SQUARES = frozenset({torch.square, "square"})


class SquarePass(ReparamPass):
    """Write the forward of each module that squares anew, with products; the numbers stay the same to the bit."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every module that squares by itself, or why it stays."""
        plan = []
        for each in own_forwards(model):
            count = len(_squares(each.graph))
            if count:
                reason = each.objection or f"{count} square{'s' * (count > 1)} as products"
                plan.append(Fold(each.path, applies=not each.objection, reason=reason))
        return plan

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the module with products."""
        del fold
        graph = own_graph(module)
        for node in _squares(graph):
            (base,) = node.all_input_nodes
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(operator.mul, (base, base)))
            graph.erase_node(node)
        return rewritten(module, graph)


def _squares(graph: fx.Graph) -> list[fx.Node]:
    """Return the operations that square a tensor and change nothing in place."""
    return [node for node in graph.nodes if _is_square(node)]


def _is_square(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or len(node.all_input_nodes) != 1 or "out" in node.kwargs:
        return False
    if node.target in _SQUARES:
        return True
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return node.target in _POWERS and isinstance(exponent, int | float) and exponent == 2


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("square", SquarePass)
