"""The ONNX file of a network: written, held against torch, described, and run.

Shape letters: B images, C channels, H and W rows and columns of the input, h and w of a map.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from detloom.errors import ExportError, RecipeError, reason
from detloom.export.network import Network, Preflight
from detloom_plugins.equal_maps import demand_equality, maps_of_module, rounding_of_module
from detloom_plugins.onnx_graph import NEWEST_OPSET, Numbers, onnx_model, refused_operators
from detloom_plugins.traced_operators import refusals, refused

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "PACKAGES",
    "OnnxRunner",
    "check_format",
    "demand_opset",
    "save",
    "write_checked",
]

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "onnxslim")
# Over 1 + the largest magnitude of a map: no more than rounding; float16 keeps 11 of float32's 24 bits.
TOLERANCES: Mapping[Numbers, float] = {"float32": 1e-4, "float16": 1e-2}


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
        """Return the raw maps ``[B, C, h, w]``; a file that takes one picture is run for each."""
        size = 1 if isinstance(self._input.shape[0], int) else len(images_BCHW)
        runs = [
            self._session.run(self._names, {self._input.name: images_BCHW[start : start + size].astype(self._dtype)})
            for start in range(0, len(images_BCHW), size)
        ]
        return [np.concatenate(maps).astype(np.float32) for maps in zip(*runs, strict=True)]


def demand_opset(opset: int, oldest: int) -> None:
    """Refuse an opset that nothing here writes.

    Raises:
        RecipeError: It is none.
    """
    if not oldest <= opset <= NEWEST_OPSET:
        raise RecipeError(f"opset must be from {oldest} to {NEWEST_OPSET}, got {opset}")


def check_format(network: Network, opset: int) -> Preflight:
    """Return the operators that ONNX cannot express; where the others run is for what reads the file to say."""
    return Preflight(
        target=f"ONNX, opset {opset}",
        source=f"torch.onnx {torch.__version__}, asked to convert the network; ONNX is a format and no chip, so where "
        "an operator runs is not told",
        verdicts=refusals(network, refused_operators(network, opset), by=f"torch.onnx, opset {opset},"),
    )


def write_checked(network: Network, path: Path, *, numbers: Numbers, opset: int, dynamic_batch: bool) -> str:
    """Write the file with real numbers, and return a sentence that says how far it is from torch.

    Raises:
        ExportError: An operator has no conversion, named with its module; or the file gives something else.
    """
    try:
        model = onnx_model(network, numbers=numbers, opset=opset, dynamic_batch=dynamic_batch)
    except torch.onnx.OnnxExporterError as error:
        verdicts = check_format(network, opset).verdicts
        if not verdicts:
            raise ExportError(f"torch.onnx failed: {reason(error)}\n  Nothing was written.") from error
        raise refused(verdicts) from error
    save(model, path)
    example_BCHW = network.example_BCHW(2 if dynamic_batch else 1)
    return demand_equality(
        OnnxRunner(path, network.map_names)(example_BCHW.numpy()),
        maps_of_module(network, example_BCHW),
        network.map_names,
        tolerance=TOLERANCES[numbers],
        rounding=lambda: rounding_of_module(network, example_BCHW),
        where=f"{path.name}, run by onnxruntime",
    )


def save(model: "ModelProto", path: Path) -> None:
    """Write a model with its weights inside: vendors' tools look for no second file."""
    import onnx

    onnx.save(model, path, save_as_external_data=False)
