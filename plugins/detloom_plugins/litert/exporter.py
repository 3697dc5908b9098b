"""The exporter of LiteRT files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from detloom.errors import RecipeError
from detloom.export.network import Exported, Network, Placement, Preflight, Runner, Verdict
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.extras import missing_packages
from detloom_plugins.litert.conversion import convert_to_float, convert_to_int8, graph_of
from detloom_plugins.litert.ranges import Calibration
from detloom_plugins.litert.reading import read
from detloom_plugins.litert.runners import make_runner

__all__ = ["LitertExporter"]

FLOAT_FILE, INT8_FILE = "model_float.tflite", "model.tflite"


class LitertExporter(Exporter):
    """LiteRT (TFLite) files of 8-bit integers, for phones, microcontrollers and compilers of NPUs.

    Args:
        numbers: ``int8`` throughout, input and outputs included, or ``float32``.
        calibration: How ranges of numbers are found: ``min-max`` takes their extremes, ``percentile`` leaves out what
            is rarest, ``auto`` tries both and keeps what is nearer to real numbers on some of the pictures.
        percentile: How many of a hundred numbers are within the range, where ``calibration`` is ``percentile``.
    """

    passes = ("raw-outputs",)
    calibrates = True
    packages = ("ai-edge-litert", "flatbuffers")

    def __init__(
        self,
        *,
        numbers: Literal["int8", "float32"] = "int8",
        calibration: Calibration = "auto",
        percentile: float = 99.99,
    ) -> None:
        if not 50 < percentile <= 100:
            raise RecipeError(f"percentile must be above 50 and at most 100, got {percentile}")
        self.numbers = numbers
        self.calibration: Calibration = calibration
        self.percentile = percentile
        self.calibrates = numbers == "int8"

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_packages("the exporter 'litert'", cls.packages, "litert")

    def check(self, network: Network) -> Preflight:
        """Return what cannot be written; where a written operator runs is a chip's to say."""
        verdicts = tuple(
            Verdict(each.module, each.operator, Placement.REFUSED, each.reason, each.remedy)
            for each in read(network).refusals
        )
        return Preflight(
            "litert", "the operators that detloom writes LiteRT files with; the format is no chip", verdicts
        )

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write the 8-bit file and the float32 one, or the latter alone."""
        graph = graph_of(network)
        real = convert_to_float(network, graph)
        if self.numbers == "float32":
            (folder / INT8_FILE).write_bytes(real.data)
            return Exported((INT8_FILE,), real.input, real.tensors)
        pictures_NCHW = demand_pictures("litert", calibration_NCHW)
        made = convert_to_int8(network, graph, pictures_NCHW, calibration=self.calibration, percentile=self.percentile)
        (folder / INT8_FILE).write_bytes(made.data)
        (folder / FLOAT_FILE).write_bytes(real.data)
        notes = [f"{path} computes in float32, between conversions" for path in made.precise]
        return Exported((INT8_FILE, FLOAT_FILE), made.input, made.tensors, notes=(made.note, *notes))

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        """Return the float32 file, the 8-bit file by LiteRT's fast kernels, and by its reference kernels."""
        if len(exported.files) == 1:
            return {"float": make_runner(folder / exported.files[0], exported.tensors)}
        int8, real = (folder / name for name in exported.files)
        return {
            "float": make_runner(real, exported.tensors),
            "int8": make_runner(int8, exported.tensors),
            "simulator": make_runner(int8, exported.tensors, reference=True),
        }
