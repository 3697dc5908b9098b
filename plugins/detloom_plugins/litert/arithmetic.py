"""What ATen's arithmetic, activations and moves mean in LiteRT's operations."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from detloom_plugins.litert.calls import Call, Handler, Ref, Refused
from detloom_plugins.litert.convolution import affine
from detloom_plugins.litert.graph import Operation
from detloom_plugins.litert.movement import Concat, Pad, Slice
from detloom_plugins.litert.pointwise import Activation, Combine, Extreme, LeakyRelu, Sigmoid, Tanh
from detloom_plugins.litert.windows import Pads

__all__ = ["ARITHMETIC"]


def _plain(operation: Operation) -> Handler:
    return lambda call: call.add(operation, call.value("self"))


def _leaky_relu(call: Call) -> Ref:
    return call.add(LeakyRelu(float(call.arguments["negative_slope"])), call.value("self"))


def _silu(call: Call) -> Ref:
    source = call.value("self")
    return call.add(Combine("MUL"), source, call.add(Sigmoid(), source, part="sigmoid"))


def _hard_sigmoid(call: Call) -> Ref:
    """Return ``relu6(x + 3) / 6``, of which the last is a change of scale alone."""
    source = call.value("self")
    one_C = torch.ones(source.shape[1], dtype=torch.float64)
    shifted = call.add(affine(one_C, 3 * one_C), source, part="shift")
    clamped = call.add(Activation("RELU6"), shifted, part="clamp")
    return call.add(affine(one_C / 6, 0 * one_C), clamped)


def _clamp(call: Call) -> Ref:
    arguments = call.arguments
    limits = arguments.get("min_val", arguments.get("min")), arguments.get("max_val", arguments.get("max"))
    if limits == (0, 6):
        return call.add(Activation("RELU6"), call.value("self"))
    if limits == (0, None):
        return call.add(Activation("RELU"), call.value("self"))
    raise Refused(f"it clamps to {limits}; LiteRT has an activation for (0, 6) and (0, None)", "use relu6 or relu")


def _gelu(call: Call) -> Ref:
    if call.arguments["approximate"] != "none":
        raise Refused("it is GELU's approximation", "use the exact form")
    return call.add(Activation("GELU"), call.value("self"))


def _combine(kind: Literal["ADD", "SUB", "MUL"]) -> Handler:
    def handler(call: Call) -> Ref:
        first, second, alpha = call.arguments["self"], call.arguments["other"], call.arguments.get("alpha", 1)
        if isinstance(first, Ref) and isinstance(second, Ref):
            if alpha != 1:
                raise Refused("it weighs its second input", "multiply it before")
            return call.add(Combine(kind), call.value("self"), call.value("other"))
        if isinstance(first, Ref):
            return _with_constant(call, kind, call.value("self"), second, alpha)
        if kind == "SUB":
            return _reversed(call, call.value("other"), first, alpha)
        return _with_constant(call, kind, call.value("other"), first, alpha)

    return handler


def _with_constant(call: Call, kind: str, source: Ref, constant: Tensor | float, alpha: float) -> Ref:
    number_C = _by_channel(source, constant)
    match kind:
        case "ADD":
            return call.add(affine(torch.ones_like(number_C), alpha * number_C), source)
        case "SUB":
            return call.add(affine(torch.ones_like(number_C), -alpha * number_C), source)
    return call.add(affine(number_C, torch.zeros_like(number_C)), source)


def _reversed(call: Call, source: Ref, constant: Tensor | float, alpha: float) -> Ref:
    number_C = _by_channel(source, constant)
    return call.add(affine(torch.full_like(number_C, -alpha), number_C), source)


def _reversed_sub(call: Call) -> Ref:
    return _reversed(call, call.value("self"), call.arguments["other"], call.arguments["alpha"])


def _div(call: Call) -> Ref:
    divisor = call.arguments["other"]
    if isinstance(divisor, Ref):
        raise Refused("it divides by a map", "multiply by a map, or divide by constants")
    source = call.value("self")
    number_C = _by_channel(source, divisor)
    return call.add(affine(1 / number_C, torch.zeros_like(number_C)), source)


def _neg(call: Call) -> Ref:
    return _reversed(call, call.value("self"), 0.0, 1.0)


def _square(call: Call) -> Ref:
    if call.arguments.get("exponent", 2) != 2:
        raise Refused(f"LiteRT files are written with squares, not with powers of {call.arguments['exponent']}")
    source = call.value("self")
    return call.add(Combine("MUL"), source, source)


def _by_channel(source: Ref, constant: Tensor | float) -> Tensor:
    """Return a constant as one number for each channel."""
    channels = source.shape[1]
    if not isinstance(constant, Tensor) or constant.numel() == 1:
        return torch.full((channels,), float(constant), dtype=torch.float64)
    shape = (1,) * (4 - constant.dim()) + tuple(constant.shape)
    if shape != (1, channels, 1, 1):
        raise Refused(f"its constant of shape {tuple(constant.shape)} is not one number for each channel")
    return constant.detach().double().reshape(channels)


def _extreme(kind: Literal["MAXIMUM", "MINIMUM"]) -> Handler:
    return lambda call: call.add(Extreme(kind), call.value("self"), call.value("other"))


def _cat(call: Call) -> Ref:
    parts = call.arguments["tensors"]
    if not all(isinstance(part, Ref) and len(part.shape) == 4 for part in parts):  # batch, channels, height, width
        raise Refused("it joins what is no map")
    return call.add(Concat(call.arguments["dim"] % 4), *parts)


def _slice(call: Call) -> Ref:
    source, axis = call.value("self"), call.arguments["dim"] % 4
    length = source.shape[axis]
    start, stop, step = slice(call.arguments["start"], call.arguments["end"], call.arguments["step"]).indices(length)
    return call.add(Slice(axis, start, stop, step), source)


def _split(call: Call) -> tuple[Ref, ...]:
    arguments, source = call.arguments, call.value("self")
    axis = arguments["dim"] % 4
    length = source.shape[axis]
    if "chunks" in arguments:
        sizes: int | list[int] = -(-length // arguments["chunks"])
    else:
        sizes = arguments.get("split_size", arguments.get("split_sizes"))
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    parts, start = [], 0
    for index, size in enumerate(sizes):
        shape = tuple(size if place == axis else each for place, each in enumerate(source.shape))
        parts.append(call.add(Slice(axis, start, start + size), source, shape=shape, part=str(index)))
        start += size
    return tuple(parts)


def _pad(call: Call) -> Ref:
    if call.arguments.get("mode", "constant") != "constant":
        raise Refused(f"it pads by {call.arguments['mode']}", "pad with zeros")
    amounts = [*call.arguments["pad"], 0, 0, 0, 0][:4]
    if min(amounts) < 0 or any(call.arguments["pad"][4:]):
        raise Refused(f"it pads by {call.arguments['pad']}", "pad height and width alone, and cut off by slices")
    return call.add(Pad(Pads(*amounts), float(call.arguments["value"] or 0)), call.value("self"))


def _nothing(call: Call) -> Ref:
    """Return the input of what does nothing here: dropout, copies, views of the same shape."""
    source = call.value("self", "input")
    if call.arguments.get("train"):
        raise Refused("it drops numbers at random", "export in evaluation mode")
    if call.shape != source.shape:
        raise Refused(f"it turns shape {source.shape} into {call.shape}", "keep maps as batch, channels, height, width")
    if call.arguments.get("dtype") not in (None, torch.float32):
        raise Refused(f"it turns numbers into {call.arguments['dtype']}", "compute in float32")
    return source


def _permute(call: Call) -> Ref:
    if [axis % 4 for axis in call.arguments["dims"]] != [0, 1, 2, 3]:
        raise Refused("it reorders axes", "use a backbone that keeps channels first")
    return call.value("self")


ARITHMETIC: Mapping[str, Handler] = MappingProxyType(
    {
        "_to_copy": _nothing,
        "_unsafe_view": _nothing,
        "add": _combine("ADD"),
        "alias": _nothing,
        "cat": _cat,
        "chunk": _split,
        "clamp": _clamp,
        "clamp_min": _clamp,
        "clone": _nothing,
        "concat": _cat,
        "constant_pad_nd": _pad,
        "contiguous": _nothing,
        "detach": _nothing,
        "detach_": _nothing,
        "div": _div,
        "dropout": _nothing,
        "expand": _nothing,
        "feature_dropout": _nothing,
        "gelu": _gelu,
        "hardsigmoid": _hard_sigmoid,
        "hardswish": _plain(Activation("HARD_SWISH")),
        "hardtanh": _clamp,
        "leaky_relu": _leaky_relu,
        "lift_fresh_copy": _nothing,
        "maximum": _extreme("MAXIMUM"),
        "minimum": _extreme("MINIMUM"),
        "mul": _combine("MUL"),
        "neg": _neg,
        "pad": _pad,
        "permute": _permute,
        "pow": _square,
        "relu": _plain(Activation("RELU")),
        "relu6": _plain(Activation("RELU6")),
        "reshape": _nothing,
        "rsub": _reversed_sub,
        "sigmoid": _plain(Sigmoid()),
        "silu": _silu,
        "slice": _slice,
        "split": _split,
        "split_with_sizes": _split,
        "square": _square,
        "sub": _combine("SUB"),
        "tanh": _plain(Tanh()),
        "to": _nothing,
        "view": _nothing,
    }
)
