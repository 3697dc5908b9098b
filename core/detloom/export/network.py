"""What exporters are given, and what they give back.

Shape letters: B images, C channels, H and W rows and columns of the network's input, h and w of a map.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec, MapSpec, maps_of
from detloom.detector import Detector
from detloom.host_spec import InputSpec, TensorSpec
from detloom.structures import HeadMaps

__all__ = ["Exported", "Network", "Placement", "Preflight", "RawMaps", "Runner", "Verdict"]

Runner = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]
"""RGB in [0, 1], ``[B, 3, H, W]``, to the raw maps ``[B, C, h, w]`` in real numbers, in the order of the network's."""


class RawMaps(nn.Module):
    """A detector as exporters see it: pictures to a flat tuple of raw lead maps; nothing is decoded."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.head = detector.head

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the raw maps of RGB pictures in [0, 1]."""
        levels = self.backbone(images_BCHW)
        maps = self.head(levels if self.neck is None else self.neck(levels))
        assert isinstance(maps, HeadMaps)  # noqa: S101 - narrows the type
        return maps.lead


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What an exporter is given.

    Attributes:
        module: Folded, in evaluation mode, on the CPU, float32; its submodules have the names that they have in the
            detector, which messages and reports use.
        image_size: Height and width of the input in pixels.
        decode: How a host makes boxes of the maps.
        names: Class names by index.
        precise: Paths of modules that need more than 8 bits; an exporter that cannot give it refuses.
    """

    module: nn.Module
    image_size: tuple[int, int]
    decode: DecodeSpec
    names: tuple[str, ...]
    precise: tuple[str, ...] = ()

    @property
    def maps(self) -> list[MapSpec]:
        """Return what each map holds, in the order of the maps."""
        return maps_of(self.decode)

    @property
    def map_names(self) -> list[str]:
        """Return a name for each map: its level's stride, and its outputs where they are not all of them."""
        everything = [output["name"] for output in self.decode["outputs"]]
        return [
            "_".join(
                (
                    f"stride{self.decode['levels'][each['level']]['stride']}",
                    *(each["outputs"] if each["outputs"] != everything else ()),
                )
            )
            for each in self.maps
        ]

    def example_BCHW(self, batch: int = 1) -> Tensor:
        """Return a picture to trace with, the same each time."""
        return torch.rand(batch, 3, *self.image_size, generator=torch.Generator().manual_seed(0))


class Placement(StrEnum):
    """Where a module runs on a target."""

    NPU = "npu"
    SPLIT = "split"  # on the NPU, in more than one operator
    CPU = "cpu"  # falls back to the host processor
    REFUSED = "refused"  # cannot be exported at all


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where one operator of a module runs.

    Attributes:
        module: Path of the module in the detector; empty for what belongs to none.
        operator: What it is called in the exported file or the traced graph.
        placement: Where it runs.
        reason: Why, where it is not simply on the NPU.
        remedy: What to change, where something can be.
        cycles: What it costs by the compiler's estimate; None where none is known.
    """

    module: str
    operator: str
    placement: Placement
    reason: str = ""
    remedy: str = ""
    cycles: int | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a target does with a network.

    Attributes:
        target: The device, or the format.
        source: What says so: a compiler and its version, or the table that was looked up and where its facts come from.
        verdicts: In the order of the graph.
        figures: What the compiler estimates, by name with its unit, as ``sram_kib`` or ``inference_ms``.
    """

    target: str
    source: str
    verdicts: tuple[Verdict, ...]
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def at(self, placement: Placement) -> tuple[Verdict, ...]:
        """Return the verdicts of one placement."""
        return tuple(each for each in self.verdicts if each.placement == placement)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        files: Names in its folder, the one that a device runs first.
        input: The input as the file has it.
        tensors: The outputs as the file has them, in the order of the network's maps.
        preflight: What the compiler did, where there is one.
        notes: Sentences for the report.
    """

    files: tuple[str, ...]
    input: InputSpec
    tensors: tuple[TensorSpec, ...]
    preflight: Preflight | None = None
    notes: tuple[str, ...] = ()
