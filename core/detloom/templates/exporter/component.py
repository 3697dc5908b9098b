"""A made-up accelerator: its program is a list of instructions, its weights are plain numbers.

It stands for a chip of your own: the network is traced, each operator is looked up in a table of what the chip knows,
and an interpreter in numpy plays the chip. What the table does not hold is refused, with the module that asks for it.

Reference: the operators are those of torch's exported graphs, https://pytorch.org/docs/stable/export.html.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from detloom import hookimpl
from detloom.errors import ExportError, RecipeError
from detloom.export.network import Exported, Network, Placement, Preflight, Runner, Verdict
from detloom.host_spec import TensorSpec
from detloom.interfaces import Exporter

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1

Array = NDArray[np.float32]
PROGRAM, WEIGHTS = "model.json", "model.weights"
FILL = 114


class NewComponent(Exporter):
    """Write instructions and weights for the accelerator.

    Args:
        largest_kernel: Side of the largest window that the chip computes; larger ones fall to the CPU beside it.
    """

    targets = MappingProxyType({"new-component-nano": {"largest_kernel": 3}})

    def __init__(self, *, largest_kernel: int = 7) -> None:
        if largest_kernel < 1:
            raise RecipeError(f"largest_kernel must be at least 1, got {largest_kernel}")
        self.largest_kernel = largest_kernel

    @classmethod
    def missing(cls) -> str | None:
        """Return nothing: torch and numpy are enough. A vendor's compiler would be looked for here."""
        return None

    def check(self, network: Network) -> Preflight:
        """Return where each operator runs, by the table below."""
        return self._preflight(_traced(network))

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:  # noqa: ARG002 - real numbers need no calibration
        """Write the program and the weights."""
        traced = _traced(network)
        preflight = self._preflight(traced)
        for refused in preflight.at(Placement.REFUSED):
            raise ExportError(f"{refused.module}: {refused.operator}: {refused.reason}; {refused.remedy}")
        instructions, weights = _program(traced)
        (folder / PROGRAM).write_text(json.dumps(instructions, indent=1), encoding="utf-8")
        (folder / WEIGHTS).write_bytes(b"".join(each.astype("<f4").tobytes() for each in weights))
        height, width = network.image_size
        with torch.no_grad():
            maps = network.module(network.example_BCHW())
        return Exported(
            files=(PROGRAM, WEIGHTS),
            input={
                "name": "images",
                "layout": "NCHW",
                "height": height,
                "width": width,
                "dtype": "float32",
                "scale": None,
                "zero_point": 0,
                "fill": FILL,
            },
            tensors=tuple(map(_tensor, network.map_names, maps)),
            preflight=preflight,
        )

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:  # noqa: ARG002 - the files say all
        """Return the interpreter, which reads the files that a device would be given."""
        program = json.loads((folder / PROGRAM).read_text(encoding="utf-8"))
        weights = np.frombuffer((folder / WEIGHTS).read_bytes(), "<f4").astype(np.float32)
        return {"float": lambda images_BCHW: _play(program, weights, images_BCHW)}

    def _preflight(self, traced: ExportedProgram) -> Preflight:
        verdicts = [self._verdict(node) for node in traced.graph.nodes if node.op == "call_function"]
        return Preflight("new-component", "the table of instructions in this plugin", tuple(verdicts))

    def _verdict(self, node: Node) -> Verdict:
        module, operator = _module(node), _operator(node)
        if reason := _refusal(node):
            return Verdict(module, operator, Placement.REFUSED, reason, "take another layer there")
        side = max(_window(node), default=1)
        if side > self.largest_kernel:
            reason = f"its window is {side} wide, {self.largest_kernel} is the most"
            return Verdict(module, operator, Placement.CPU, reason, "take several small windows in a row")
        return Verdict(module, operator, Placement.NPU)


