"""Max-pools of one input with several windows as small windows in a row: 5, 9 and 13 as 5, 5 and 5.

The largest of a window of 9 is the largest of the windows of 5 about each place of a window of 5, at borders too, where
windows are cut. So each window but the smallest is made from the next smaller one's result, with the same numbers to
the bit, fewer comparisons, and no window that a chip's pooling may be too small for.

References: Haralick, Sternberg and Zhuang, Image analysis using mathematical morphology (1987), on dilations in a row;
Jocher, YOLOv5 release 6.1 (2022), for the pyramid of a detector in this form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.own_graph import own_forwards, own_graph, rewritten

__all__ = ["SppCascadePass"]

_POOLINGS = frozenset({functional.max_pool2d, torch.max_pool2d})
_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_DEFAULTS = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}


class SppCascadePass(ReparamPass):
    """Write the forward of each module that pools one input with several windows anew, as a cascade.

    It is found in what a module does, whatever its class: with modules or with functions, in any order. Pools must have
    stride 1 and keep the size.
    """

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every module with a pyramid of windows: what becomes of it, or why it stays."""
        plan = []
        for each in own_forwards(model):
            pools = _pools(each.graph, each.module)
            pyramids = _pyramids(pools)
            objection = each.objection or _change(each.graph, each.module, pyramids)
            if pyramids:
                reason = objection or "; ".join(map(_described, pyramids))
                plan.append(Fold(each.path, applies=not objection, reason=reason))
            elif any(other.node is pool.source for pool in pools for other in pools):
                plan.append(Fold(each.path, applies=False, reason="its windows are in a row already"))
            elif each.unread and sum(_window(part) is not None for part in each.module.modules()) > 1:
                plan.append(Fold(each.path, applies=False, reason=each.unread))
        return plan

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the module with its windows in a row."""
        del fold
        graph = own_graph(module)
        # One at a time: a pyramid may stand on a window of another.
        while pyramids := _pyramids(_pools(graph, module)):
            _cascade_(graph, pyramids[0])
        return rewritten(module, graph)


@dataclass(frozen=True, slots=True)
class _Pool:
    """A max-pool of stride 1 that keeps the size."""

    node: fx.Node
    source: fx.Node
    window: int


def _pools(graph: fx.Graph, module: nn.Module) -> list[_Pool]:
    found = []
    for node in graph.nodes:
        source = node.args[0] if node.args else node.kwargs.get("input")
        window = None
        if node.op == "call_module":
            window = _window(module.get_submodule(node.target))
        elif node.op == "call_function" and node.target in _POOLINGS:
            given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
            window = _same_window(_DEFAULTS | given)
        if window is not None and isinstance(source, fx.Node):
            found.append(_Pool(node, source, window))
    return found


def _window(part: nn.Module) -> int | None:
    # What hooks do to a pool's output is not known.
    if type(part) is not nn.MaxPool2d or part._forward_hooks or part._forward_pre_hooks:  # noqa: SLF001 - there is no public way to ask
        return None
    return _same_window({name: getattr(part, name) for name in _ARGUMENTS[1:]})


def _same_window(settings: dict[str, Any]) -> int | None:
    """Return the side of a window above 1 that is moved by 1 and keeps the size, or None."""
    sides = [_side(settings[name]) for name in ("kernel_size", "stride", "padding", "dilation")]
    if settings["ceil_mode"] is not False or settings["return_indices"] is not False:
        return None
    window = sides[0]
    return window if window > 1 and sides[1:] == [1, window // 2, 1] and window % 2 else None


def _side(value: object) -> int:
    """Return a number that stands for both axes, or -1."""
    if isinstance(value, int):
        return value
    sides = list(value) if isinstance(value, Sequence) else []
    return sides[0] if sides and isinstance(sides[0], int) and all(each == sides[0] for each in sides) else -1


def _pyramids(pools: Sequence[_Pool]) -> list[list[_Pool]]:
    """Return pools of the same input that have several windows, the smallest first."""
    sources = dict.fromkeys(pool.source for pool in pools)
    groups = [sorted((p for p in pools if p.source is each), key=lambda pool: pool.window) for each in sources]
    return [group for group in groups if group[0].window < group[-1].window]


def _described(pyramid: Sequence[_Pool]) -> str:
    windows = sorted({pool.window for pool in pyramid})
    steps = [windows[0], *(after - before + 1 for before, after in pairwise(windows))]
    return f"windows {', '.join(map(str, windows))} of one input as {', '.join(map(str, steps))} in a row"


def _cascade_(graph: fx.Graph, pyramid: Sequence[_Pool]) -> None:
    """Put a row of windows where the first of the pools is, because what comes later may change their results."""
    order = list(graph.nodes)
    with graph.inserting_before(min((pool.node for pool in pyramid), key=order.index)):
        made, width = pyramid[0].source, 1
        for pool in pyramid:
            step = pool.window - width + 1
            if step > 1:
                made = graph.call_function(functional.max_pool2d, (made, step, 1, step // 2))
                width = pool.window
            pool.node.replace_all_uses_with(made)
    for pool in pyramid:
        graph.erase_node(pool.node)


def _change(graph: fx.Graph, module: nn.Module, pyramids: Sequence[Sequence[_Pool]]) -> str:
    """Return why the pools of a pyramid may see different inputs, if they do."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for pyramid in pyramids:
        places = [order[pool.node] for pool in pyramid]
        for user in pyramid[0].source.users:
            if min(places) < order[user] < max(places) and _is_in_place(user, module):
                return f"{user.name} changes the input of its pools in place, between them"
    return ""


def _is_in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("spp-cascade", SppCascadePass)
