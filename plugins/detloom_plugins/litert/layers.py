"""What ATen's layers mean in LiteRT's operations: convolutions, norms, pooling, enlarging, shuffling."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from detloom_plugins.litert.calls import Call, Handler, Ref, Refused
from detloom_plugins.litert.convolution import Conv, TransposedConv, affine
from detloom_plugins.litert.movement import Pad, ResizeBilinear, ResizeNearest
from detloom_plugins.litert.pooling import AveragePool, MaxPool, Mean
from detloom_plugins.litert.windows import Pads, Window

__all__ = ["LAYERS"]


def _conv(call: Call) -> Ref:
    arguments = call.arguments
    if arguments.get("transposed"):
        return _transposed(call)
    weight_OIKL, bias_O = _kernel(call)
    kernel, stride, dilation = (
        _pair(each) for each in (weight_OIKL.shape[2:], arguments["stride"], arguments["dilation"])
    )
    window = Window(kernel, stride, _conv_pads(arguments["padding"], kernel, dilation), dilation)
    return call.add(Conv(weight_OIKL, bias_O, window, arguments["groups"]), call.value("input"))


def _conv_pads(padding: str | Sequence[int], kernel: tuple[int, int], dilation: tuple[int, int]) -> Pads:
    if padding == "valid":
        return Pads()
    if padding == "same":
        rows, columns = ((length - 1) * step for length, step in zip(kernel, dilation, strict=True))
        return Pads(columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    rows, columns = _pair(padding)
    return Pads(columns, columns, rows, rows)


def _transposed(call: Call) -> Ref:
    arguments = call.arguments
    weight_IOKL, bias_O = _kernel(call, axis=1)
    if arguments["groups"] != 1 or _pair(arguments["dilation"]) != (1, 1):
        raise Refused("LiteRT's transposed convolution has neither groups nor dilation", "use one without")
    pads, more = _pair(arguments["padding"]), _pair(arguments["output_padding"])
    if any(extra > pad for pad, extra in zip(pads, more, strict=True)):
        raise Refused("its output padding is larger than its padding", "enlarge the padding")
    crop = Pads(pads[1], pads[1] - more[1], pads[0], pads[0] - more[0])
    return call.add(TransposedConv(weight_IOKL, bias_O, _pair(arguments["stride"]), crop), call.value("input"))


def _kernel(call: Call, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Return weight and bias; ``axis`` is that of the weight's output channels."""
    weight, bias_O = call.tensor("weight"), call.tensor("bias")
    if weight is None or weight.dim() != 4:  # two axes of channels, two of the kernel
        raise Refused("it is no convolution over height and width")
    return weight, torch.zeros(weight.shape[axis]) if bias_O is None else bias_O


def _batch_norm(call: Call) -> Ref:
    mean_C, variance_C = call.tensor("running_mean"), call.tensor("running_var")
    if mean_C is None or variance_C is None:
        raise Refused("it keeps no statistics, it uses those of each batch", "give it running statistics")
    weight_C, bias_C = call.tensor("weight"), call.tensor("bias")
    scale_C = (variance_C + call.arguments["eps"]).rsqrt() * (1.0 if weight_C is None else weight_C)
    shift_C = -mean_C * scale_C + (0.0 if bias_C is None else bias_C)
    return call.add(affine(scale_C, shift_C), call.value("input"))


def _batch_norm_of_three(call: Call) -> tuple[Ref, ...]:
    # The statistics that it returns beside are those of training.
    return (_batch_norm(call),)


def _max_pool(call: Call) -> Ref:
    arguments = call.arguments
    kernel, pads = _pair(arguments["kernel_size"]), _pair(arguments["padding"])
    if _pair(arguments["dilation"]) != (1, 1):
        raise Refused("LiteRT's pooling has no dilation", "use windows without dilation")
    window = Window(kernel, _pair(arguments["stride"] or kernel), Pads(pads[1], pads[1], pads[0], pads[0]))
    return call.add(MaxPool(window, arguments["ceil_mode"]), call.value("self"))


def _max_pool_with_indices(call: Call) -> tuple[Ref, ...]:
    return (_max_pool(call),)


