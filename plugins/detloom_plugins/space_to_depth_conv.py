"""Space to depth and the convolution after it as one convolution, whose kernel is as many times wider.

Space to depth by 2 makes four channels of each, one for each place in a square of 2x2 pixels. A 3x3 convolution of
these reads 6x6 pixels of the picture, with a stride of 2: its weights are those of the four channels, interleaved. The
number of weights and of multiplications stays the same; the slices and their concatenation are gone.

Shape letters: I and O channels in and out.

Reference: Sandler et al., Non-discriminative data or weak model? On the relative importance of data and model
resolution (2019), section 3, for space to depth; see ``layers.SpaceToDepth`` for that of YOLOv7.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom.reparam import replace_submodule_
from detloom_plugins.conv_weights import with_weights
from detloom_plugins.flow import Flow, evaluated, read_flows
from detloom_plugins.own_graph import own_graph
from detloom_plugins.sharing import Sharing

__all__ = ["SpaceToDepthConvPass"]


class SpaceToDepthConvPass(ReparamPass):
    """Replace space to depth by nothing, and the convolution that alone reads it by a wider, strided one.

    Space to depth is a module without tensors that concatenates the strided slices of its input, whatever its class and
    the order of the slices, or ``nn.PixelUnshuffle``. A norm after the convolution may be fused before or afterwards.
    """

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every space to depth: with the convolution it goes into, or why it stays."""
        return _Planner(model).folds()

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the module with the wider convolution."""
        moving_path, conv_path = fold.parts
        moving, conv = _moving(module.get_submodule(moving_path)), module.get_submodule(conv_path)
        if moving is None or not isinstance(conv, nn.Conv2d):
            raise PluginError(f"space-to-depth-conv: {fold.path}: {' and '.join(fold.parts)} are no such pair")
        wide = with_weights(conv, moving.interleaved(conv.weight), conv.bias, times=moving.factor)
        return replace_submodule_(replace_submodule_(module, conv_path, wide), moving_path, nn.Identity())


@dataclass(frozen=True, slots=True)
class _Moving:
    """Where space to depth puts pixels.

    Attributes:
        factor: Side of the squares.
        places: Row and column in a square, of each group of channels.
        by_channel: Whether the places of a channel lie together, else the channels of a place.
    """

    factor: int
    places: tuple[tuple[int, int], ...]
    by_channel: bool

    def interleaved(self, weight_OIHW: Tensor) -> Tensor:
        """Return the weights for pixels of those for moved pixels, ``[O, I / factor^2, H * factor, W * factor]``."""
        outputs, inputs, height, width = weight_OIHW.shape
        side, count = self.factor, len(self.places)
        channels = inputs // count
        if self.by_channel:
            parts_OCSHW = weight_OIHW.reshape(outputs, channels, count, height, width)
        else:
            parts_OCSHW = weight_OIHW.reshape(outputs, count, channels, height, width).transpose(1, 2)
        order = sorted(range(count), key=self.places.__getitem__)
        squares_OCRSHW = parts_OCSHW[:, :, order].reshape(outputs, channels, side, side, height, width)
        return squares_OCRSHW.permute(0, 1, 4, 2, 5, 3).reshape(outputs, channels, height * side, width * side)


class _Planner:
    """Finds for each space to depth the convolution that alone reads it."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.moving = {path: each for path, module in self.modules.items() if (each := _moving(module))}
        self.sharing = Sharing(model)
        # Nothing is read where there is nothing to find.
        self.reading = read_flows(model, self._is_whole) if self.moving else read_flows(nn.Identity(), self._is_whole)
        self.times = self.reading.times()
        self.read = frozenset(name.rpartition(".")[0] for flow in self.reading.flows for name in flow.read)

    def folds(self) -> list[Fold]:
        """Return the verdict on each of them, in the order of the model."""
        decided = {}
        for flow in self.reading.flows:
            for node in flow.calls():
                if flow.path_of(node) in self.moving:
                    decided[flow.path_of(node)] = self._verdict(flow, node)
        return [
            decided.get(path)
            or Fold(path, applies=False, reason=self.reading.obstacle(path) or "evaluation mode does not run it")
            for path in self.moving
        ]

    def _verdict(self, flow: Flow, node: fx.Node) -> Fold:
        path = flow.path_of(node)
        reader = next(iter(node.users), None)
        reason = self._objection_to_moving(path, node)
        if not reason and (reader is None or not isinstance(flow.called(reader), nn.Conv2d)):
            reason = "no convolution reads its output"
        if reason or reader is None:
            return Fold(path, applies=False, reason=reason)
        conv_path = flow.path_of(reader)
        reason = self._objection_to_conv(conv_path)
        if reason:
            return Fold(path, applies=False, reason=f"{conv_path}, which reads it, {reason}")
        owner = flow.owner(node, reader)
        parts = tuple(each.removeprefix(f"{owner}." if owner else "") for each in (path, conv_path))
        kernel = self._kernel(conv_path, self.moving[path].factor)
        return Fold(owner, applies=True, reason=f"{parts[0]} and {parts[1]} as one {kernel} convolution", parts=parts)

    def _kernel(self, path: str, factor: int) -> str:
        return "x".join(str(side * factor) for side in self.modules[path].weight.shape[2:])

    def _objection_to_moving(self, path: str, node: fx.Node) -> str:
        if self.times[path] > 1:
            return f"it is called {self.times[path]} times"
        if len(node.users) > 1:
            return f"its output is read in {len(node.users)} places"
        return self.sharing.objection(self.modules[path])

    def _objection_to_conv(self, path: str) -> str:
        conv = self.modules[path]
        if type(conv) is not nn.Conv2d:
            return f"is a {type(conv).__name__}, which may do more than a convolution"
        padding = conv.padding_mode if conv.padding_mode != "zeros" else repr(conv.padding)
        objections = (
            (self.times[path] > 1, f"is called {self.times[path]} times"),
            (path in self.read, "has weights that other code reads"),
            (conv.groups > 1, f"has {conv.groups} groups, which are not those of the pixels' channels"),
            (conv.dilation != (1, 1), "is dilated, which pixels side by side are not"),
            (conv.padding_mode != "zeros" or isinstance(conv.padding, str), f"pads by {padding}, not by numbers"),
            (bool(shared := self.sharing.objection(conv)), f"cannot be replaced: {shared}"),
        )
        return next((reason for objects, reason in objections if objects), "")

    def _is_whole(self, module: nn.Module) -> bool:
        is_of_torch = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)
        return is_of_torch or _moving(module) is not None


