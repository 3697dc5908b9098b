"""From a network to the bytes of LiteRT files, and to what each operator in them belongs to."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detloom.data.letterbox import FILL
from detloom.errors import ExportError
from detloom.export.network import Network
from detloom.host_spec import InputSpec, TensorSpec
from detloom_plugins.equal_maps import worst_decibels
from detloom_plugins.litert.convolution import Conv, TransposedConv
from detloom_plugins.litert.graph import Graph, Node, Scale
from detloom_plugins.litert.ranges import EVERYTHING, Calibration, observe
from detloom_plugins.litert.reading import Refusal, read
from detloom_plugins.litert.runners import make_runner
from detloom_plugins.litert.scales import choose_scales, separate
from detloom_plugins.litert.simplify import simplify
from detloom_plugins.litert.writer import Operator, Value, Writer, channels_last

__all__ = ["Converted", "convert_to_float", "convert_to_int8", "graph_of", "refused"]

INPUT = "images"
# Of 1 + magnitude. Networks that have learned nothing amplify rounding; where float32 leaves doubts, float64 decides.
TOLERANCES: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-7}
# Pictures on which ranges are judged; more would hardly change which is best.
MOST_JUDGED = 8


@dataclass(frozen=True, slots=True)
class Converted:
    """A LiteRT file.

    Attributes:
        data: Its bytes.
        input: Its input.
        tensors: Its outputs, in the order of the network's maps.
        operators: In the order in which they run, each with the module that it belongs to.
        precise: Paths of modules that compute in float32 among 8-bit ones.
        note: How the ranges of numbers were found, as a sentence; empty where there are none.
    """

    data: bytes
    input: InputSpec
    tensors: tuple[TensorSpec, ...]
    operators: tuple[Operator, ...]
    precise: tuple[str, ...] = ()
    note: str = ""


def graph_of(network: Network) -> Graph:
    """Return the network's graph as it will be written.

    Raises:
        ExportError: Operators cannot be written, or torch cannot trace the network; or what was read does not compute
            what the network does, which would be a mistake of the reading.
    """
    reading = read(network)
    if reading.refusals:
        raise ExportError(refused(reading.refusals))
    example_BCHW = network.example_BCHW()
    shapes = {name: tuple(value.shape) for name, value in reading.graph.values(example_BCHW)}
    graph = simplify(reading.graph, shapes)
    _demand_equality(network, graph)
    return graph


def convert_to_float(network: Network, graph: Graph) -> Converted:
    """Return the file that computes a network's graph in float32."""
    return _Emission(network, graph, {}, set(graph.nodes)).converted()


def convert_to_int8(
    network: Network, graph: Graph, pictures_NCHW: Tensor, *, calibration: Calibration, percentile: float
) -> Converted:
    """Return the file that computes a network's graph in 8 bits, and its precise modules in float32.

    Args:
        network: What the graph was read from.
        graph: As ``graph_of`` returns it.
        pictures_NCHW: To observe ranges on, RGB in [0, 1].
        calibration: How the ranges are found, see ``ranges.observe``; of several those are kept whose file is nearest
            to real numbers.
        percentile: See the same.

    Raises:
        ExportError: A precise module is none of the network's.
    """
    floats = _precise_nodes(network, graph)
    separated = separate(graph, floats)
    made = {
        kept: _Emission(network, separated, choose_scales(separated, ranges, floats), floats).converted()
        for kept, ranges in observe(separated, pictures_NCHW, calibration=calibration, percentile=percentile).items()
    }
    return _nearest(made, separated, pictures_NCHW)


def refused(refusals: Collection[Refusal]) -> str:
    """Return a message that names every operator that cannot be written, with its module."""
    lines = [f"{each.module or 'the detector'}: {each.operator}: {each.reason}; {each.remedy}" for each in refusals]
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join((f"{len(lines)} operators cannot be written as LiteRT:", *lines))


def _demand_equality(network: Network, graph: Graph) -> None:
    differences: list[float] = []
    for dtype, tolerance in TOLERANCES.items():
        example_BCHW = network.example_BCHW().to(dtype)
        with torch.no_grad():
            expected = copy.deepcopy(network.module).to(dtype)(example_BCHW)
        found = graph.run(example_BCHW)
        differences = [
            float(((one - other).abs() / (1 + one.abs())).max()) for one, other in zip(expected, found, strict=True)
        ]
        if all(each <= tolerance for each in differences):
            return
    name, worst = max(zip(network.map_names, differences, strict=True), key=lambda each: each[1])
    raise ExportError(
        f"output {name}: the graph as read for LiteRT differs from the network by {worst:.3g} of 1 + magnitude. "
        "Nothing was written; this is a mistake of the exporter, please report it with the recipe"
    )