def _average_pool(call: Call) -> Ref:
    arguments, source = call.arguments, call.value("self")
    kernel, (rows, columns) = _pair(arguments["kernel_size"]), _pair(arguments["padding"])
    stride, pads = _pair(arguments["stride"] or kernel), Pads(columns, columns, rows, rows)
    if arguments["divisor_override"] not in (None, kernel[0] * kernel[1]):
        raise Refused("it divides by another number than that of a window's cells", "leave out divisor_override")
    if arguments["count_include_pad"] and any(pads):
        if arguments["ceil_mode"]:
            raise Refused("it counts zeros around the map and reaches over them", "leave out ceil_mode")
        batch, channels, height, width = source.shape
        shape = (batch, channels, height + 2 * rows, width + 2 * columns)
        source, pads = call.add(Pad(pads), source, shape=shape, part="pad"), Pads()
    window = Window(kernel, stride, pads)
    if any(window.padding(source.shape[2:], call.shape[2:])[1]):
        raise Refused("LiteRT has no mean that leaves out what this padding adds", "set count_include_pad = True")
    return call.add(AveragePool(window, arguments["ceil_mode"]), source)


def _adaptive_average_pool(call: Call) -> Ref:
    source, places = call.value("self"), _pair(call.arguments["output_size"])
    if places == (1, 1):
        return call.add(Mean(), source)
    if any(size % count for size, count in zip(source.shape[2:], places, strict=True)):
        raise Refused(f"{source.shape[2:]} is no multiple of {places}", "use an output size that divides the map's")
    kernel = (source.shape[2] // places[0], source.shape[3] // places[1])
    return call.add(AveragePool(Window(kernel, kernel)), source)


def _mean(call: Call) -> Ref:
    source, axes = call.value("self"), call.arguments.get("dim")
    if axes is None or {axis % 4 for axis in axes} != {2, 3} or not call.arguments["keepdim"]:
        raise Refused("it is not the mean of height and width that keeps both axes", "use mean((2, 3), keepdim=True)")
    return call.add(Mean(), source)


def _nearest(call: Call) -> Ref:
    source = call.value("input", "self")
    sizes = list(zip(source.shape[2:], call.shape[2:], strict=True))
    if any(after % before for before, after in sizes):
        (rows, rows_after), (columns, columns_after) = sizes
        raise Refused(
            f"it enlarges {rows} x {columns} to {rows_after} x {columns_after}, which is no whole factor: torch and "
            "LiteRT repeat different cells",
            "choose an input size whose levels are whole multiples of each other, or mode='bilinear'",
        )
    (rows, rows_after), (columns, columns_after) = sizes
    return call.add(ResizeNearest((rows_after // rows, columns_after // columns)), source)


def _bilinear(call: Call) -> Ref:
    return call.add(ResizeBilinear(_pair(call.shape[2:]), call.arguments["align_corners"]), call.value("input", "self"))


def _pixel_unshuffle(call: Call) -> Ref:
    """Return a convolution whose kernels pick one cell each: exact, and one operator."""
    source, factor = call.value("self"), call.arguments["downscale_factor"]
    kernels = torch.eye(source.shape[1] * factor**2).reshape(-1, source.shape[1], factor, factor)
    window = Window((factor, factor), (factor, factor))
    return call.add(Conv(kernels, torch.zeros(len(kernels)), window), source)


def _pixel_shuffle(call: Call) -> Ref:
    source, factor = call.value("self"), call.arguments["upscale_factor"]
    channels = source.shape[1] // factor**2
    kernels = torch.eye(source.shape[1]).reshape(-1, channels, factor, factor)
    return call.add(TransposedConv(kernels, torch.zeros(channels), (factor, factor)), source)


def _pair(numbers: Any) -> tuple[int, int]:
    both = [numbers] if isinstance(numbers, int) else list(numbers)
    return int(both[0]), int(both[-1])


LAYERS: Mapping[str, Handler] = MappingProxyType(
    {
        "_adaptive_avg_pool2d": _adaptive_average_pool,
        "_native_batch_norm_legit_no_training": _batch_norm_of_three,
        "_upsample_nearest_exact2d": _nearest,
        "adaptive_avg_pool2d": _adaptive_average_pool,
        "avg_pool2d": _average_pool,
        "batch_norm": _batch_norm,
        "conv2d": _conv,
        "conv_transpose2d": _transposed,
        "convolution": _conv,
        "max_pool2d": _max_pool,
        "max_pool2d_with_indices": _max_pool_with_indices,
        "mean": _mean,
        "pixel_shuffle": _pixel_shuffle,
        "pixel_unshuffle": _pixel_unshuffle,
        "upsample_bilinear2d": _bilinear,
        "upsample_nearest2d": _nearest,
    }
)