def _moving(module: nn.Module) -> _Moving | None:
    """Return where a module moves pixels, if it is a space to depth."""
    if type(module) is nn.PixelUnshuffle:
        side = module.downscale_factor
        places = tuple((row, column) for row in range(side) for column in range(side))
        return _Moving(side, places, by_channel=True) if side > 1 else None
    has_parts = any(True for _ in module.children()) or any(True for _ in module.state_dict())
    if has_parts or type(module).__module__.startswith("torch.nn."):
        return None
    try:
        graph = own_graph(evaluated(module))
    except Exception:  # noqa: BLE001 - a forward may do anything; what cannot be read is none that is known
        return None
    return _moving_of(graph)


def _moving_of(graph: fx.Graph) -> _Moving | None:
    """Return where a graph that does nothing else moves pixels."""
    if len(graph.nodes) < 3:
        return None
    *operations, joined, output = graph.nodes
    if joined.target is not torch.cat or output.args != (joined,) or _axis(joined) not in (1, -3):
        return None
    slices = list(joined.args[0]) if joined.args else []
    source = operations[0] if operations and operations[0].op == "placeholder" else None
    places = tuple(_place(each, source) for each in slices)
    steps = {step for each in places if each for step in each[2:]}
    if len(steps) != 1 or None in places:
        return None
    side = steps.pop()
    found = tuple((each[0], each[1]) for each in places if each)
    used = {source, *slices}
    wanted = {(row, column) for row in range(side) for column in range(side)}
    return _Moving(side, found, by_channel=False) if used == set(operations) and set(found) == wanted else None


def _axis(joined: fx.Node) -> object:
    return joined.args[1] if len(joined.args) > 1 else joined.kwargs.get("dim", 0)


def _place(node: object, source: fx.Node | None) -> tuple[int, int, int, int] | None:
    """Return first row and column and both steps of a slice of a batch of pictures."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem or node.args[0] is not source:
        return None
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) < 3 - (index[:1] == (Ellipsis,)):
        return None
    *before, rows, columns = index
    all_before = before == [Ellipsis] or before == [slice(None)] * 2
    if not all_before or not isinstance(rows, slice) or not isinstance(columns, slice):
        return None
    numbers = (rows.start or 0, columns.start or 0, rows.step, columns.step)
    is_open = rows.stop is None and columns.stop is None
    return numbers if is_open and all(isinstance(each, int) for each in numbers) else None


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("space-to-depth-conv", SpaceToDepthConvPass)
