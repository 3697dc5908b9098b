"""Export for Rockchip's NPUs, by the vendor's compiler and simulator.

The toolkit's pins clash with those of current packages, so it lives in an environment of its own, whose interpreter
``DETLOOM_RKNN_PYTHON`` names; a worker there is given an ONNX file and pictures.

Shape letters: B images, C channels, H and W rows and columns.

Source: Rockchip, rknn-toolkit2 2.5.0, by running it; its compiler's table of layers says where each one runs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detloom.data.letterbox import FILL
from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.onnx_file import PACKAGES
from detloom_plugins.real_tensors import INPUT, described_outputs
from detloom_plugins.rknn.layers import figures_of, verdicts_of
from detloom_plugins.rknn.toolkit import Build, missing_toolkit

__all__ = ["RknnExporter"]

CHIPS = ("rk3562", "rk3566", "rk3568", "rk3576", "rk3588", "rv1103", "rv1106")
WITHOUT_FLOAT = ("rv1103", "rv1106")
MODEL, SOURCE = "model.rknn", "model.onnx"
NUM_GUESSES = 4


class RknnExporter(Exporter):
    """A file for the RKNN runtime, compiled by rknn-toolkit2 and run in its simulator.

    Args:
        chip: rk3562, rk3566, rk3568, rk3576, rk3588, rv1103 or rv1106.
        numbers: int8, with a scale for each channel of the weights, or float16.
        method: How ranges are found: normal (the extremes), mmse (least squared error; slow) or kl_divergence.
    """

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType({chip: {"chip": chip} for chip in CHIPS})
    passes = ("raw-outputs",)
    calibrates = True
    packages = PACKAGES

    def __init__(
        self,
        *,
        chip: str = "rk3588",
        numbers: Literal["int8", "float16"] = "int8",
        method: Literal["normal", "mmse", "kl_divergence"] = "normal",
    ) -> None:
        if chip not in CHIPS:
            raise RecipeError(f"chip '{chip}' is none that is known.{suggest(chip, CHIPS)} Known: {', '.join(CHIPS)}")
        if numbers == "float16" and chip in WITHOUT_FLOAT:
            raise RecipeError(f"numbers = 'float16': the {chip} computes in integers alone; take int8")
        self.chip = chip
        self.numbers = numbers
        self.method = method
        self.calibrates = numbers == "int8"
        self._built: Build | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_toolkit()

    def check(self, network: Network) -> Preflight:
        """Return the compiler's table, from a build whose ranges are those of random pictures.

        Raises:
            ExportError: The toolkit is missing or refuses the network, or modules are to be more precise.
        """
        self._demand_eight_bits(network)
        guesses_NCHW = network.example_BCHW(NUM_GUESSES)
        with Build(network, guesses_NCHW, chip=self.chip, numbers=self.numbers, method=self.method) as build:
            return self._preflight(build)

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write ``model.rknn``, and the ONNX file that it was compiled from.

        Raises:
            ExportError: The toolkit is missing or refuses the network, or modules are to be more precise.
        """
        self._demand_eight_bits(network)
        # Of float16 the toolkit calibrates nothing.
        pictures_NCHW = demand_pictures("rknn", calibration_NCHW) if self.calibrates else network.example_BCHW()
        if self._built is not None:
            self._built.close()
        self._built = Build(network, pictures_NCHW, chip=self.chip, numbers=self.numbers, method=self.method)
        (folder / MODEL).write_bytes(self._built.model.read_bytes())
        (folder / SOURCE).write_bytes(self._built.source.read_bytes())
        height, width = network.image_size
        return Exported(
            files=(MODEL, SOURCE),
            input={
                "name": INPUT,
                "layout": "NHWC",
                "height": height,
                "width": width,
                "dtype": "uint8",
                "scale": 1 / 255,
                "zero_point": 0,
                "fill": FILL,
            },
            tensors=described_outputs(network),
            preflight=self._preflight(self._built),
            notes=(
                self._built.note,
                "The runtime is to give outputs in real numbers (want_float = 1), and takes pixels from 0 to 255.",
            ),
        )

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:  # noqa: ARG002 - the simulator has what was built
        """Return the vendor's simulator, with what ``export`` has built: it cannot load a file.

        Raises:
            ExportError: Nothing was exported before.
        """
        if self._built is None:
            raise ExportError("rknn: the simulator runs what this exporter has just built; export first")
        build = self._built

        def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
            pixels_BCHW = np.clip(np.rint(images_BCHW * 255), 0, 255).astype(np.uint8)
            return build.run(pixels_BCHW.transpose(0, 2, 3, 1))

        return {"simulator": run}

    def _demand_eight_bits(self, network: Network) -> None:
        if network.precise and self.numbers == "int8":
            raise ExportError(
                f"rknn: {', '.join(network.precise)} should have more than 8 bits, which this exporter cannot give to "
                "single modules; export with --set numbers=float16, or leave out --mixed"
            )

    def _preflight(self, build: Build) -> Preflight:
        return Preflight(
            target=self.chip,
            source=f"rknn-toolkit2 {build.version}: the compiler's table of layers; cycles are its estimate",
            verdicts=verdicts_of(build.log),
            figures=figures_of(build.log, build.model),
        )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("rknn", RknnExporter)
