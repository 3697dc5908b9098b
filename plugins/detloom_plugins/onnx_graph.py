"""A network's raw maps as an ONNX graph, slimmed, its nodes named after modules.

torch has two exporters. The newer reads ``torch.export`` and writes opset 18 and later; asked for an older one it
converts, and stays at 18 without an error where it cannot. The older traces, and writes the opsets 11 to 17 themselves,
which vendors' tools want. The opset decides which is used, and the file is held to it.
"""

import ast
import copy
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from detloom.errors import ExportError, reason
from detloom.export.network import Network
from detloom_plugins.real_tensors import INPUT
from detloom_plugins.traced_operators import traced

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "Numbers", "module_of", "onnx_model", "refused_operators"]

Numbers = Literal["float32", "float16"]
OLDEST_OPSET = 11
NEWEST_OPSET = 23
FIRST_NATIVE_OPSET = 18
"""The first that the newer exporter writes itself."""
_REFUSED = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+)\.(\w+)', overload='(\w+)'")


def onnx_model(network: Network, *, numbers: Numbers, opset: int, dynamic_batch: bool) -> "ModelProto":
    """Return the network as ONNX, its nodes called ``module.path/Operator``.

    Raises:
        OnnxExporterError: torch's own, where an operator has no conversion.
        ExportError: The opset is not the one that was asked for, or the network cannot be traced.
    """
    dtype = getattr(torch, numbers)
    module = copy.deepcopy(network.module).to(dtype)
    # Of two pictures where there may be any number: torch takes a batch of one for a constant.
    example = network.example_BCHW(2 if dynamic_batch else 1).to(dtype)
    names = network.map_names
    with _quiet():
        model = (_exported if opset >= FIRST_NATIVE_OPSET else _traced)(module, example, names, opset, dynamic_batch)
        model = _slimmed(model)
    written = {each.domain: each.version for each in model.opset_import}.get("")
    if written != opset:
        raise ExportError(
            f"opset {opset} was asked for, and torch's exporter left the file at {written}. Nothing was written. "
            f"Ask for opset {written}, or for one from {OLDEST_OPSET} to {FIRST_NATIVE_OPSET - 1}."
        )
    return model


def refused_operators(network: Network, opset: int) -> list[str]:
    """Return the names of the operators that have no conversion, as far as the exporter can be led past them.

    Raises:
        ExportError: The exporter fails without naming one.
    """
    with _quiet():
        try:
            if opset < FIRST_NATIVE_OPSET:
                return _unconvertible(network.module, network.example_BCHW(), opset)
            return _refused_in_turn(traced(network.module, network.example_BCHW()), opset)
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"torch.onnx cannot convert the network to opset {opset}: {reason(error)}\n"
                "  Nothing was written. Try another opset."
            ) from error


def module_of(node: "NodeProto") -> str:
    """Return the path of the module that a node came from; empty where it came from none."""
    path, _, operator = node.name.rpartition("/")
    return path if operator else ""


def _exported(
    module: nn.Module, example: torch.Tensor, names: Sequence[str], opset: int, dynamic_batch: bool
) -> "ModelProto":
    program = traced(module, example, dynamic_batch=dynamic_batch)
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=[INPUT],
        output_names=list(names),
        external_data=False,
        verbose=False,
    )
    assert made is not None  # noqa: S101 - narrows the type
    model: ModelProto = made.model_proto
    for node in model.graph.node:
        scopes = [each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"]
        # The last scope is the operator's own.
        _rename(node, ast.literal_eval(scopes[0])[-2] if scopes else "")
    return model


def _unconvertible(module: nn.Module, example: torch.Tensor, opset: int) -> list[str]:
    return list(dict.fromkeys(torch.onnx.utils.unconvertible_ops(module, (example,), opset_version=opset)[1]))


def _refused_in_turn(program: torch.export.ExportedProgram, opset: int) -> list[str]:
    """Return each operator at which the exporter stops; those found before are given something in their place."""
    stubs: dict[Callable[..., Any], Callable[..., Any]] = {}
    while True:
        try:
            torch.onnx.export(
                program, dynamo=True, opset_version=opset, custom_translation_table=stubs, optimize=False, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            refused = _operator_in(error)
            if refused is not None and refused not in stubs:
                stubs[refused] = _stub
                continue
            # What stands in for an operator need not have its shape, and then ends the search.
            if not stubs:
                raise
        return [str(each) for each in stubs]


def _operator_in(error: BaseException) -> Callable[..., Any] | None:
    while error.__cause__ is not None:
        error = error.__cause__
    found = _REFUSED.search(str(error))
    if found is None:
        return None
    space, name, overload = found.groups()
    return cast("Callable[..., Any]", getattr(getattr(getattr(torch.ops, space), name), overload))


def _stub(*arguments: Any) -> Any:
    """Stand for an operator that has no conversion, so that the next of them is found."""
    return arguments[0]


def _traced(
    module: nn.Module, example: torch.Tensor, names: Sequence[str], opset: int, dynamic_batch: bool
) -> "ModelProto":
    import onnx

    # The exporter would print the whole graph.
    if refused := _unconvertible(module, example, opset):
        raise torch.onnx.OnnxExporterError(f"no conversion for {', '.join(refused)}")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            (example,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(names),
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)} if dynamic_batch else None,
        )
        model = onnx.load(path)
    for node in model.graph.node:
        _rename(node, _path_of(node.name))
    return model


def _path_of(scopes: str) -> str:
    """Return ``stages.0.1.conv`` for ``/stages.0/stages.0.1/conv/Conv``: parts of containers repeat their names."""
    path: list[str] = []
    for part in scopes.split("/")[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def _rename(node: "NodeProto", path: str) -> None:
    node.name = f"{path}/{node.op_type}"


def _slimmed(model: "ModelProto") -> "ModelProto":
    """Return a model without idle nodes, of unlike names, that says nothing of the machine it was written on."""
    import onnxslim

    _make_unlike(model)
    slim: ModelProto = onnxslim.slim(model)
    for each in (slim, slim.graph, *slim.graph.node, *slim.graph.value_info, *slim.graph.input, *slim.graph.output):
        # torch notes the lines of source that each node came from.
        each.doc_string = ""
        del each.metadata_props[:]
    return slim


def _make_unlike(model: "ModelProto") -> None:
    seen: dict[str, int] = {}
    for node in model.graph.node:
        count = seen[node.name] = seen.get(node.name, -1) + 1
        if count:
            node.name += f"_{count}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say of themselves, and of torch's plans, from the reader."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