def _traced(network: Network) -> ExportedProgram:
    # Decompositions, even none of them, leave no operator that works in place.
    traced: ExportedProgram = torch.export.export(network.module, (network.example_BCHW(),)).run_decompositions({})
    return traced


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _module(node: Node) -> str:
    """Return the path of the module that an operator belongs to, the innermost."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def _refusal(node: Node) -> str:
    """Return why the chip cannot compute an operator, or nothing; what it half knows it would compute wrong."""
    operator = _operator(node)
    if operator not in PLAYED:
        return "the chip does not know it"
    most = len(inspect.signature(PLAYED[operator]).parameters)
    if len(node.args) > most or node.kwargs or any(isinstance(each, str) for each in node.args):
        return "the chip does not know it with these arguments, as groups or dilation"
    if operator == "upsample_nearest2d":
        factors = node.args[2] if len(node.args) > 2 else None
        if not isinstance(factors, Sequence) or any(not isinstance(each, float) or each % 1 for each in factors):
            return "the chip enlarges by whole factors alone"
    return ""


def _window(node: Node) -> Sequence[int]:
    if _operator(node) == "conv2d":
        kernel = node.args[1]
        return tuple(kernel.meta["val"].shape[2:]) if isinstance(kernel, Node) else ()
    return _pair(node.args[1]) if _operator(node) == "max_pool2d" else ()


def _program(traced: ExportedProgram) -> tuple[list[dict[str, Any]], list[Array]]:
    """Return the instructions, the outputs last, and the weights in the order in which they lie in the file."""
    parameters = {**traced.graph_signature.inputs_to_parameters, **traced.graph_signature.inputs_to_buffers}
    state, weights, start = traced.state_dict, [], 0
    instructions: list[dict[str, Any]] = []
    for node in traced.graph.nodes:
        if node.op == "placeholder" and node.name in parameters:
            values = state[parameters[node.name]].detach().numpy()
            weights.append(values)
            instructions.append({"do": "weight", "to": node.name, "args": [start, list(values.shape)]})
            start += values.size
        elif node.op == "placeholder":
            instructions.append({"do": "input", "to": node.name, "args": []})
        elif node.op == "call_function":
            instructions.append({"do": _operator(node), "to": node.name, "args": _plain(node.args)})
        elif node.op == "output":
            instructions.append({"do": "output", "to": "", "args": _plain(node.args[0])})
    return instructions, weights


def _plain(value: Any) -> Any:
    """Return arguments as JSON data: a result is named by a text, a number is itself."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.name if isinstance(value, Node) else value


def _tensor(name: str, raw_BCHW: Tensor) -> TensorSpec:
    shape = list(raw_BCHW.shape)
    return {"name": name, "layout": "NCHW", "shape": shape, "dtype": "float32", "scale": None, "zero_point": 0}


def _play(program: list[dict[str, Any]], weights: Array, images_BCHW: Array) -> list[Array]:
    """Run a program: what the chip would do, one instruction after the other."""
    results: dict[str, Any] = {}
    for each in program:
        arguments = _looked_up(each["args"], results)
        if each["do"] == "output":
            return list(arguments)
        if each["do"] == "input":
            results[each["to"]] = images_BCHW
        elif each["do"] == "weight":
            start, shape = arguments
            results[each["to"]] = weights[start : start + int(np.prod(shape))].reshape(shape)
        else:
            results[each["to"]] = PLAYED[each["do"]](*arguments)
    raise ExportError("the program has no output; export it again")


def _looked_up(value: Any, results: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_looked_up(each, results) for each in value]
    return results[value] if isinstance(value, str) else value


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, list | tuple) else [value]
    return int(first), int(rest[0] if rest else first)


def _windows(x_BCHW: Array, sides: Any, stride: Any, padding: Any, fill: float) -> NDArray[np.float32]:
    """Return ``[B, C, rows, columns, height, width]``: what each output looks at."""
    (rows, columns), (down, right) = _pair(padding), _pair(stride)
    padded = np.pad(x_BCHW, ((0, 0), (0, 0), (rows, rows), (columns, columns)), constant_values=fill)
    return sliding_window_view(padded, _pair(sides), (2, 3))[:, :, ::down, ::right]


def _conv2d(x_BCHW: Array, weight: Array, bias: Array | None = None, stride: Any = 1, padding: Any = 0) -> Array:
    windows = _windows(x_BCHW, weight.shape[2:], stride, padding, 0.0)
    result = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)
    return np.asarray(result if bias is None else result + bias[:, None, None], np.float32)


def _max_pool2d(x_BCHW: Array, sides: Any, stride: Any = (), padding: Any = 0) -> Array:
    return np.asarray(_windows(x_BCHW, sides, stride or sides, padding, -np.inf).max((-2, -1)))


def _enlarge(x_BCHW: Array, _: None, factors: Sequence[float]) -> Array:
    down, right = (round(each) for each in factors)
    return np.asarray(x_BCHW.repeat(down, 2).repeat(right, 3))


# What the chip knows: torch's name of an operator, and what plays it.
PLAYED: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "cat": lambda parts, axis=0: np.concatenate(parts, axis),
        "conv2d": _conv2d,
        "leaky_relu": lambda x, slope=0.01: np.where(x < 0, x * np.float32(slope), x),
        "max_pool2d": _max_pool2d,
        "relu": lambda x: np.maximum(x, 0),
        "upsample_nearest2d": _enlarge,
    }
)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter under the name that `detloom export --target` uses."""
    register("new-component", NewComponent)
