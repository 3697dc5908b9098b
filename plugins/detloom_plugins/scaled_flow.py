"""Which convolutions read the channels that another makes, where a positive factor on them stays a factor on the way.

It stays one through what is positively homogeneous: ``f(s x) = s f(x)`` for ``s > 0``, as ReLU, LeakyReLU, pooling,
enlarging; and channels keep their places, or move with others in a concatenation. Everything else ends the way: sums,
SiLU, the output of the model.

A lane is some channels that a convolution makes, on their way. The lanes of a tensor lie one after another along its
channels; those of unknown origin have no maker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional

from detloom_plugins.flow import Flow, Reading, read_flows
from detloom_plugins.sharing import Sharing

__all__ = ["Link", "ScaledFlow", "scaled_flow"]

HOMOGENEOUS_MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.LeakyReLU, nn.PReLU),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d),
)
HOMOGENEOUS_FUNCTIONS = frozenset(
    {
        *(functional.relu, torch.relu, torch.relu_, "relu", "relu_", functional.leaky_relu, "contiguous"),
        *(functional.max_pool2d, torch.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d),
        functional.interpolate,
    }
)
CONCATENATIONS = frozenset({torch.cat, torch.concat, torch.concatenate})
SHAPES = frozenset({"size", "dim"})


@dataclass(frozen=True, slots=True)
class Link:
    """A convolution that reads channels of another.

    Attributes:
        reader: Path of the convolution that reads.
        start: Its input channel that the maker's first channel is.
    """

    reader: str
    start: int


@dataclass(slots=True)
class ScaledFlow:
    """What becomes of the channels of each convolution of a model.

    Attributes:
        links: By the path of the convolution that makes them: who reads them, where all of these are convolutions.
        refused: By path, why the channels of a convolution cannot be scaled.
    """

    links: dict[str, list[Link]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def scaled_flow(model: nn.Module) -> ScaledFlow:
    """Return which channels of a model's convolutions may be scaled, and who reads them."""
    return _Follower(model).result()


@dataclass(frozen=True, slots=True)
class _Lane:
    """Channels on their way: all that a convolution makes, or some of unknown origin and, perhaps, number."""

    maker: str | None
    width: int | None


Lanes = tuple[_Lane, ...]
UNKNOWN: Lanes = (_Lane(None, None),)


class _Follower:
    """Follows the channels of all convolutions."""

    def __init__(self, model: nn.Module) -> None:
        self.convs = {path: each for path, each in model.named_modules() if isinstance(each, nn.Conv2d)}
        self.sharing = Sharing(model)
        self.reading: Reading = read_flows(model, _is_whole)
        self.times = self.reading.times()
        self.read = frozenset(name.rpartition(".")[0] for flow in self.reading.flows for name in flow.read)
        self.found = ScaledFlow()
        self.lanes: dict[fx.Node, Lanes] = {}

    def result(self) -> ScaledFlow:
        """Return the links of those convolutions that may be scaled, and why the others may not."""
        for path in self.convs:
            objection = self._objection(path)
            if objection:
                self._refuse(path, objection)
        for flow in self.reading.flows:
            for node in flow.graph.nodes:
                self.lanes[node] = self._through(flow, node)
        for path in self.convs:
            if path not in self.found.refused and path not in self.found.links:
                self._refuse(path, "nothing reads its output")
        links = {path: self.found.links[path] for path in self.convs if path not in self.found.refused}
        return ScaledFlow(links, {path: self.found.refused[path] for path in self.convs if path in self.found.refused})

    def _through(self, flow: Flow, node: fx.Node) -> Lanes:
        """Return the lanes that leave an operation, and note what becomes of those that enter."""
        part = flow.called(node)
        if isinstance(part, nn.Conv2d):
            path = flow.path_of(node)
            self._read(path, self._entering(node))
            return (_Lane(path, part.out_channels),)
        target = node.target
        if type(part) in HOMOGENEOUS_MODULES or target in HOMOGENEOUS_FUNCTIONS or _is_channel_concatenation(node):
            return tuple(lane for each in _tensors(node) for lane in self.lanes.get(each, UNKNOWN))
        if not _reads_shape(node):
            self._end(flow, node, part)
        return UNKNOWN

    def _entering(self, node: fx.Node) -> Lanes:
        return self.lanes.get(node.args[0], UNKNOWN) if node.args and isinstance(node.args[0], fx.Node) else UNKNOWN

    def _read(self, reader: str, lanes: Lanes) -> None:
        conv, objection = self.convs[reader], self._objection(reader)
        start: int | None = 0
        for place, lane in enumerate(lanes):
            if start is None and all(each.width is not None for each in lanes[place:]):
                # Channels of unknown number before it: counted from the other end.
                start = conv.in_channels - sum(each.width or 0 for each in lanes[place:])
            if lane.maker is not None and objection:
                self._refuse(lane.maker, f"{reader} reads it: {objection}")
            elif lane.maker is not None and start is None:
                self._refuse(lane.maker, f"which channels of {reader} it makes is not known")
            elif lane.maker is not None and start is not None:
                self.found.links.setdefault(lane.maker, []).append(Link(reader, start))
            start = None if start is None or lane.width is None else start + lane.width

    def _end(self, flow: Flow, node: fx.Node, part: nn.Module | None) -> None:
        name = type(part).__name__ if part is not None else getattr(node.target, "__name__", str(node.target))
        for lane in (lane for each in node.all_input_nodes for lane in self.lanes.get(each, ())):
            if lane.maker is not None:
                self._refuse(lane.maker, self._why(flow, node, part, name, lane.maker))

    def _why(self, flow: Flow, node: fx.Node, part: nn.Module | None, name: str, maker: str) -> str:
        if node.op == "output" or isinstance(node.target, type):
            return self.reading.obstacle(maker) or "it is an output"
        if isinstance(part, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the class of all of them
            return f"the batch norm {flow.path_of(node)} reads it; fuse-bn comes first"
        if flow.path_of(node) in self.reading.unread and part is not None:
            return f"{flow.path_of(node)} cannot be read: {self.reading.unread[flow.path_of(node)]}"
        return f"it goes through {name}, which does not keep factors"

    def _objection(self, path: str) -> str:
        """Return why the weights of a convolution may not be changed."""
        conv = self.convs[path]
        if type(conv) is not nn.Conv2d:
            return f"a {type(conv).__name__} may do more than a convolution"
        if path in self.read:
            return "other code reads its weights"
        if self.times[path] == 0:
            return self.reading.obstacle(path) or "evaluation mode does not run it"
        if self.times[path] > 1:
            return f"it is called {self.times[path]} times"
        return self.sharing.objection(conv)

    def _refuse(self, path: str, reason: str) -> None:
        self.found.refused.setdefault(path, reason)


def _is_whole(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Sequential)


def _tensors(node: fx.Node) -> Sequence[fx.Node]:
    """Return what an operation takes along, in order; a size that it is given is none of it."""
    first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))
    each = first if isinstance(first, list | tuple) else [first]
    return [node for node in each if isinstance(node, fx.Node)]


def _is_channel_concatenation(node: fx.Node) -> bool:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return node.target in CONCATENATIONS and axis in (1, -3)


def _reads_shape(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in ("shape", "device", "dtype")
    return node.op == "call_method" and node.target in SHAPES
