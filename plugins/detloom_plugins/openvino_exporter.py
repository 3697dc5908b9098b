"""The network as OpenVINO's intermediate representation, for processors, graphics and NPUs of Intel.

Integers come from NNCF's quantisation after training. Here the files run on the processor; an NPU's driver compiles the
same file on the device, since the packages bring no compiler of it.

Sources: OpenVINO's and NNCF's documentation; Kozlov et al. 2020, arXiv:2002.08679.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from detloom.export.network import Exported, Network, Preflight, Runner
from detloom.hookspecs import hookimpl
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.equal_maps import demand_equality, maps_of_module, rounding_of_module
from detloom_plugins.extras import missing_packages
from detloom_plugins.openvino_model import (
    OpenvinoRunner,
    converted,
    library,
    quantised,
    save,
    unknown_operators,
)
from detloom_plugins.real_tensors import described_input, described_outputs
from detloom_plugins.traced_operators import refusals

if TYPE_CHECKING:
    from openvino import Model

__all__ = ["OpenvinoExporter"]

Device = Literal["CPU", "GPU", "NPU"]
DEVICES: tuple[Device, ...] = ("CPU", "GPU", "NPU")
FLOAT_FILE, INT8_FILE = "model.xml", "model-int8.xml"
# Over 1 + the largest magnitude of a map: rounding alone.
TOLERANCE = 1e-4


class OpenvinoExporter(Exporter):
    """Write OpenVINO's files, of real numbers or of 8-bit integers, with an output for each raw map.

    Input and outputs are real in both. OpenVINO and NNCF come with a package that reports their use to a service for
    statistics; it is switched off.

    Args:
        numbers: ``int8`` quantises by NNCF, and leaves the file of real numbers beside it.
        device: What the integers are chosen for. Each file runs on all; it says which operators are quantised.
        preset: ``mixed`` gives activations of both signs a zero point of their own, which SiLU needs; ``performance``
            gives none.
    """

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType(
        {f"intel-{device.lower()}": {"device": device} for device in DEVICES}
    )
    calibrates = True
    packages = ("openvino", "nncf")

    def __init__(
        self,
        *,
        numbers: Literal["int8", "float32"] = "int8",
        device: Device = "CPU",
        preset: Literal["mixed", "performance"] = "mixed",
    ) -> None:
        self.numbers = numbers
        self.device = device
        self.preset = preset
        self.calibrates = numbers == "int8"

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""
        return missing_packages("the exporter 'openvino'", cls.packages, "openvino")

    def check(self, network: Network) -> Preflight:
        """Return the operators that OpenVINO cannot read; where the others run is the driver's to say."""
        return Preflight(
            target=f"OpenVINO, {self.device}",
            source=f"openvino {library().__version__}, asked to convert the network; it is a format and a "
            "runtime and no chip, so where an operator runs is not told",
            verdicts=refusals(network, unknown_operators(network), by="OpenVINO"),
        )

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write the files, those of real numbers held against torch."""
        pictures_NCHW = demand_pictures("openvino", calibration_NCHW) if self.numbers == "int8" else None
        model = converted(network)
        save(model, folder / FLOAT_FILE)
        example_BCHW = network.example_BCHW()
        note = demand_equality(
            OpenvinoRunner(folder / FLOAT_FILE, network.map_names)(example_BCHW.numpy()),
            maps_of_module(network, example_BCHW),
            network.map_names,
            tolerance=TOLERANCE,
            rounding=lambda: rounding_of_module(network, example_BCHW),
            where=f"{FLOAT_FILE}, run by OpenVINO",
        )
        files: tuple[str, ...] = _both(FLOAT_FILE)
        notes: tuple[str, ...] = (note,)
        if pictures_NCHW is not None:
            files = (*_both(INT8_FILE), *files)
            notes = (note, *self._quantise(network, model, pictures_NCHW, folder))
        return Exported(files, described_input(network), described_outputs(network), notes=notes)

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        """Return the files, run on this processor in float32 where they are of real numbers."""
        names = [each["name"] for each in exported.tensors]
        files = {"float": FLOAT_FILE, "int8": INT8_FILE}
        return {stage: OpenvinoRunner(folder / file, names) for stage, file in files.items() if file in exported.files}

    def _quantise(self, network: Network, model: "Model", calibration_NCHW: Tensor, folder: Path) -> Iterator[str]:
        """Write the files of integers, and yield what is to be said of them."""
        integers = quantised(network, model, calibration_NCHW, device=self.device, preset=self.preset)
        save(integers, folder / INT8_FILE)
        yield f"Quantised by NNCF for {self.device} on {len(calibration_NCHW)} pictures, preset {self.preset}."
        if network.precise:
            yield f"{', '.join(network.precise)} stay real."


def _both(file: str) -> tuple[str, str]:
    """Return the file that describes the operators, and the one of the weights."""
    return file, str(Path(file).with_suffix(".bin"))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("openvino", OpenvinoExporter)
