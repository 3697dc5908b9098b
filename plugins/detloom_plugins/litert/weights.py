"""Weights and biases in a file: float32, or 8 and 32 bits with a scale for each output channel.

Shape letters: O output channels, I input channels of a group, K and L rows and columns of a kernel.
References: Jacob et al. 2018, arXiv:1712.05877, section 2; for scales per channel Krishnamoorthi 2018,
arXiv:1806.08342, section 3.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detloom_plugins.litert.writer import Value, Writer

__all__ = ["weight_scales", "write_weights"]

Floats = NDArray[np.float32]

# Room for the sum of products beside the bias, in 32 bits.
LARGEST_BIAS = 2.0**30
# Of what a product of two steps is in steps of the output; kernels hold this ratio as a number of 31 bits and a shift.
LEAST_RATIO = 2.0**-30


def write_weights(
    writer: Writer,
    source: Value,
    output: Value,
    kernel: tuple[Tensor, Tensor],
    *,
    order: tuple[int, ...],
    axis: int = 0,
) -> tuple[int, int]:
    """Add the weights and the bias of a convolution and return their indices.

    Args:
        writer: Of the file.
        source: The convolution's input, which decides on the type of numbers.
        output: Its output.
        kernel: The weight, output channels first, and the bias.
        order: Of the weight's axes in the file.
        axis: Which of these is that of the output channels.
    """
    weight_OIKL, bias_O = (each.detach().numpy() for each in kernel)
    names = f"{output.name}:weight", f"{output.name}:bias"
    if source.scale is None or output.scale is None:
        floats = np.ascontiguousarray(weight_OIKL.transpose(order), np.float32)
        return writer.constant(names[0], floats), writer.constant(names[1], bias_O.astype(np.float32))
    scale_O = weight_scales(weight_OIKL, bias_O, source=source.scale.scale, output=output.scale.scale)
    bytes_OIKL = np.clip(np.round(weight_OIKL / scale_O[:, None, None, None]), -127, 127).astype(np.int8)
    bias_scale_O = (np.float32(source.scale.scale) * scale_O).astype(np.float32)
    words_O = np.round(bias_O / bias_scale_O.astype(np.float64)).astype(np.int32)
    return (
        writer.constant(names[0], bytes_OIKL.transpose(order), scale_O, axis=axis),
        writer.constant(names[1], words_O, bias_scale_O),
    )


def weight_scales(weight_OIKL: Floats, bias_O: Floats, *, source: float, output: float) -> Floats:
    """Return the scale of each output channel's weights, symmetric about zero.

    A channel whose weights are next to nothing, or nothing at all, has a larger scale than they ask for: its bias must
    fit in 32 bits, and the ratio of scales into what kernels can hold. That costs nothing that could be seen.

    Args:
        weight_OIKL: In real numbers.
        bias_O: In real numbers.
        source: Scale of the input.
        output: Scale of the output.
    """
    by_weight_O = np.abs(weight_OIKL).max((1, 2, 3)) / 127
    by_bias_O = np.abs(bias_O) / (source * LARGEST_BIAS)
    scale_O: Floats = np.maximum(np.maximum(by_weight_O, by_bias_O), LEAST_RATIO * output / source).astype(np.float32)
    return scale_O
