"""What moves numbers and does not change them, or only mixes neighbours: joining, cutting, padding, enlarging."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detloom_plugins.litert.graph import Operation
from detloom_plugins.litert.windows import Pads, write_pad
from detloom_plugins.litert.writer import Value, Writer

__all__ = ["Concat", "Pad", "ResizeBilinear", "ResizeNearest", "Slice", "write_slice"]

# Where torch's axes B, C, H, W stand in the file.
AXES = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Concat(Operation):
    """Maps joined along one of torch's axes."""

    axis: int

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the joined map."""
        return torch.cat(inputs, self.axis)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        version = 1 if output.scale is None else 2
        indices = [each.index for each in inputs]
        writer.add("CONCATENATION", version, indices, output, "ConcatenationOptions", axis=AXES[self.axis])


@dataclass(frozen=True, slots=True)
class Slice(Operation):
    """Some of the places along one of torch's axes.

    Attributes:
        axis: Which.
        start: First place.
        stop: After the last place.
        step: From one to the next.
    """

    axis: int
    start: int
    stop: int
    step: int = 1

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the part."""
        places: list[slice] = [slice(None)] * 4
        places[self.axis] = slice(self.start, self.stop, self.step)
        return inputs[0][tuple(places)]

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        begin, steps = [0, 0, 0, 0], [1, 1, 1, 1]
        begin[AXES[self.axis]], steps[AXES[self.axis]] = self.start, self.step
        write_slice(writer, inputs[0], output, begin, steps)


@dataclass(frozen=True, slots=True)
class Pad(Operation):
    """Rows and columns of one number around a map."""

    pads: Pads
    number: float = 0.0

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the padded map."""
        return functional.pad(inputs[0], list(self.pads), value=self.number)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        write_pad(writer, inputs[0], output, self.pads, number=self.number)


@dataclass(frozen=True, slots=True)
class ResizeNearest(Operation):
    """A map enlarged by whole factors of height and width, each number repeated.

    Other factors are refused when the graph is read: what torch and LiteRT repeat differs there.
    """

    factors: tuple[int, int]

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the enlarged map."""
        rows, columns = self.factors
        return inputs[0].repeat_interleave(rows, 2).repeat_interleave(columns, 3)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        size = writer.constant(f"{output.name}:size", np.array(output.shape_BHWC[1:3], np.int32))
        version = 1 if output.scale is None else 2
        indices = [inputs[0].index, size]
        writer.add("RESIZE_NEAREST_NEIGHBOR", version, indices, output, "ResizeNearestNeighborOptions")


@dataclass(frozen=True, slots=True)
class ResizeBilinear(Operation):
    """A map of another size, interpolated.

    Attributes:
        size: Height and width.
        align_corners: Whether the outermost numbers stay at the corners; else pixels are areas, as torch has it.
    """

    size: tuple[int, int]
    align_corners: bool = False

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the resized map."""
        return functional.interpolate(inputs[0], self.size, mode="bilinear", align_corners=self.align_corners)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator; its third version knows pixels as areas."""
        size = writer.constant(f"{output.name}:size", np.array(self.size, np.int32))
        writer.add(
            "RESIZE_BILINEAR",
            3,
            [inputs[0].index, size],
            output,
            "ResizeBilinearOptions",
            alignCorners=self.align_corners,
            halfPixelCenters=not self.align_corners,
        )


def write_slice(writer: Writer, source: Value, output: Value, begin: Sequence[int], steps: Sequence[int]) -> None:
    """Add the operator that takes a part as large as the output, in the file's order of axes."""
    ends = [
        min(first + count * step, length)
        for first, count, step, length in zip(begin, output.shape_BHWC, steps, source.shape_BHWC, strict=True)
    ]
    corners = [
        writer.constant(f"{output.name}:{name}", np.array(numbers, np.int32))
        for name, numbers in (("begin", begin), ("end", ends), ("steps", steps))
    ]
    version = 1 if source.scale is None else 2
    writer.add("STRIDED_SLICE", version, [source.index, *corners], output, "StridedSliceOptions")
