"""What is done to each number by itself, or to two maps number by number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from detloom_plugins.litert.convolution import FUSED, Fusable, clamped
from detloom_plugins.litert.graph import Operation, Scale
from detloom_plugins.litert.writer import Value, Writer

__all__ = ["Activation", "Combine", "Extreme", "LeakyRelu", "Requantise", "Sigmoid", "Tanh"]


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """An activation without settings."""

    kind: Literal["RELU", "RELU6", "HARD_SWISH", "GELU"]

    @property
    def shares_scale(self) -> bool:
        """Return whether it is the one that LiteRT for Microcontrollers only clamps by."""
        return self.kind == "RELU6"

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the activated map."""
        return _MEANINGS[self.kind](inputs[0])

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        (source,) = inputs
        version = 1 if source.scale is None or self.kind not in ("RELU", "RELU6", "GELU") else 2
        options = {"HARD_SWISH": "HardSwishOptions", "GELU": "GeluOptions"}.get(self.kind, "")
        writer.add(self.kind, version, [source.index], output, options)


_MEANINGS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "RELU": functional.relu,
        "RELU6": functional.relu6,
        "HARD_SWISH": functional.hardswish,
        "GELU": functional.gelu,
    }
)


@dataclass(frozen=True, slots=True)
class LeakyRelu(Operation):
    """Negative numbers by a slope."""

    slope: float

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the activated map."""
        return functional.leaky_relu(inputs[0], self.slope)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        (source,) = inputs
        version = 1 if source.scale is None else 2
        writer.add("LEAKY_RELU", version, [source.index], output, "LeakyReluOptions", alpha=self.slope)


@dataclass(frozen=True, slots=True)
class Sigmoid(Operation):
    """The logistic function."""

    demanded: ClassVar[Scale | None] = Scale(1 / 256, -128)

    def run(self, *inputs: Tensor) -> Tensor:
        """Return numbers from 0 to 1."""
        return inputs[0].sigmoid()

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        (source,) = inputs
        writer.add("LOGISTIC", 1 if source.scale is None else 2, [source.index], output)


@dataclass(frozen=True, slots=True)
class Tanh(Operation):
    """The hyperbolic tangent."""

    demanded: ClassVar[Scale | None] = Scale(1 / 128, 0)

    def run(self, *inputs: Tensor) -> Tensor:
        """Return numbers from -1 to 1."""
        return inputs[0].tanh()

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        (source,) = inputs
        writer.add("TANH", 1 if source.scale is None else 2, [source.index], output)


@dataclass(frozen=True, slots=True)
class Combine(Operation):
    """The sum, difference or product of two maps; one may have a single row and column, or a single channel.

    Attributes:
        kind: Which.
        activation: Carried by the operator.
    """

    kind: Literal["ADD", "SUB", "MUL"]
    activation: Fusable = "none"

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the combined map."""
        a_BCHW, b_BCHW = inputs
        match self.kind:
            case "ADD":
                return clamped(a_BCHW + b_BCHW, self.activation)
            case "SUB":
                return clamped(a_BCHW - b_BCHW, self.activation)
        return clamped(a_BCHW * b_BCHW, self.activation)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        version = 1 if output.scale is None else 2
        options = f"{self.kind.capitalize()}Options"
        carried = writer.enumerated("ActivationFunctionType", FUSED[self.activation])
        indices = [each.index for each in inputs]
        writer.add(self.kind, version, indices, output, options, fusedActivationFunction=carried)


@dataclass(frozen=True, slots=True)
class Extreme(Operation):
    """The larger or the smaller of two maps, number by number."""

    kind: Literal["MAXIMUM", "MINIMUM"]

    @property
    def shares_scale(self) -> bool:
        """Return True."""
        return True

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the extremes."""
        return torch.maximum(*inputs) if self.kind == "MAXIMUM" else torch.minimum(*inputs)

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator."""
        version = 1 if output.scale is None else 2
        writer.add(self.kind, version, [each.index for each in inputs], output, "MaximumMinimumOptions")


@dataclass(frozen=True, slots=True)
class Requantise(Operation):
    """The same numbers with another scale."""

    def run(self, *inputs: Tensor) -> Tensor:
        """Return the map as it is."""
        return inputs[0]

    def write(self, writer: Writer, inputs: Sequence[Value], output: Value) -> None:
        """Add the operator; real numbers never come here, they have no scale to change."""
        (source,) = inputs
        writer.add("QUANTIZE", 1 if source.scale is None else 2, [source.index], output, "QuantizeOptions")
