"""The exporter for Arm's Ethos-U.

Shape letters: see ``detloom.export.network``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from detloom.errors import ExportError
from detloom.export.network import Exported, Network, Placement, Preflight, Runner, Verdict
from detloom.interfaces import Exporter
from detloom_plugins.calibration_pictures import demand_pictures
from detloom_plugins.ethos_u.machines import ACCELERATORS, Machine, Optimise, family_of
from detloom_plugins.ethos_u.placement import figures_of, verdicts_of
from detloom_plugins.ethos_u.vela import VERSIONS, Compiled, compile_model, vela_version
from detloom_plugins.extras import missing_packages
from detloom_plugins.litert import Calibration, LitertExporter, Operator, convert_to_float, convert_to_int8, graph_of

__all__ = ["EthosUExporter"]

DEVICE_FILE, INT8_FILE, FLOAT_FILE = "model_vela.tflite", "model.tflite", "model_float.tflite"
# Of a message; a preflight has them all.
MOST_NAMED = 10
ROOM = "take a smaller image size or network, --set optimise=size, or a larger arena_kib if the device has the memory"


class EthosUExporter(Exporter):
    """Files for microcontrollers and systems with an Arm Ethos-U: int8 LiteRT, compiled by Vela.

    Operators that Vela leaves to the host processor fail the export, unless they are allowed.

    Args:
        accelerator: As ``ethos-u55-256``: the last number is that of multiply-accumulates in a cycle.
        system: Clock and bandwidths, by Vela's name; empty for the accelerator's usual one.
        memory: What lies in which memory, by Vela's name; empty for the accelerator's usual one.
        config: Path of a configuration file of Vela that has the system and the memory mode; empty for Vela's own.
        optimise: Whether the schedule is made for speed or for little memory.
        arena_kib: What the network may take of the SRAM; more is refused. None for the size that the memory mode has,
            which is unlimited but in those named by theirs.
        allow_cpu: Whether operators may fall back to the host processor.
        calibration: How ranges of numbers are found, as for ``litert``.
        percentile: See there.
    """

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType(
        {
            name: {"accelerator": name, "system": system, "memory": memory}
            for name, (system, memory) in ACCELERATORS.items()
        }
    )
    passes = LitertExporter.passes
    calibrates = True
    packages = ("ethos-u-vela", *LitertExporter.packages)

    def __init__(
        self,
        *,
        accelerator: str = "ethos-u55-256",
        system: str = "",
        memory: str = "",
        config: str = "",
        optimise: Optimise = "performance",
        arena_kib: int | None = None,
        allow_cpu: bool = False,
        calibration: Calibration = "auto",
        percentile: float = 99.99,
    ) -> None:
        self.machine = Machine.of(
            accelerator, system=system, memory=memory, config=config, optimise=optimise, arena_kib=arena_kib
        )
        self.allow_cpu = allow_cpu
        self._litert = LitertExporter(calibration=calibration, percentile=percentile)

    @classmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing, or of another version, or None."""
        if line := missing_packages("the exporter 'ethos-u'", cls.packages, "ethos-u"):
            return line
        if not vela_version().startswith(tuple(f"{each}." for each in VERSIONS)):
            return (
                f"the exporter 'ethos-u' needs ethos-u-vela {' or '.join(VERSIONS)}, and {vela_version()} is "
                "installed: pip install 'detloom[ethos-u]'"
            )
        return None

    def check(self, network: Network) -> Preflight:
        """Return where Vela puts each operator of the whole network.

        Where an operator runs does not depend on ranges of numbers, so that those of one random picture serve.
        """
        try:
            graph = graph_of(network)
        except ExportError:
            refused = self._litert.check(network).at(Placement.REFUSED)
            if not refused:
                raise
            return Preflight(self.machine.accelerator, "the operators that detloom writes LiteRT files with", refused)
        converted = convert_to_int8(network, graph, network.example_BCHW(), calibration="min-max", percentile=100)
        return self._preflight(compile_model(converted.data, self.machine), converted.operators)

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        """Write the compiled file for the device, and those that it can be held against here.

        Raises:
            ExportError: Besides what the writer and Vela refuse: operators fall back to the host processor, or the
                network does not fit into the arena.
        """
        pictures_NCHW = demand_pictures("ethos-u", calibration_NCHW)
        graph = graph_of(network)
        made = convert_to_int8(
            network,
            graph,
            pictures_NCHW,
            calibration=self._litert.calibration,
            percentile=self._litert.percentile,
        )
        compiled = compile_model(made.data, self.machine)
        preflight = self._preflight(compiled, made.operators)
        self._demand_success(preflight)
        contents = {
            DEVICE_FILE: compiled.content,
            INT8_FILE: made.data,
            FLOAT_FILE: convert_to_float(network, graph).data,
        }
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        notes = [f"{path} computes in float32 on the host processor" for path in made.precise]
        return Exported(tuple(contents), made.input, made.tensors, preflight, (made.note, *notes))

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        """Return what runs the files that the device's was made of; the simulator has the device's arithmetic."""
        return self._litert.runners(replace(exported, files=exported.files[1:]), folder)

    def _preflight(self, compiled: Compiled, operators: Sequence[Operator]) -> Preflight:
        verdicts = verdicts_of(compiled, operators, family_of(self.machine.accelerator))
        figures = figures_of(compiled, verdicts)
        source = (
            f"Vela {vela_version()}, system {self.machine.system}, memory {self.machine.memory}; "
            "its figures are estimates, not measured on a chip"
        )
        # Vela itself aims at the arena, and says nothing when it does not reach it.
        if figures["sram_kib"] > compiled.arena_kib:
            room = f"the network takes {figures['sram_kib']:.0f} KiB of SRAM, and may take {compiled.arena_kib:.0f}"
            verdicts = (*verdicts, Verdict("", "arena", Placement.REFUSED, room, ROOM))
        return Preflight(self.machine.accelerator, source, verdicts, MappingProxyType(figures))

    def _demand_success(self, preflight: Preflight) -> None:
        fallen = () if self.allow_cpu else preflight.at(Placement.CPU)
        if fallen:
            head = (
                f"{self.machine.accelerator}: {len(fallen)} of {len(preflight.verdicts)} operators would fall back to "
                "the host processor:"
            )
            more = [f"... and {len(fallen) - MOST_NAMED} more; --check names them all"] * (len(fallen) > MOST_NAMED)
            named = [f"{each.module or 'the detector'}: {each.operator}: {each.reason}" for each in fallen[:MOST_NAMED]]
            remedies = dict.fromkeys(f"change: {each.remedy}" for each in fallen)
            tail = "or accept it: --set allow_cpu=true"
            raise ExportError("\n  ".join((head, *named, *more, *remedies, tail)))
        for each in preflight.at(Placement.REFUSED):
            raise ExportError(f"{self.machine.accelerator}: {each.reason}; {each.remedy}")
