"""The maximum and the mean of windows, and the mean of whole maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from detloom_plugins.litert.graph import Operation
from detloom_plugins.litert.windows import Window, padded
from detloom_plugins.litert.writer import Value, Writer

__all__ = ["AveragePool", "MaxPool", "Mean"]


@dataclass(frozen=True, slots=True)
class MaxPool(Operation):
    """The maximum of each window; what lies outside of the map never is one.

    Attributes:
        window: How it slides.
        reaches_over: Whether a last window that does not fit on the map is taken all the same.
        is_never_negative: Whether the map is known to hold no negative numbers, so that zeros may be put around it.
    """

    window: Window
    reaches_over: bool = False
    is_never_negative: bool = False

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the maxima."""
        window = self.window
        pads = (window.pads.top, window.pads.left)
        return functional.max_pool2d(
            inputs[0], window.kernel, window.stride, pads, window.dilation, ceil_mode=self.reaches_over
        )

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator, whose own padding counts for nothing."""
        number = 0.0 if self.is_never_negative else float("-inf")
        _write_pool(writer, "MAX_POOL_2D", self.window, inputs[0], output, number=number)


@dataclass(frozen=True, slots=True)
class AveragePool(Operation):
    """The mean of each window on the map alone.

    Attributes:
        window: How it slides; what lies outside of the map is not counted.
        reaches_over: Whether a last window that does not fit on the map is taken all the same.
    """

    window: Window
    reaches_over: bool = False

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the means."""
        window = self.window
        return functional.avg_pool2d(
            inputs[0],
            window.kernel,
            window.stride,
            (window.pads.top, window.pads.left),
            ceil_mode=self.reaches_over,
            count_include_pad=False,
        )

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        _write_pool(writer, "AVERAGE_POOL_2D", self.window, inputs[0], output)


@dataclass(frozen=True, slots=True)
class Mean(Operation):
    """The mean of each channel."""

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the means, ``[B, C, 1, 1]``."""
        return inputs[0].mean((2, 3), keepdim=True)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        axes = writer.constant(f"{output.name}:axes", np.array([1, 2], np.int32))
        version = 1 if output.scale is None else 2
        writer.add("MEAN", version, [inputs[0].index, axes], output, "ReducerOptions", keepDims=True)


def _write_pool(
    writer: Writer, kind: str, window: Window, source: Value, output: Value, *, number: float = 0.0
) -> None:
    padding, pads = window.padding(source.shape_BHWC[1:3], output.shape_BHWC[1:3])
    writer.add(
        kind,
        1 if output.scale is None else 2,
        [padded(writer, source, output.name, pads, number=number).index],
        output,
        "Pool2DOptions",
        padding=writer.enumerated("Padding", padding),
        strideH=window.stride[0],
        strideW=window.stride[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )
