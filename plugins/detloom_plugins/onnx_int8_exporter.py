"""The network as an ONNX file of 8-bit integers: weights, and pairs of QuantizeLinear and DequantizeLinear between.

Sources: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295, sections 2 and 3, for ranges by
channel and by percentile; the ONNX specification of QuantizeLinear.

Shape letters: N pictures, C channels, H and W rows and columns of the input.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.equal_maps import worst_decibels
from detloom_plugins.extras import missing_packages
from detloom_plugins.onnx_file import (
    PACKAGES,
    OnnxRunner,
    check_format,
    demand_opset,
    write_checked,
)
from detloom_plugins.onnx_graph import module_of
from detloom_plugins.real_tensors import INPUT, described_input, described_outputs

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OnnxInt8Exporter"]

FILE, FLOAT_FILE = "model-int8.onnx", "model.onnx"
Ranges = Literal["min-max", "percentile"]
WAYS: tuple[Ranges, ...] = ("min-max", "percentile")
MOST_JUDGED = 16
# QuantizeLinear has scales by channel from here on.
OLDEST_OPSET = 13


class OnnxInt8Exporter(Exporter):
    """Write one ONNX file of 8-bit integers, with scales by output channel, and the file with real numbers beside it.

    Input and outputs stay real; the first and the last operators of the file are their quantisation. Modules that need
    more than 8 bits stay real as well.

    Args:
        calibration: How ranges of activations are found: ``min-max`` holds all values, ``percentile`` leaves the
            rarest out, which helps where there are outliers, as in long negative tails before SiLU. ``auto`` writes
            both files, and keeps the one that is nearer to real numbers on some of the pictures.
        percentile: Share of the values that lie in the range, in percent.
        activations: Type of activations; many NPUs ask for ``int8``.
        symmetric: Give activations a zero point in the middle of their type; many NPUs ask for it, and it costs a bit
            where an activation has one sign.
        opset: Version of ONNX's operators.
    """

    passes = ("raw-outputs",)
    calibrates = True
    packages = PACKAGES

    def __init__(
        self,
        *,
        calibration: Literal["auto", "min-max", "percentile"] = "auto",
        percentile: float = 99.99,
        activations: Literal["uint8", "int8"] = "uint8",
        symmetric: bool = False,
        opset: int = 18,
    ) -> None:
        demand_opset(opset, OLDEST_OPSET)
        if not 50 < percentile <= 100:
            raise RecipeError(f"percentile must be above 50 and at most 100, got {percentile}")
        self.calibration = calibration
        self.percentile = percentile
        self.activations = activations
        self.symmetric = symmetric
        self.opset = opset

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_packages("the exporter 'onnx-int8'", cls.packages, "onnx")

    def check(self, network: Network) -> Preflight:
        """Return the operators that ONNX cannot express; a format is no chip, so nothing else is told."""
        return check_format(network, self.opset)

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write both files."""
        import onnx

        pictures_NCHW = demand_pictures("onnx-int8", calibration_NCHW)
        note = write_checked(network, folder / FLOAT_FILE, numbers="float32", opset=self.opset, dynamic_batch=False)
        kept = _nodes_of(onnx.load(folder / FLOAT_FILE), network.precise)
        notes = [note, self._quantise(network.map_names, pictures_NCHW, folder, kept)]
        if kept:
            notes.append(f"{len(kept)} operators of {', '.join(network.precise)} stay real.")
        return Exported((FILE, FLOAT_FILE), described_input(network), described_outputs(network), notes=tuple(notes))

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        """Return both files, run by onnxruntime."""
        names = [each["name"] for each in exported.tensors]
        return {"float": OnnxRunner(folder / FLOAT_FILE, names), "int8": OnnxRunner(folder / FILE, names)}

    def _quantise(self, names: list[str], calibration_NCHW: Tensor, folder: Path, kept: list[str]) -> str:
        """Write the file of integers, and return how ranges were found, and how near it is to the file of reals."""
        judged_NCHW = calibration_NCHW[:MOST_JUDGED].numpy()
        wanted = OnnxRunner(folder / FLOAT_FILE, names)(judged_NCHW)
        found: dict[Ranges, float] = {}
        for ranges in WAYS if self.calibration == "auto" else (self.calibration,):
            self._write(folder / f"{ranges}.onnx", _Pictures(calibration_NCHW), folder / FLOAT_FILE, kept, ranges)
            found[ranges] = worst_decibels(OnnxRunner(folder / f"{ranges}.onnx", names)(judged_NCHW), wanted)
        best = max(found, key=lambda each: found[each])
        (folder / f"{best}.onnx").rename(folder / FILE)
        for other in found.keys() - {best}:
            (folder / f"{other}.onnx").unlink()
        said = {"min-max": "min-max", "percentile": f"percentile {self.percentile:g}"}
        rest = "".join(f"; {said[each]}, which was tried too, {found[each]:.1f} dB" for each in found if each != best)
        return (
            f"Ranges of activations by {said[best]} of {len(calibration_NCHW)} pictures: the worst map of "
            f"{len(judged_NCHW)} of them has {found[best]:.1f} dB of signal to noise{rest}."
        )

    def _write(self, path: Path, pictures: "_Pictures", source: Path, kept: list[str], ranges: "Ranges") -> None:
        from onnxruntime import quantization

        types = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
        methods = {
            "min-max": quantization.CalibrationMethod.MinMax,
            "percentile": quantization.CalibrationMethod.Percentile,
        }
        with _quiet():
            quantization.quantize_static(
                source,
                path,
                pictures,
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=types[self.activations],
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=kept,
                calibrate_method=methods[ranges],
                extra_options={
                    "ActivationSymmetric": self.symmetric,
                    "CalibPercentile": self.percentile,
                    # A picture at a time; else the activations of all of them would lie in memory together.
                    "CalibStridedMinMax": 1,
                },
            )


class _Pictures:
    """Hands pictures to onnxruntime one at a time, as it asks for them, without a copy of them all."""

    def __init__(self, pictures_NCHW: Tensor) -> None:
        self._pictures_NCHW = pictures_NCHW
        self.set_range(0, len(pictures_NCHW))

    def __len__(self) -> int:
        return len(self._pictures_NCHW)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start again, with some of the pictures."""
        self._left = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next picture, or None after the last."""
        index = next(self._left, None)
        return None if index is None else {INPUT: self._pictures_NCHW[index : index + 1].numpy()}


def _nodes_of(model: "ModelProto", paths: Sequence[str]) -> list[str]:
    """Return the names of the operators of some modules, and of the modules inside them.

    Raises:
        ExportError: A module has none.
    """
    kept = []
    for path in paths:
        found = [node.name for node in model.graph.node if f"{module_of(node)}.".startswith(f"{path}.")]
        if not found:
            known = sorted({module_of(node) for node in model.graph.node})
            raise ExportError(
                f"{path}: is to stay real, and no operator of the file is of this module.{suggest(path, known)}\n"
                "  Name a module that computes something, as `--check` lists them."
            )
        kept += found
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's progress, and its advice for other callers, from the reader."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("onnx-int8", OnnxInt8Exporter)
