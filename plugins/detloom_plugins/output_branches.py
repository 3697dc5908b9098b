"""The forward of a head as a graph with an output for each branch of each level.

Branches part where they came together: a concatenation is taken away, and the last convolution of several branches
becomes one for each, with its rows of the weights. Where neither stands at the end, channels are sliced.
"""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH

from detloom.errors import PluginError
from detloom.interfaces import Head
from detloom.structures import HeadMaps
from detloom_plugins.conv_weights import with_weights
from detloom_plugins.flow import default_arguments, first_words

__all__ = ["Branch", "branched", "opened_graph"]


@dataclass(frozen=True, slots=True)
class Branch:
    """Channels of a map that become a map of their own.

    Attributes:
        name: For the convolution that makes them.
        channels: Their indices, ascending.
    """

    name: str
    channels: tuple[int, ...]


def opened_graph(head: Head, num_levels: int) -> fx.Graph:
    """Return the operations of a head in evaluation mode, its parts as wholes but for those that join branches.

    Its inputs are the levels, its output is what the head returns.

    Raises:
        PluginError: The forward cannot be read, or returns something else than maps.
    """
    opened: set[str] = set()
    try:
        graph = _traced(head, num_levels, opened)
    except Exception as error:
        raise PluginError(f"its forward cannot be read: {first_words(error)}") from error
    closed: set[str] = set()
    while inside := _closed(head, graph) - opened - closed:
        for path in sorted(inside):
            try:
                graph = _traced(head, num_levels, opened | {path})
                opened.add(path)
            except Exception:  # noqa: BLE001 - a forward may do anything; what cannot be read stays a whole
                closed.add(path)
    return graph


