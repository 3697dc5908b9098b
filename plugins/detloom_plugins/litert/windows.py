"""Windows that slide: LiteRT knows two ways to pad them, torch knows any.

SAME pads as little as gives ``ceil(size / stride)`` places, the odd row at the end; VALID pads nothing. A convolution
of stride 2 that pads one row on both sides is neither on an even size, which is the usual mistake of converters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from detloom_plugins.litert.graph import Scale
from detloom_plugins.litert.writer import Value, Writer

__all__ = ["NO_PADS", "Pads", "Window", "padded", "write_pad"]


class Pads(NamedTuple):
    """Rows and columns around a map."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


NO_PADS = Pads()


@dataclass(frozen=True, slots=True)
class Window:
    """A window; pairs are of height and width.

    Attributes:
        kernel: Its size.
        stride: From one place to the next.
        pads: Around the map.
        dilation: From one of its cells to the next.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: Pads = NO_PADS
    dilation: tuple[int, int] = (1, 1)

    def padding(self, size: Sequence[int], places: Sequence[int]) -> tuple[Literal["SAME", "VALID"], Pads]:
        """Return how LiteRT calls the padding, and what must be padded before.

        Args:
            size: Height and width of the map.
            places: Height and width of the result.
        """
        befores = (self.pads.top, self.pads.left)
        reaches = [
            (count - 1) * stride + (kernel - 1) * dilation + 1 - length
            for length, count, kernel, stride, dilation in zip(
                size, places, self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        if all(before == 0 and reach <= 0 for before, reach in zip(befores, reaches, strict=True)):
            return "VALID", NO_PADS
        if all(
            count == -(-length // stride) and before == max(reach, 0) // 2
            for length, count, stride, before, reach in zip(size, places, self.stride, befores, reaches, strict=True)
        ):
            return "SAME", NO_PADS
        below, right = (max(reach - before, 0) for before, reach in zip(befores, reaches, strict=True))
        return "VALID", Pads(self.pads.left, right, self.pads.top, below)


def padded(writer: Writer, source: Value, label: str, pads: Pads, *, number: float = 0.0) -> Value:
    """Return a value, named after a label, with rows and columns around it; itself where there are none."""
    if not any(pads):
        return source
    batch, height, width, channels = source.shape_BHWC
    shape = (batch, height + pads.top + pads.bottom, width + pads.left + pads.right, channels)
    result = writer.value(f"{label}:pad", shape, source.scale)
    write_pad(writer, source, result, pads, number=number)
    return result


def write_pad(writer: Writer, source: Value, result: Value, pads: Pads, *, number: float = 0.0) -> None:
    """Add the operator that pads with a number; minus infinity stands for the least that the type has."""
    import numpy as np

    amounts = np.array([[0, 0], [pads.top, pads.bottom], [pads.left, pads.right], [0, 0]], np.int32)
    inputs = [source.index, writer.constant(f"{result.name}:amounts", amounts)]
    if number == 0:
        writer.add("PAD", 1 if source.scale is None else 2, inputs, result, "PadOptions")
        return
    if source.scale is None:
        filling = writer.constant(f"{result.name}:number", np.array([max(number, -3e38)], np.float32))
    else:
        filling = writer.constant(
            f"{result.name}:number",
            np.array([_quantised(number, source.scale)], np.int8),
            np.array([source.scale.scale], np.float32),
            zero_point=source.scale.zero_point,
        )
    writer.add("PADV2", 1 if source.scale is None else 2, [*inputs, filling], result, "PadV2Options")


def _quantised(number: float, scale: Scale) -> int:
    return int(min(max(round(max(number, -1e9) / scale.scale) + scale.zero_point, -128), 127))
