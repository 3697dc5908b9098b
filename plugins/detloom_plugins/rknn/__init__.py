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

from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.rknn.layers import figures_of, verdicts_of
from detloom_plugins.rknn.toolkit import Build, missing_toolkit, write_onnx

__all__ = ["RknnExporter"]

CHIPS = ("rk3562", "rk3566", "rk3568", "rk3576", "rk3588", "rv1103", "rv1106")
WITHOUT_FLOAT = ("rv1103", "rv1106")
MODEL = "model.rknn"
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
        self._built: Build | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_toolkit()

    def check(self, network: Network) -> Preflight:
        """Return the compiler's table, from a build whose ranges are those of random pictures.

        Raises:
            ExportError: The toolkit is missing or refuses the network.
        """
        guesses_NCHW = network.example_BCHW(NUM_GUESSES)
        with Build(network, guesses_NCHW, chip=self.chip, numbers=self.numbers, method=self.method) as build:
            return self._preflight(build)

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write ``model.rknn``, and the ONNX file that it was compiled from.

        Raises:
            ExportError: The toolkit is missing or refuses the network, or modules are to be more precise.
        """
        if network.precise:
            raise ExportError(
                f"rknn: {', '.join(network.precise)} should have more than 8 bits, which this exporter cannot give to "
                "single modules; export with numbers=float16, or leave out --mixed"
            )
        if self._built is not None:
            self._built.close()
        pictures_NCHW = network.example_BCHW(NUM_GUESSES) if calibration_NCHW is None else calibration_NCHW
        self._built = Build(network, pictures_NCHW, chip=self.chip, numbers=self.numbers, method=self.method)
        (folder / MODEL).write_bytes(self._built.model.read_bytes())
        write_onnx(network, folder / "model.onnx")
        height, width = network.image_size
        return Exported(
            files=(MODEL, "model.onnx"),
            input={
                "name": "images",
                "layout": "NHWC",
                "height": height,
                "width": width,
                "dtype": "uint8",
                "scale": 1 / 255,
                "zero_point": 0,
                "fill": 114,
            },
            tensors=tuple(
                {
                    "name": name,
                    "layout": "NCHW",
                    "shape": list(shape),
                    "dtype": "float32",
                    "scale": None,
                    "zero_point": 0,
                }
                for name, shape in zip(network.map_names, self._built.shapes, strict=True)
            ),
            preflight=self._preflight(self._built),
            notes=("The runtime is to give outputs in real numbers (want_float = 1), and takes pixels from 0 to 255.",),
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

    def _preflight(self, build: Build) -> Preflight:
        return Preflight(
            target=self.chip,
            source="rknn-toolkit2: the compiler's table of layers; cycles are its estimate",
            verdicts=verdicts_of(build.log),
            figures=figures_of(build.log, build.model),
        )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("rknn", RknnExporter)