def branched(head: Head, graph: fx.Graph, maps: Sequence[Sequence[Branch]]) -> fx.GraphModule:
    """Return a module that takes the levels and returns the branches of the first map, of the second, and so on.

    The graph is used up.
    """
    splitter = _Splitter(head, graph)
    replaced = _makers(graph)
    branches = [
        made
        for node, wanted in zip(_lead(graph), maps, strict=True)
        for made in splitter.parts(node, wanted, sum(len(each.channels) for each in wanted))
    ]
    *_, output = graph.nodes
    whole = output.all_input_nodes
    output.args = (tuple(branches),)
    # What has no reader any more and is something else may work in place.
    for node in [*whole, *replaced]:
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    used = dict.fromkeys(str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return fx.GraphModule({path: splitter.made.get(path) or _entry(head, path) for path in used}, graph)


class _Tracer(fx.Tracer):
    """Looks only into those parts that are opened."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a part is a whole."""
        del m
        return module_qualified_name not in self.opened


def _traced(head: Head, num_levels: int, opened: set[str]) -> fx.Graph:
    levels = next(iter(inspect.signature(head.forward).parameters))
    arguments = {**default_arguments(head), levels: (PH,) * num_levels}
    graph = _Tracer(opened).trace(head, concrete_args=arguments)
    # The levels as inputs of their own, not as a tuple to be taken apart.
    graph.set_codegen(fx.graph.CodeGen())
    _lead(graph)
    return graph


def _lead(graph: fx.Graph) -> list[fx.Node]:
    """Return what makes each lead map."""
    *_, output = graph.nodes
    returned = output.args[0]
    maps = returned[0] if isinstance(returned, list | tuple) and len(returned) == 1 else returned
    if isinstance(maps, fx.Node) and maps.target is HeadMaps:
        lead = maps.args[0] if maps.args else maps.kwargs.get("lead")
        if isinstance(lead, tuple) and all(isinstance(each, fx.Node) for each in lead):
            return [each for each in lead if isinstance(each, fx.Node)]
    raise PluginError("it returns no HeadMaps whose lead maps can be followed")


def _makers(graph: fx.Graph) -> list[fx.Node]:
    """Return what makes the lead maps, and what is concatenated to these, the last first."""
    waiting = _lead(graph)
    for node in waiting:  # grows as it goes
        if node.target is torch.cat:
            waiting += _joined(node)
    order = list(graph.nodes)
    return sorted(dict.fromkeys(waiting), key=order.index, reverse=True)


def _closed(head: Head, graph: fx.Graph) -> set[str]:
    """Return the paths of parts, other than torch's own, that make a map or what is concatenated to one."""
    paths = {str(node.target) for node in _makers(graph) if node.op == "call_module"}
    return {path for path in paths if not _is_of_torch(head.get_submodule(path))}


def _is_of_torch(part: nn.Module) -> bool:
    return type(part).__module__.startswith("torch.nn.") and not isinstance(part, nn.Sequential)


def _joined(node: fx.Node) -> list[fx.Node]:
    """Return what a concatenation of channels puts together; nothing where it is another."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    if axis not in (1, -3) or not isinstance(tensors, list | tuple):
        return []
    nodes = [each for each in tensors if isinstance(each, fx.Node)]
    return nodes if len(nodes) == len(tensors) else []


@dataclass(slots=True)
class _Splitter:
    """Makes the nodes of branches.

    Attributes:
        head: Whose graph it is.
        graph: It; it grows.
        made: Convolutions of branches, by their new paths.
    """

    head: Head
    graph: fx.Graph
    made: dict[str, nn.Module] = field(default_factory=dict)

    def parts(self, node: fx.Node, wanted: Sequence[Branch], width: int) -> list[fx.Node]:
        """Return a node for each branch.

        Args:
            node: What makes all channels.
            wanted: Which of its channels.
            width: How many channels it has.
        """
        whole = tuple(range(width))
        if all(each.channels == whole for each in wanted):
            return [node for _ in wanted]
        conv = self._conv(node)
        if conv is not None and conv.out_channels == width:
            # Each is put before those that were made earlier.
            return [self._convolved(node, conv, each) for each in reversed(wanted)][::-1]
        joined = _joined(node) if node.target is torch.cat else []
        widths = self._widths(joined, width)
        if widths:
            return self._from_joined(joined, widths, wanted)
        return [self._sliced(node, each.channels) for each in wanted]

    def _conv(self, node: fx.Node) -> nn.Conv2d | None:
        """Return the convolution that a node calls, if it can be split."""
        part = self.head.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(part, nn.Conv2d) or type(part) is not nn.Conv2d or part.groups > 1:
            return None
        # What reads all channels beside the maps would keep the whole convolution alive.
        return part if len(node.users) == 1 else None

    def _convolved(self, node: fx.Node, conv: nn.Conv2d, branch: Branch) -> fx.Node:
        path = f"{node.target}.{branch.name}"
        if path not in self.made:
            self.made[path] = _rows(conv, branch.channels)
        with self.graph.inserting_after(node):
            return self.graph.call_module(path, node.args, dict(node.kwargs))

    def _from_joined(self, joined: Sequence[fx.Node], widths: Sequence[int], wanted: Sequence[Branch]) -> list[fx.Node]:
        starts = [sum(widths[:place]) for place in range(len(widths))]
        pieces: list[list[fx.Node]] = [[] for _ in wanted]
        for each, start, width in zip(joined, starts, widths, strict=True):
            inside = range(start, start + width)
            here = [Branch(b.name, tuple(c - start for c in b.channels if c in inside)) for b in wanted]
            concerned = [place for place, branch in enumerate(here) if branch.channels]
            found = self.parts(each, [here[place] for place in concerned], width) if concerned else []
            for place, made in zip(concerned, found, strict=True):
                pieces[place].append(made)
        return [self._put_together(found) for found in pieces]

    def _sliced(self, node: fx.Node, channels: Sequence[int]) -> fx.Node:
        runs: list[list[int]] = []
        for channel in channels:
            if runs and channel == runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([channel, channel + 1])
        with self.graph.inserting_after(node):
            slices = [self.graph.call_method("narrow", (node, 1, start, stop - start)) for start, stop in runs]
        return self._put_together(slices)

    def _put_together(self, pieces: Sequence[fx.Node]) -> fx.Node:
        if len(pieces) == 1:
            return pieces[0]
        *_, output = self.graph.nodes
        with self.graph.inserting_before(output):
            return self.graph.call_function(torch.cat, (list(pieces), 1))

    def _widths(self, joined: Sequence[fx.Node], width: int) -> list[int]:
        """Return the channels of what is put together, or nothing where they are not known."""
        known = [self._width(each) for each in joined]
        if known.count(None) == 1:
            known[known.index(None)] = width - sum(each or 0 for each in known)
        widths = [each for each in known if each]
        return widths if len(widths) == len(joined) and sum(widths) == width else []

    def _width(self, node: fx.Node) -> int | None:
        part = self.head.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, nn.Conv2d):
            return part.out_channels
        inner = [self._width(each) for each in _joined(node)] if node.target is torch.cat else []
        return sum(each or 0 for each in inner) if inner and None not in inner else None


def _rows(conv: nn.Conv2d, channels: Iterable[int]) -> nn.Conv2d:
    """Return the convolution that makes some of another's channels."""
    rows = torch.tensor(list(channels), device=conv.weight.device)
    bias_O = None if conv.bias is None else conv.bias.detach()[rows]
    return with_weights(conv, conv.weight.detach()[rows], bias_O)


def _entry(head: Head, path: str) -> nn.Module | Tensor:
    """Return the part, parameter or buffer at a path."""
    parent, _, name = path.rpartition(".")
    found: nn.Module | Tensor = getattr(head.get_submodule(parent), name)
    return found
