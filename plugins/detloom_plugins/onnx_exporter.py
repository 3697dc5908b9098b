"""The network as an ONNX file, the format that vendors' tools take.

Source: the ONNX specification, opsets 11 to 23 (onnx.ai/onnx/operators).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.extras import missing_packages
from detloom_plugins.half_range import demand_half_range
from detloom_plugins.onnx_file import (
    PACKAGES,
    OnnxRunner,
    check_format,
    demand_opset,
    write_checked,
)
from detloom_plugins.onnx_graph import OLDEST_OPSET, Numbers
from detloom_plugins.real_tensors import described_input, described_outputs

__all__ = ["OnnxExporter"]

FILE = "model.onnx"


class OnnxExporter(Exporter):
    """Write one ONNX file with an output for each raw map, held against torch by onnxruntime.

    Args:
        numbers: Of weights, input and outputs. onnxruntime computes float16 in float32 where the processor has no
            arithmetic of it, so that a device may differ from what is measured here.
        opset: Version of ONNX's operators. From 18 on torch's newer exporter writes it; vendors' tools that want an
            older one, 12 often, are given it by the older exporter, which traces.
        dynamic_batch: Let a run take any number of pictures; else it takes one.
    """

    packages = PACKAGES

    def __init__(self, *, numbers: Numbers = "float32", opset: int = 18, dynamic_batch: bool = False) -> None:
        demand_opset(opset, OLDEST_OPSET)
        self.numbers: Numbers = numbers
        self.opset = opset
        self.dynamic_batch = dynamic_batch

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_packages("the exporter 'onnx'", cls.packages, "onnx")

    def check(self, network: Network) -> Preflight:
        """Return the operators that ONNX cannot express; a format is no chip, so nothing else is told."""
        return check_format(network, self.opset)

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write the file, and hold its outputs against torch's."""
        del calibration_NCHW
        if self.numbers == "float16":
            demand_half_range(network)
        note = write_checked(
            network, folder / FILE, numbers=self.numbers, opset=self.opset, dynamic_batch=self.dynamic_batch
        )
        notes = (note, "A run takes any number of pictures.") if self.dynamic_batch else (note,)
        return Exported(
            (FILE,), described_input(network, self.numbers), described_outputs(network, self.numbers), notes=notes
        )

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        """Return the file, run by onnxruntime."""
        return {"float": OnnxRunner(folder / FILE, [each["name"] for each in exported.tensors])}


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("onnx", OnnxExporter)
