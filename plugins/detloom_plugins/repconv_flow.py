"""Where an identity branch would repeat a path that the network has already.

A residual addition, and a concatenation of layers of different depth, give each layer gradients of its own. An identity
inside such a layer sends its input along the same way once more, and the difference is lost. So a RepConv whose output
reaches an addition or a concatenation, before another convolution, may have an identity only where nothing else comes
together there: where the other parts are all made from its own output.

Where the flow cannot be read as far as the next convolution, the identity is neither allowed nor forbidden: that is
said, and people have to look.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 4.2 and figure 4, "planned re-parameterized convolution".
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional

from detloom_plugins.flow import Flow, Reading, read_flows
from detloom_plugins.layers import RepConv

__all__ = ["Identities", "identities"]

# Differences and weighted means are sums as well.
_ADDITIONS = frozenset(
    {
        *(operator.add, operator.iadd, torch.add, "add", "add_"),
        *(operator.sub, operator.isub, torch.sub, torch.subtract, torch.rsub, "sub", "sub_", "subtract", "subtract_"),
        *(torch.lerp, "lerp", "lerp_"),
        *(torch.addcmul, torch.addcdiv, "addcmul", "addcmul_", "addcdiv", "addcdiv_"),
    }
)
_CONCATENATIONS = frozenset(
    {torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack, torch.dstack}
)
_CONVOLUTIONS = frozenset(
    {functional.conv1d, functional.conv2d, functional.conv3d, functional.linear, torch.matmul, operator.matmul}
)


@dataclass(frozen=True, slots=True)
class Identities:
    """What the identities of a model's RepConvs do, by dotted name; of those that are in neither, no harm is known.

    Attributes:
        repeated: Which path an identity repeats; it reads on after "its identity", such as ``reaches the addition with
            its own input in backbone.stage2``.
        unread: Why it could not be found out, as a sentence.
    """

    repeated: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def identities(model: nn.Module) -> Identities:
    """Return what the identity of each RepConv of a model does; RepConvs without one are left out."""
    found = Identities()
    concerned = [path for path, each in model.named_modules() if _has_identity(each)]
    if not concerned:
        return found
    reading = read_flows(model, _is_whole)
    seen = {flow.path_of(node): (flow, node) for flow in reversed(reading.flows) for node in flow.calls()}
    for path in concerned:
        repeats, unread = _verdict(path, *seen[path], reading) if path in seen else ("", reading.obstacle(path))
        if repeats:
            found.repeated[path] = repeats
        elif unread:
            found.unread[path] = f"its flow cannot be read, whether its identity repeats a path is not known ({unread})"
    return found


def _verdict(path: str, flow: Flow, layer: fx.Node, reading: Reading) -> tuple[str, str]:
    """Return where a layer's output meets what is not made from it, and why its flow cannot be followed, if so."""
    made_from_it = {layer, *_reached(layer, lambda node: list(node.users))}
    unread = ""
    for node in _before_next_convolution(layer, flow):
        if node.op == "output" and flow.path:
            unread = unread or reading.obstacle(path)
        if node.op == "call_module" and flow.path_of(node) in reading.unread and not _has_weights(node, flow):
            unread = unread or f"{flow.path_of(node)}: {reading.unread[flow.path_of(node)]}"
        kind = _kind(node)
        others = [each for each in node.all_input_nodes if each not in made_from_it] if kind else []
        if others:
            before_it = _reached(layer, lambda node: node.all_input_nodes)
            whose = "its own input" if any(each in before_it for each in others) else "other layers"
            return f"reaches the {kind} with {whose} in {flow.callers(node)[-1] or 'the model'}", ""
    return "", unread


def _has_identity(module: nn.Module) -> bool:
    return isinstance(module, RepConv) and module.identity is not None


def _is_whole(module: nn.Module) -> bool:
    """Return whether a module is torch's own, or a RepConv."""
    is_of_torch = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return is_of_torch or isinstance(module, RepConv)


def _before_next_convolution(layer: fx.Node, flow: Flow) -> list[fx.Node]:
    """Return what a layer's output reaches without passing through weights."""
    return _reached(layer, lambda node: list(node.users) if node is layer or not _has_weights(node, flow) else [])


def _reached(start: fx.Node, following: Callable[[fx.Node], list[fx.Node]]) -> list[fx.Node]:
    """Return all nodes after ``start``, nearest first."""
    waiting = following(start)
    seen: dict[fx.Node, None] = {}
    for node in waiting:  # grows as it goes
        if node not in seen:
            seen[node] = None
            waiting += following(node)
    return list(seen)


def _has_weights(node: fx.Node, flow: Flow) -> bool:
    part = flow.called(node)
    return node.target in _CONVOLUTIONS if part is None else any(tensor.dim() > 1 for tensor in part.parameters())


def _kind(node: fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    if node.target in _ADDITIONS:
        return "addition"
    return "concatenation" if node.target in _CONCATENATIONS else ""
