"""From a model to its graph of gradient paths, by the links that autograd itself would follow.

The forward pass runs once on the meta device, where tensors have shapes and no content. What follows only from weights
(a standardised kernel, a reshaped bias) is not a flow, but part of the layer that uses it. Norms, activations,
poolings, learned scales and shifts mix nothing by learned weights: the flow passes them by.

Shape letters: B images, C channels, H and W rows and columns.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node as Link
from torch.overrides import TorchFunctionMode

from detloom.detector import Detector
from detloom.errors import RecipeError, reason, with_article
from detloom.paths.graph import Form, Node, Output, PathGraph, merged
from detloom.shapes import shapes_only
from detloom.structures import HeadMaps

__all__ = ["PICTURE", "trace", "trace_detector"]

PICTURE = "picture"

# Two, so that a batch norm of one cell has a variance.
_PICTURES = 2
_MIXING = ("Convolution", "Mm", "Bmm", "Linear", "Mv", "Embedding", "Einsum")
_SHIFTED = ("Addmm", "Baddbmm", "Addbmm", "Addmv")
_ADDING = ("Add", "Sub", "Rsub", "Lerp", "Addcmul", "Addcdiv")
_JOINING = ("Cat", "Stack", "CopySlices", "SliceScatter", "IndexPut", "Copy")
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 - torch has no public name for all convolutions


def trace_detector(detector: Detector, image_size: tuple[int, int]) -> PathGraph:
    """Return the graph of a detector in its present mode, with an output for each map of the head."""

    def named(made: HeadMaps) -> Iterator[tuple[str, Tensor]]:
        for role, maps in (("lead", made.lead), ("auxiliary", made.auxiliary)):
            strides = [image_size[0] // map_BCHW.shape[2] for map_BCHW in maps]
            for place, (stride, map_BCHW) in enumerate(zip(strides, maps, strict=True)):
                again = f".{strides[:place].count(stride) + 1}" if strides.count(stride) > 1 else ""
                yield f"{role} {stride}{again}", map_BCHW

    return trace(detector, image_size, named)


def trace(
    model: nn.Module,
    image_size: tuple[int, int],
    named: Callable[[Any], Iterable[tuple[str, Tensor]]] | None = None,
) -> PathGraph:
    """Return the graph of a model, which does not change.

        graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), (32, 32))

    Args:
        model: Takes pictures ``[B, 3, H, W]``.
        image_size: Height and width of the pictures that it is run with.
        named: Gives names to the tensors among its results that a loss reads; a tensor, or several in a tuple or list,
            are called by their places when not given.

    Raises:
        RecipeError: The forward pass fails without content, or nothing that it gives depends on the pictures.
    """
    twin, names = _twin(model)
    records = _Records(twin, image_size[0])
    with shapes_only(), torch.enable_grad(), records:
        images_BCHW = torch.zeros(_PICTURES, 3, *image_size, requires_grad=True)
        try:
            # A copy, since a model may change its input in place, which a leaf forbids.
            results = list((named or _numbered)(twin(images_BCHW.clone())))
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise RecipeError(
                f"{type(model).__name__}: the forward pass cannot run on shapes alone, which gradient paths are read "
                f"from: {reason(error).rstrip('.')}. If `detloom check` meets the same error, the recipe is at fault; "
                "else the forward pass looks at the values of a tensor, and must be written without."
            ) from error
    return _Reader(names, records.seen, images_BCHW).graph(results, twin)


def _numbered(made: Any) -> Iterator[tuple[str, Tensor]]:
    for place, each in enumerate(made if isinstance(made, tuple | list) else (made,)):
        if not isinstance(each, Tensor):
            raise RecipeError(
                f"the model returns {with_article(type(each).__name__)}, where a tensor, or a tuple or list of some, "
                "is followed; say with `named` which tensors a loss reads"
            )
        yield f"output {place}", each


def _twin(model: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """Return a copy without content, and the names of its parameters by identity; what is shared stays shared."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        bare = tensor.detach().to("meta")
        # Frozen layers hand gradients on like others.
        is_learned = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        memo[id(tensor)] = nn.Parameter(bare) if is_learned else bare
    twin = copy.deepcopy(model, memo)
    return twin, {id(parameter): name for name, parameter in twin.named_parameters()}


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where and when an operation was recorded, and the stride of what it made."""

    order: int
    path: str
    stride: int | None


class _Records(TorchFunctionMode):
    """Notes the module in whose forward each link of autograd is made."""

    def __init__(self, model: nn.Module, height: int) -> None:
        super().__init__()
        self.seen: dict[Link, _Seen] = {}
        self._height = height
        self._stack = [""]
        for path, module in model.named_modules():
            module.register_forward_pre_hook(self._entered(path))
            module.register_forward_hook(self._left, always_call=True)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function and note what it made."""
        del types
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None and tensor.grad_fn not in self.seen:
                is_map = tensor.dim() == 4 and tensor.shape[2] > 0
                stride = max(1, round(self._height / tensor.shape[2])) if is_map else None
                self.seen[tensor.grad_fn] = _Seen(len(self.seen), self._stack[-1], stride)
        return made

    def _entered(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, _args: self._stack.append(path)

    def _left(self, _module: nn.Module, _args: Any, _made: Any) -> None:
        self._stack.pop()


class _Reader:
    """Turns links into nodes."""

    def __init__(self, names: Mapping[int, str], seen: dict[Link, _Seen], images_BCHW: Tensor) -> None:
        self._names = names
        self._seen = seen
        self._images = images_BCHW
        self._nodes = [Node("picture", PICTURE, (), 1)]
        # What each link hands on: the index of a node, or the parameters that it follows from.
        self._flow: dict[Link, int] = {}
        self._weights: dict[Link, dict[str, Tensor]] = {}
        # By identity, since weights that modules share have one name.
        self._reached: set[int] = set()

    def graph(self, results: Sequence[tuple[str, Tensor]], model: nn.Module) -> PathGraph:
        """Return the graph behind the results."""
        starts = [tensor.grad_fn for _, tensor in results if tensor.grad_fn is not None]
        for link in self._ordered(starts):
            self._read(link)
        outputs = [
            Output(name, self._flow[tensor.grad_fn])
            for name, tensor in results
            if tensor.grad_fn is not None and tensor.grad_fn in self._flow
        ]
        if not outputs:
            raise RecipeError(
                f"{type(model).__name__}: no gradient comes from its results to the pictures. Look for a detach, or a "
                "no_grad around the whole forward pass."
            )
        unreached = [
            path
            for path, module in model.named_modules()
            if isinstance(module, _LAYERS) and not any(id(each) in self._reached for each in module.parameters())
        ]
        return merged(PathGraph(tuple(self._nodes), tuple(outputs), tuple(unreached)))

    def _ordered(self, starts: Sequence[Link]) -> list[Link]:
        """Return all links, each after those that it leads to, in the order of the forward pass."""
        after: list[Link] = []
        known: set[Link] = set()
        waiting = [(link, False) for link in reversed(starts)]
        while waiting:
            link, is_done = waiting.pop()
            if is_done:
                after.append(link)
            elif link not in known:
                known.add(link)
                waiting.append((link, True))
                waiting += [(inner, False) for inner in _inputs(link) if inner not in known]
        # A function may make several links, of which the last is recorded: the others belong to its place.
        for link in reversed(after):
            here = self._seen.get(link)
            for inner in _inputs(link):
                if here is not None and (inner not in self._seen or self._seen[inner].order > here.order):
                    self._seen[inner] = here
        last = len(self._seen)
        return sorted(after, key=lambda link: self._seen[link].order if link in self._seen else last)

    def _read(self, link: Link) -> None:
        variable = getattr(link, "variable", None) if link.name().endswith("AccumulateGrad") else None
        if variable is not None:
            if variable is self._images:
                self._flow[link] = 0
            else:
                name = self._names.get(id(variable))
                self._weights[link] = {} if name is None else {name: variable}
            return
        flows, weights = self._behind(_inputs(link))
        if not flows:
            self._weights[link] = weights
            return
        operation = link.name().rpartition("::")[2]
        if operation.startswith(_SHIFTED):
            self._flow[link] = self._shifted(link)
        elif operation.startswith(_ADDING):
            self._flow[link] = self._met("addition", flows, link)
        elif operation.startswith(_JOINING):
            self._flow[link] = self._met("concatenation", flows, link)
        else:
            self._flow[link] = self._mixed(flows, weights if operation.startswith(_MIXING) else {}, link)

    def _behind(self, links: Sequence[Link]) -> tuple[list[int], dict[str, Tensor]]:
        """Return the nodes that inputs come from, and the parameters that the others follow from."""
        weights: dict[str, Tensor] = {}
        for inner in links:
            weights |= self._weights.get(inner, {})
        return [self._flow[inner] for inner in links if inner in self._flow], weights

    def _shifted(self, link: Link) -> int:
        """Return the node of a product to which something is added: a bias, a flow, or a bias to a product of flows."""
        first = link.next_functions[0][0]
        added, biases = self._behind([] if first is None else [first])
        flows, matrices = self._behind([inner for inner, _ in link.next_functions[1:] if inner is not None])
        if not flows:
            return added[0]
        product = self._mixed(flows, {**biases, **matrices} if matrices else {}, link)
        return self._met("addition", [product, *added], link)

    def _mixed(self, flows: Sequence[int], weights: Mapping[str, Tensor], link: Link) -> int:
        """Return the node of a layer, or of a product where nothing is learned."""
        if weights:
            self._reached.update(id(each) for each in weights.values())
            return self._add("layer", _layer_name(weights), flows, link)
        # A function of one flow that is written with several operations, as x * sigmoid(x), is no meeting.
        return self._met("product", list(dict.fromkeys(flows)), link)

    def _met(self, form: Form, flows: Sequence[int], link: Link) -> int:
        """Return the node at which flows meet: of one alone, where that is from."""
        return flows[0] if len(flows) == 1 else self._add(form, "", flows, link)

    def _add(self, form: Form, name: str, flows: Sequence[int], link: Link) -> int:
        seen = self._seen.get(link)
        path = name or (seen.path if seen else "")
        self._nodes.append(Node(form, path, tuple(flows), seen.stride if seen else None))
        return len(self._nodes) - 1


def _inputs(link: Link) -> list[Link]:
    return [inner for inner, _ in link.next_functions if inner is not None]


def _layer_name(weights: Mapping[str, Tensor]) -> str:
    """Return the module that owns the largest of a layer's parameters, or its own name where that is no weight."""
    largest = max(weights, key=lambda name: weights[name].numel())
    return largest.partition(".parametrizations.")[0].removesuffix(".weight")
