"""An exporter for tests, as fast as can be: weights as they are, and runners that play eight bits in torch.

It holds the network that it was given last, so that its runners need no runtime.
"""
# ruff: noqa: ARG002 - it reads no files

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from detloom import hookimpl
from detloom.errors import ExportError
from detloom.export.fine_tune import rounded_
from detloom.export.network import Exported, Network, Placement, Preflight, RawMaps, Runner, Verdict
from detloom.host_spec import TensorSpec
from detloom.interfaces import Exporter

__all__ = ["TrialExporter", "register_components"]

PLUGIN_API = 1

Fault = Literal["", "compiler", "shapes", "noise", "no runners", "half a file"]


class TrialExporter(Exporter):
    """Write weights, and play eight bits."""

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType(
        {"trial-board": {}, "broken-board": {"fault": "compiler"}, "noisy-board": {"fault": "noise"}}
    )
    calibrates = True
    packages = ("safetensors", "no-such-distribution")

    def __init__(self, *, fault: Fault = "", refuse: str = "") -> None:
        self.fault = fault
        self.refuse = refuse
        self.network: Network | None = None
        self.calibration_NCHW: Tensor | None = None

    @classmethod
    def missing(cls) -> str | None:
        return None

    def check(self, network: Network) -> Preflight:
        return Preflight("trial-board", "the trial's own table", tuple(self._verdicts(network)), {"sram_kib": 12.5})

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        assert calibration_NCHW is not None
        if self.fault == "half a file":
            (folder / "weights.safetensors").write_bytes(b"half")
        if self.fault in ("compiler", "half a file"):
            raise ExportError("backbone.stem.0: the compiler does not take this")
        save_file({key: each.contiguous() for key, each in network.module.state_dict().items()}, folder / "weights.bin")
        self.network, self.calibration_NCHW = network, calibration_NCHW[:4]
        tensors = []
        for name, raw in zip(network.map_names, network.module(network.example_BCHW()), strict=True):
            shape = [1, 1, 1, 1] if self.fault == "shapes" else list(raw.shape)
            tensors.append(TensorSpec(name=name, layout="NCHW", shape=shape, dtype="float32", scale=None, zero_point=0))
        height, width = network.image_size
        return Exported(
            ("weights.bin",),
            {
                "name": "images",
                "layout": "NCHW",
                "height": height,
                "width": width,
                "dtype": "float32",
                "scale": None,
                "zero_point": 0,
                "fill": 114,
            },
            tuple(tensors),
            notes=("written for tests",),
        )

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        assert self.network is not None
        assert self.calibration_NCHW is not None
        if self.fault == "no runners":
            return {}
        module = copy.deepcopy(self.network.module)
        assert isinstance(module, RawMaps)
        noise = 100.0 if self.fault == "noise" else 0.0
        return {"float": _runner(module, None, 0.0), "simulator": _runner(module, self.calibration_NCHW, noise)}

    def _verdicts(self, network: Network) -> list[Verdict]:
        found = []
        for path, module in network.module.named_modules():
            if isinstance(module, nn.Conv2d):
                name = "CONV_FLOAT" if path in network.precise else "CONV"
                if path == self.refuse:
                    verdict = Verdict(path, name, Placement.REFUSED, "it was asked to be", "ask for something else")
                elif module.kernel_size == (1, 1):
                    verdict = Verdict(path, name, Placement.NPU, cycles=module.out_channels)
                else:
                    verdict = Verdict(path, name, Placement.CPU, "only 1x1 fits", "take 1x1", cycles=900)
                found.append(verdict)
        return found


def _runner(module: nn.Module, calibration_NCHW: Tensor | None, noise: float) -> Runner:
    def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        images = torch.from_numpy(images_BCHW)
        if calibration_NCHW is None:
            return [each.numpy() for each in module(images)]
        with rounded_(module, calibration_NCHW):
            return [(each + noise).numpy() for each in module(images)]

    return run


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    register("trial", TrialExporter)
