"""Convolutions: ordinary, grouped, by channel and transposed, with 8-bit weights per output channel.

Shape letters: see ``graph``; O output channels, I input channels of a group, K and L rows and columns of a kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional

from detloom_plugins.litert.graph import Operation
from detloom_plugins.litert.weights import write_weights
from detloom_plugins.litert.windows import NO_PADS, Pads, Window, padded
from detloom_plugins.litert.writer import Value, Writer

__all__ = ["FUSED", "Conv", "Fusable", "TransposedConv", "affine", "clamped"]

Fusable = Literal["none", "relu", "relu6"]
FUSED = {"none": "NONE", "relu": "RELU", "relu6": "RELU6"}


def clamped(x_BCHW: Tensor, activation: Fusable) -> Tensor:
    """Return what an activation that operators can carry makes of a map."""
    match activation:
        case "relu":
            return x_BCHW.clamp(min=0)
        case "relu6":
            return x_BCHW.clamp(0, 6)
    return x_BCHW


@dataclass(frozen=True, slots=True, eq=False)
class Conv(Operation):
    """A convolution.

    Attributes:
        weight_OIKL: As torch has it.
        bias_O: Of each output channel.
        window: How it slides.
        groups: Of channels.
        activation: Carried by the operator.
    """

    weight_OIKL: Tensor
    bias_O: Tensor
    window: Window
    groups: int = 1
    activation: Fusable = "none"

    @property
    def is_affine(self) -> bool:
        """Return whether it scales and shifts each channel by itself, and nothing more."""
        return self.weight_OIKL.shape[1:].numel() == 1 == self.weight_OIKL.shape[0] // self.groups and (
            self.window == Window((1, 1))
        )

    def then(self, scale_O: Tensor, shift_O: Tensor) -> "Conv":
        """Return the convolution whose outputs are scaled and shifted; it must carry no activation."""
        return replace(
            self,
            weight_OIKL=self.weight_OIKL * scale_O[:, None, None, None],
            bias_O=self.bias_O * scale_O + shift_O,
        )

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the convolved map."""
        x_BCHW = functional.pad(inputs[0], list(self.window.pads))
        window = self.window
        y_BCHW = functional.conv2d(
            x_BCHW,
            self.weight_OIKL.to(x_BCHW),
            self.bias_O.to(x_BCHW),
            window.stride,
            0,
            window.dilation,
            self.groups,
        )
        return clamped(y_BCHW, self.activation)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add a convolution, one by channel where each has its own."""
        (source,) = inputs
        padding, pads = self.window.padding(source.shape_BHWC[1:3], output.shape_BHWC[1:3])
        source = padded(writer, source, output.name, pads)
        is_by_channel = self.groups > 1 and self.weight_OIKL.shape[1] == 1
        order, axis = ((1, 2, 3, 0), 3) if is_by_channel else ((0, 2, 3, 1), 0)
        weights = write_weights(writer, source, output, (self.weight_OIKL, self.bias_O), order=order, axis=axis)
        options = {
            "padding": writer.enumerated("Padding", padding),
            "strideH": self.window.stride[0],
            "strideW": self.window.stride[1],
            "dilationHFactor": self.window.dilation[0],
            "dilationWFactor": self.window.dilation[1],
            "fusedActivationFunction": writer.enumerated("ActivationFunctionType", FUSED[self.activation]),
        }
        indices = [source.index, *weights]
        if is_by_channel:
            options["depthMultiplier"] = self.weight_OIKL.shape[0] // self.groups
            # Version 1 knows no dilation.
            version = 3 if source.scale else 1 if self.window.dilation == (1, 1) else 2
            writer.add("DEPTHWISE_CONV_2D", version, indices, output, "DepthwiseConv2DOptions", **options)
        else:
            version = 6 if self.groups > 1 else 3 if source.scale else 1
            writer.add("CONV_2D", version, indices, output, "Conv2DOptions", **options)


@dataclass(frozen=True, slots=True, eq=False)
class TransposedConv(Operation):
    """A transposed convolution without groups.

    Attributes:
        weight_IOKL: As torch has it.
        bias_O: Of each output channel.
        stride: Rows and columns from one input to the next.
        crop: What is cut off the edges of the whole result: torch's padding, less its output padding at the end.
    """

    weight_IOKL: Tensor
    bias_O: Tensor
    stride: tuple[int, int]
    crop: Pads = NO_PADS

    def then(self, scale_O: Tensor, shift_O: Tensor) -> "TransposedConv":
        """Return the convolution whose outputs are scaled and shifted."""
        return replace(
            self, weight_IOKL=self.weight_IOKL * scale_O[:, None, None], bias_O=self.bias_O * scale_O + shift_O
        )

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the enlarged map."""
        (x_BCHW,) = inputs
        weight_IOKL, bias_O = self.weight_IOKL.to(x_BCHW), self.bias_O.to(x_BCHW)
        y_BCHW = functional.conv_transpose2d(x_BCHW, weight_IOKL, bias_O, self.stride)
        left, right, top, bottom = self.crop
        return y_BCHW[:, :, top : y_BCHW.shape[2] - bottom, left : y_BCHW.shape[3] - right]

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add a transposed convolution, and a slice where edges are cut off."""
        from detloom_plugins.litert.movement import write_slice

        (source,) = inputs
        left, right, top, bottom = self.crop
        batch, height, width, channels = output.shape_BHWC
        shape = (batch, height + top + bottom, width + left + right, channels)
        whole = writer.value(f"{output.name}:whole", shape, output.scale) if any(self.crop) else output
        weight_OIKL = self.weight_IOKL.transpose(0, 1)
        weights = write_weights(writer, source, output, (weight_OIKL, self.bias_O), order=(0, 2, 3, 1))
        size = writer.constant(f"{output.name}:size", np.array(shape, np.int32))
        writer.add(
            "TRANSPOSE_CONV",
            3,
            [size, weights[0], source.index, weights[1]],
            whole,
            "TransposeConvOptions",
            padding=writer.enumerated("Padding", "VALID"),
            strideH=self.stride[0],
            strideW=self.stride[1],
        )
        if whole is not output:
            write_slice(writer, whole, output, (0, top, left, 0), (1, 1, 1, 1))


def affine(scale_C: Tensor, shift_C: Tensor) -> Conv:
    """Return what multiplies each channel by a number and adds another.

    A convolution by channel does it with exact scales and a bias of 32 bits, in one operator; a product and a sum of
    8-bit numbers would round twice.
    """
    return Conv(scale_C[:, None, None, None], shift_C, Window((1, 1)), groups=len(scale_C))