def _nearest(made: Mapping[float, Converted], graph: Graph, pictures_NCHW: Tensor) -> Converted:
    """Return the file whose worst map is nearest to real numbers on some of the pictures, and say so in its note."""
    spread_NCHW = pictures_NCHW[:: -(-len(pictures_NCHW) // MOST_JUDGED)]
    wanted = [each.numpy() for each in graph.run(spread_NCHW)]
    decibels = {
        kept: worst_decibels(make_runner(converted.data, converted.tensors)(spread_NCHW.numpy()), wanted)
        for kept, converted in made.items()
    }
    best = max(decibels, key=lambda kept: decibels[kept])
    said = {kept: "their extremes" if kept == EVERYTHING else f"percentile {kept:g}" for kept in made}
    others = "".join(f"; {said[kept]} would give {decibels[kept]:.1f} dB" for kept in made if kept != best)
    note = (
        f"Ranges of numbers are {said[best]} on {len(pictures_NCHW)} pictures: the worst map has "
        f"{decibels[best]:.1f} dB of signal to noise on {len(spread_NCHW)} of them{others}"
    )
    return replace(made[best], note=note)


def _precise_nodes(network: Network, graph: Graph) -> set[str]:
    """Return the nodes inside the modules that need more than 8 bits."""
    found: set[str] = set()
    for path in network.precise:
        inside = {name for name, node in graph.nodes.items() if f"{node.path}.".startswith(f"{path}.")}
        if not inside:
            known = [node.path for node in graph.nodes.values() if isinstance(node.operation, (Conv, TransposedConv))]
            raise ExportError(
                f"no operator belongs to the module {path!r}, which is to be precise. Convolutions are: "
                f"{', '.join(known[:5])}, ..."
            )
        found |= inside
    return found


class _Emission:
    """Writes one graph; each value exists in 8 bits, in float32, or in both where both are read."""

    def __init__(self, network: Network, graph: Graph, scales: Mapping[str, Scale], floats: Collection[str]) -> None:
        self._network, self._graph = network, graph
        self._scales, self._floats = scales, floats
        self._writer = Writer()
        self._written: dict[tuple[str, bool], Value] = {}
        example_BCHW = network.example_BCHW()
        self._shapes = {name: channels_last(value.shape) for name, value in graph.values(example_BCHW)}
        self._labels = dict(zip(graph.outputs, network.map_names, strict=True))

    def converted(self) -> Converted:
        """Return the file."""
        picture = self._new(self._graph.picture, INPUT, is_float=not self._scales)
        for node in self._graph.nodes.values():
            self._write(node)
        outputs = [self._value(name, is_float=name in self._floats) for name in self._graph.outputs]
        data = self._writer.finish([picture], outputs)
        _, height, width, _ = picture.shape_BHWC
        spec: InputSpec = {
            "name": INPUT,
            "layout": "NHWC",
            "height": height,
            "width": width,
            "dtype": "float32" if picture.scale is None else "int8",
            "scale": None if picture.scale is None else picture.scale.scale,
            "zero_point": 0 if picture.scale is None else picture.scale.zero_point,
            "fill": FILL,
        }
        operators = tuple(self._writer.operators)
        return Converted(
            data, spec, tuple(map(_spec, outputs)), operators, self._network.precise if self._scales else ()
        )

    def _write(self, node: Node) -> None:
        is_float = node.name in self._floats
        self._writer.module = node.path
        inputs = [self._value(name, is_float=is_float) for name in node.inputs]
        node.operation.write(self._writer, inputs, self._new(node.name, self._label(node), is_float=is_float))

    def _value(self, name: str, *, is_float: bool) -> Value:
        """Return a value in the type that is asked for, converted once where it is computed in the other."""
        if (name, is_float) not in self._written:
            source = self._written[name, not is_float]
            made = self._new(name, f"{source.name}:{'real' if is_float else 'int8'}", is_float=is_float)
            kind, options = ("DEQUANTIZE", "DequantizeOptions") if is_float else ("QUANTIZE", "QuantizeOptions")
            self._writer.add(kind, 2 if is_float else 1, [source.index], made, options)
        return self._written[name, is_float]

    def _new(self, name: str, label: str, *, is_float: bool) -> Value:
        value = self._writer.value(label, self._shapes[name], None if is_float else self._scales[name])
        self._written[name, is_float] = value
        return value

    def _label(self, node: Node) -> str:
        """Return the name of an output's map, else the module's path, with the part of it."""
        name, _, part = node.name.partition(".")
        return self._labels.get(node.name) or ":".join(filter(None, (node.path or name, part)))


def _spec(value: Value) -> TensorSpec:
    return {
        "name": value.name,
        "layout": "NHWC",
        "shape": list(value.shape_BHWC),
        "dtype": "float32" if value.scale is None else "int8",
        "scale": None if value.scale is None else value.scale.scale,
        "zero_point": 0 if value.scale is None else value.scale.zero_point,
    }
