"""Export for ExecuTorch: a program for the XNNPACK backend of phones, or for Arm's Ethos-U by way of TOSA.

ExecuTorch pins packages that clash with those of other exporters: give it an environment of its own.

Shape letters: N pictures to calibrate on, B images, C channels, H and W rows and columns, h and w of a map.

Source: ExecuTorch 1.5.1, by running it; Jacob et al. 2018, arXiv:1712.05877, for arithmetic in eight bits.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.executorch_lowering import Lowered, figures_of, lower, quantised, verdicts_of
from detloom_plugins.extras import missing_packages
from detloom_plugins.real_tensors import described_input, described_outputs

__all__ = ["ExecutorchExporter"]

Backend = Literal["xnnpack", "ethos-u"]
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
MODEL = "model.pte"
TOSA = "model.tosa"
NUM_GUESSES = 4
# The others of its packages are for Ethos-U alone.
NEEDED = ("executorch", "torchao")


class ExecutorchExporter(Exporter):
    """A program for the ExecuTorch runtime, whose inputs and outputs are real numbers.

    Args:
        backend: xnnpack, for the processors of phones, or ethos-u.
        accelerator: Of ethos-u: ethos-u55-256, say.
        numbers: int8, or float32, which xnnpack alone takes.
    """

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType(
        {
            "executorch-xnnpack": {"backend": "xnnpack"},
            **{f"executorch-{each}": {"backend": "ethos-u", "accelerator": each} for each in ACCELERATORS},
        }
    )
    passes = ("raw-outputs",)
    calibrates = True
    packages = ("executorch", "torchao", "ethos-u-vela", "tosa-tools")

    def __init__(
        self,
        *,
        backend: Backend = "xnnpack",
        accelerator: str = "ethos-u55-256",
        numbers: Literal["int8", "float32"] = "int8",
    ) -> None:
        if accelerator not in ACCELERATORS:
            raise RecipeError(
                f"accelerator '{accelerator}' is none that is known.{suggest(accelerator, ACCELERATORS)} "
                f"Known: {', '.join(ACCELERATORS)}"
            )
        if backend == "ethos-u" and numbers != "int8":
            raise RecipeError(f"numbers = '{numbers}': Ethos-U computes in integers alone; take int8, or xnnpack")
        self.backend = backend
        self.accelerator = accelerator
        self.numbers = numbers
        self.calibrates = numbers == "int8"
        self._scales: tuple[tuple[float, int], ...] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_packages("the exporter 'executorch'", NEEDED, "executorch")

    def check(self, network: Network) -> Preflight:
        """Return what the backend takes of the graph, with ranges of random pictures.

        Raises:
            ExportError: ExecuTorch is missing or cannot take the network, or modules are to be more precise.
        """
        self._demand_eight_bits(network)
        guesses_NCHW = network.example_BCHW(NUM_GUESSES) if self.numbers == "int8" else None
        return self._preflight(self._lowered(network, guesses_NCHW))

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write ``model.pte``, and for Ethos-U ``model.tosa``, which the reference model runs.

        Raises:
            ExportError: ExecuTorch is missing or cannot take the network, or modules are to be more precise.
        """
        self._demand_eight_bits(network)
        pictures_NCHW = demand_pictures("executorch", calibration_NCHW) if self.numbers == "int8" else None
        lowered = self._lowered(network, pictures_NCHW)
        (folder / MODEL).write_bytes(lowered.program)
        if lowered.tosa is not None:
            (folder / TOSA).write_bytes(lowered.tosa)
        return Exported(
            files=(MODEL, TOSA) if lowered.tosa is not None else (MODEL,),
            input=described_input(network),
            tensors=described_outputs(network),
            preflight=self._preflight(lowered),
            notes=("The program quantises its input and gives real numbers; outputs are told apart by their order.",),
        )

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:  # noqa: ARG002 - the files are known by name
        """Return XNNPACK's runtime, or for Ethos-U the TOSA reference model, where it is installed.

        Raises:
            ExportError: Nothing was exported before.
        """
        if self.backend == "xnnpack":
            return {"int8" if self.numbers == "int8" else "float": _runtime(folder / MODEL)}
        if self._scales is None:
            raise ExportError("executorch: the reference model needs the scales of the export; export first")
        if importlib.util.find_spec("tosa_reference_model") is None:
            return {}
        return {"simulator": _reference_model((folder / TOSA).read_bytes(), self._scales)}

    def _demand_eight_bits(self, network: Network) -> None:
        if network.precise and self.numbers == "int8":
            raise ExportError(
                f"executorch: {', '.join(network.precise)} should have more than 8 bits, which this exporter cannot "
                "give to single modules; leave out --mixed, or export by onnx-int8 or litert"
            )

    def _lowered(self, network: Network, pictures_NCHW: Tensor | None) -> Lowered:
        if complaint := self.missing():
            raise ExportError(complaint)
        accelerator = None if self.backend == "xnnpack" else self.accelerator
        graph = network.module if pictures_NCHW is None else quantised(network, pictures_NCHW, accelerator)
        lowered = lower(graph, network, accelerator)
        self._scales = lowered.scales
        return lowered

    def _preflight(self, lowered: Lowered) -> Preflight:
        return Preflight(
            target=self.backend if self.backend == "xnnpack" else self.accelerator,
            source="ExecuTorch: what its partitioner gave to the backend"
            + ("" if self.backend == "xnnpack" else "; figures are Vela's estimate"),
            verdicts=verdicts_of(lowered),
            figures=figures_of(lowered),
        )


def _runtime(path: Path) -> Runner:
    from executorch.runtime import Runtime

    # Programs end with the runtime that loaded them.
    runtime = Runtime.get()
    program = runtime.load_program(path)
    method = program.load_method("forward")

    def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        singles = [method.execute([torch.from_numpy(each[None].copy())]) for each in images_BCHW]
        return [np.concatenate([each.numpy() for each in level]) for level in zip(*singles, strict=True)]

    return run


def _reference_model(tosa: bytes, scales: Sequence[tuple[float, int]]) -> Runner:
    """Return what runs a TOSA file; the first scale is the input's."""
    import tosa_reference_model

    (scale_in, zero_in), *outputs = scales

    def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        q_BCHW = np.clip(np.rint(images_BCHW / np.float32(scale_in)) + zero_in, -128, 127).astype(np.int8)
        singles = []
        for each in q_BCHW:
            found, status = tosa_reference_model.run(tosa, [each[None]])
            if "VALID" not in str(status):
                raise ExportError(f"executorch: the TOSA reference model says {status}")
            singles.append(found)
        return [
            (np.concatenate(level).astype(np.float32) - zero) * np.float32(scale)
            for level, (scale, zero) in zip(zip(*singles, strict=True), outputs, strict=True)
        ]

    return run


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("executorch", ExecutorchExporter)
