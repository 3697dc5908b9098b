"""Writes LiteRT's flatbuffer: one subgraph, weights inside the file, the same bytes each time.

Weights lie in the flatbuffer itself. Where they lie behind it, LiteRT reads them, but LiteRT for Microcontrollers takes
what it finds in their place for weights, and says nothing.

Source: the schema of LiteRT models, version 3, as the package ai-edge-litert carries it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detloom_plugins.litert.graph import Scale

__all__ = ["Operator", "Value", "Writer", "channels_last"]

SCHEMA_VERSION = 3
IDENTIFIER = b"TFL3"
# The largest operator that the schema's first, 8-bit field can name.
OLD_LIMIT = 127


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape ``[B, C, H, W]`` as the file has it."""
    batch, channels, height, width = shape
    return batch, height, width, channels


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of the file.

    Attributes:
        name: Of its kind, as ``CONV_2D``.
        module: Path of the module in the detector; empty for none.
        output: Name of the tensor that it writes.
    """

    name: str
    module: str
    output: str


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the file.

    Attributes:
        index: Its number.
        name: As compilers and profilers show it.
        shape_BHWC: With a batch of one.
        scale: What its 8-bit numbers mean; None for float32.
    """

    index: int
    name: str
    shape_BHWC: tuple[int, ...]
    scale: Scale | None


class Writer:
    """Collects tensors and operators, then writes them.

    Attributes:
        operators: What was added.
    """

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.module = ""
        self._schema: Any = import_module("ai_edge_litert.schema_py_generated")
        self._model = self._schema.ModelT()
        self._graph = self._schema.SubGraphT()
        self._model.version = SCHEMA_VERSION
        self._model.description = "detloom"
        self._model.subgraphs = [self._graph]
        # Buffer 0 is the empty one, by the schema.
        self._model.buffers = [self._schema.BufferT()]
        self._model.operatorCodes = []
        self._graph.name = "main"
        self._graph.tensors, self._graph.operators = [], []
        self._codes: dict[str, int] = {}
        self._names: set[str] = set()

    def value(self, name: str, shape_BHWC: Sequence[int], scale: Scale | None) -> Value:
        """Add a tensor that an operator computes; its name gets a number where it is taken."""
        free = self._free(name)
        tensor = self._tensor(free, shape_BHWC, "FLOAT32" if scale is None else "INT8")
        if scale is not None:
            tensor.quantization = self._quantisation([scale.scale], [scale.zero_point])
        return Value(len(self._graph.tensors) - 1, free, tuple(shape_BHWC), scale)

    def constant(
        self,
        name: str,
        numbers: NDArray[Any],
        scales: NDArray[np.float32] | None = None,
        *,
        axis: int = 0,
        zero_point: int = 0,
    ) -> int:
        """Add a tensor of fixed numbers and return its index.

        Args:
            name: As compilers show it.
            numbers: ``int8``, ``int32`` or ``float32``.
            scales: What the numbers mean, along an axis; None for numbers that mean themselves.
            axis: That the scales belong to.
            zero_point: Of all of them.
        """
        tensor = self._tensor(self._free(name), numbers.shape, numbers.dtype.name.upper())
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(numbers).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor.buffer = len(self._model.buffers) - 1
        if scales is not None:
            tensor.quantization = self._quantisation(scales, [zero_point] * len(scales))
            tensor.quantization.quantizedDimension = axis
        return len(self._graph.tensors) - 1

    def add(
        self, name: str, version: int, inputs: Sequence[int], output: Value, kind: str = "", **options: float
    ) -> None:
        """Add an operator.

        Args:
            name: Of its kind, as ``CONV_2D``.
            version: That defines what it takes; the least that defines what is written.
            inputs: Indices of tensors.
            output: What it computes.
            kind: Of its options in the schema, as ``Conv2DOptions``.
            options: By their names in the schema.
        """
        schema = self._schema
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(name, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([output.index], np.int32)
        if kind:
            table = getattr(schema, f"{kind}T")()
            for key, option in options.items():
                setattr(table, key, option)
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = table
        self._graph.operators.append(operator)
        self.operators.append(Operator(name, self.module, output.name))

    def enumerated(self, kind: str, name: str) -> int:
        """Return a number of the schema, as of ``Padding`` and ``SAME``."""
        return int(getattr(getattr(self._schema, kind), name))

    def finish(self, inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
        """Return the file."""
        import flatbuffers

        self._graph.inputs = np.array([each.index for each in inputs], np.int32)
        self._graph.outputs = np.array([each.index for each in outputs], np.int32)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _free(self, name: str) -> str:
        free, number = name, 1
        while free in self._names:
            number += 1
            free = f"{name}:{number}"
        self._names.add(free)
        return free

    def _tensor(self, name: str, shape: Sequence[int], numbers: str) -> Any:
        tensor = self._schema.TensorT()
        tensor.name = name
        tensor.shape = np.array(shape, np.int32)
        tensor.type = getattr(self._schema.TensorType, numbers)
        tensor.buffer = 0
        self._graph.tensors.append(tensor)
        return tensor

    def _quantisation(self, scales: Sequence[float] | NDArray[np.float32], zero_points: Sequence[int]) -> Any:
        quantisation = self._schema.QuantizationParametersT()
        quantisation.scale = np.asarray(scales, np.float32)
        quantisation.zeroPoint = np.asarray(zero_points, np.int64)
        return quantisation

    def _code(self, name: str, version: int) -> int:
        key = f"{name} {version}"
        if key not in self._codes:
            code = self._schema.OperatorCodeT()
            code.builtinCode = getattr(self._schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, OLD_LIMIT)
            code.version = version
            self._model.operatorCodes.append(code)
            self._codes[key] = len(self._model.operatorCodes) - 1
        return self._codes[key]
