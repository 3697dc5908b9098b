"""One ONNX file of a network's raw maps: written, slimmed, its nodes named after modules, and run.

torch has two exporters. The newer reads ``torch.export`` and writes opset 18 and later; asked for an older one it
converts, and stays at 18 without an error where it cannot. The older traces, and writes the opsets 11 to 17 themselves,
which vendors' tools want. The opset decides which is used, and the file is held to it.

Shape letters: B images, C channels, H and W rows and columns of the input, h and w of a map.
"""

import ast
import copy
import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detloom.errors import ExportError, reason
from detloom.export.network import Network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto, NodeProto

__all__ = ["FIRST_NATIVE_OPSET", "INPUT", "OLDEST_OPSET", "Numbers", "OnnxRunner", "module_of", "onnx_model", "save"]

Numbers = Literal["float32", "float16"]
INPUT = "images"
OLDEST_OPSET = 11
FIRST_NATIVE_OPSET = 18
"""The first that the newer exporter writes itself."""


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


def save(model: "ModelProto", path: Path) -> None:
    """Write a model with its weights inside: vendors' tools look for no second file."""
    import onnx

    onnx.save(model, path, save_as_external_data=False)


def module_of(node: "NodeProto") -> str:
    """Return the path of the module that a node came from; empty where it came from none."""
    path, _, operator = node.name.rpartition("/")
    return path if operator else ""


class OnnxRunner:
    """Runs a file by onnxruntime on this processor, with as many threads as torch has.

    Args:
        path: The file.
        names: Its outputs, in the order in which they are wanted.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin for work make a busy machine crawl.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without it, processors that lack VNNI add products of 8 bits in 16, which overflows.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = list(names)
        (self._input,) = self._session.get_inputs()
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32

    def __call__(self, images_BCHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the raw maps ``[B, C, h, w]``; a file of one picture is run for each."""
        size = 1 if isinstance(self._input.shape[0], int) else len(images_BCHW)
        runs = [
            self._session.run(self._names, {self._input.name: images_BCHW[start : start + size].astype(self._dtype)})
            for start in range(0, len(images_BCHW), size)
        ]
        return [np.concatenate(maps).astype(np.float32) for maps in zip(*runs, strict=True)]


def _exported(
    module: nn.Module, example: torch.Tensor, names: Sequence[str], opset: int, dynamic_batch: bool
) -> "ModelProto":
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None
        )
    except Exception as error:
        raise ExportError(
            f"the network cannot be traced: {reason(error)}\n"
            "  A network that is exported has no branches that depend on values; take them out of its modules."
        ) from error
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


def _traced(
    module: nn.Module, example: torch.Tensor, names: Sequence[str], opset: int, dynamic_batch: bool
) -> "ModelProto":
    import onnx

    file = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        file,
        dynamo=False,
        opset_version=opset,
        input_names=[INPUT],
        output_names=list(names),
        dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)} if dynamic_batch else None,
    )
    model = onnx.load_from_string(file.getvalue())
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
def _quiet() -> "Iterator[Any]":
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
