"""A network small enough for every target, and one export of it that the checks of exporters look at.

It has what all chips know: convolutions, ReLU, a pooling, an enlargement and a concatenation; its height is not its
width, and each of its six outputs has a shape of its own. It is shallow, so that random weights do for eight bits: in
deep networks they make more noise than trained ones.

Shape letters: B images, H and W rows and columns.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from unittest import SkipTest

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec, OutputName
from detloom.export.network import Exported, Network, Preflight
from detloom.interfaces import Exporter
from detloom.testing.construction import Build

__all__ = [
    "SIZE",
    "SPECIAL",
    "Trial",
    "export_into",
    "exporter_of",
    "files_in",
    "pictures",
    "preflight_of",
    "tiny_network",
    "trial_of",
]

SIZE = (64, 96)
NUM_CLASSES = 3
CALIBRATED, TRIED = 8, 3
SPECIAL = "odd"
"""Path of the module whose operator no chip knows, where the network has one."""


class Tiny(nn.Module):
    """Two levels, of strides 8 and 16, with boxes, objectness and classes in an output each.

    Args:
        odd: What lies between the body and the heads.
    """

    def __init__(self, odd: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.odd = nn.Identity() if odd is None else odd
        # Boxes, objectness, classes.
        self.fine_heads = nn.ModuleList(nn.Conv2d(32, outputs, 1, bias=False) for outputs in (4, 1, NUM_CLASSES))
        self.coarse_heads = nn.ModuleList(nn.Conv2d(16, outputs, 1, bias=False) for outputs in (4, 1, NUM_CLASSES))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the six maps, finest first."""
        fine_BCHW = self.body(self.stem(images_BCHW))
        coarse_BCHW = self.odd(self.deep(self.pool(fine_BCHW)))
        joined_BCHW = torch.cat((self.enlarge(coarse_BCHW), fine_BCHW), dim=1)
        return (*_each(self.fine_heads, joined_BCHW), *_each(self.coarse_heads, coarse_BCHW))


def _each(heads: nn.ModuleList, level_BCHW: Tensor) -> tuple[Tensor, ...]:
    return tuple(head(level_BCHW) for head in heads)


class Odd(nn.Module):
    """An operator that no chip knows."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return a function of Bessel's of each number."""
        result_BCHW: Tensor = torch.special.bessel_j0(x_BCHW)
        return result_BCHW


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One export of the tiny network, with all that it left behind.

    Attributes:
        exporter: Which made it.
        network: What it was given.
        exported: What it said.
        folder: Where the files lie.
        elsewhere: Files that it wrote into the working directory, or beside the folder.
        untouched: Whether the network's weights, and the pictures, are as they were.
    """

    exporter: Exporter
    network: Network
    exported: Exported
    folder: Path
    elsewhere: tuple[str, ...]
    untouched: bool


def tiny_network(*, odd: bool = False, precise: tuple[str, ...] = ()) -> Network:
    """Return the network that exporters are tried on, the same each time."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = Tiny(Odd() if odd else None).eval()
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                # Activations keep their size from layer to layer, so that outputs are of the order of 1.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Network(module, SIZE, _decode(), tuple(f"class-{index}" for index in range(NUM_CLASSES)), precise)


def pictures() -> tuple[Tensor, Tensor]:
    """Return blurred pictures to calibrate on, and some of them to try the result on.

    On others, with so few, numbers beyond the ranges would make more noise than the rounding that is looked at.
    """
    coarse_BCHW = torch.rand(CALIBRATED, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    images_BCHW = nn.functional.interpolate(coarse_BCHW, SIZE, mode="bilinear")
    return images_BCHW, images_BCHW[:TRIED].clone()


def exporter_of(build: Build) -> Exporter:
    """Return the exporter, or skip the check where its packages are not here.

    Raises:
        SkipTest: They are missing.
    """
    if missing := build.cls.missing():
        raise SkipTest(missing)
    exporter: Exporter = build()
    return exporter


def trial_of(build: Build) -> Trial:
    """Return one export, made when a check first asks for it."""
    if "trial" not in build.kept:
        build.kept["room"] = tempfile.TemporaryDirectory()
        build.kept["trial"] = export_into(exporter_of(build), tiny_network(), Path(build.kept["room"].name) / "one")
    trial: Trial = build.kept["trial"]
    return trial


def preflight_of(build: Build) -> tuple[Preflight, list[str]]:
    """Return one preflight, and what it wrote into the working directory."""
    if "preflight" not in build.kept:
        exporter = exporter_of(build)
        with watched() as written:
            found = exporter.check(tiny_network())
        build.kept["preflight"] = (found, written)
    kept: tuple[Preflight, list[str]] = build.kept["preflight"]
    return kept


def export_into(exporter: Exporter, network: Network, room: Path) -> Trial:
    """Export into a folder of a room, and see what else is written there, or in the working directory.

    Raises:
        ExportError: The exporter does not take the network.
    """
    folder = room / "export"
    folder.mkdir(parents=True)
    calibration_BCHW = pictures()[0] if exporter.calibrates else None
    given = None if calibration_BCHW is None else calibration_BCHW.clone()
    before = deepcopy(network.module.state_dict())
    with watched() as written:
        exported = exporter.export(network, calibration_BCHW, folder)
    beside = [str(path.relative_to(room)) for path in room.iterdir() if path != folder]
    after = network.module.state_dict()
    untouched = list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    if given is not None and calibration_BCHW is not None:
        untouched &= torch.equal(given, calibration_BCHW)
    untouched &= not network.module.training
    return Trial(exporter, network, exported, folder, (*beside, *written), untouched)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Work in an empty directory, and yield a list that holds afterwards what was written there."""
    written: list[str] = []
    with tempfile.TemporaryDirectory() as empty:
        with contextlib.chdir(empty):
            yield written
        written += files_in(Path(empty))


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _decode() -> DecodeSpec:
    parts: tuple[list[OutputName], ...] = (["center", "size"], ["objectness"], ["classes"])
    return {
        "num_classes": NUM_CLASSES,
        "levels": [{"stride": stride, "priors": [[4.0 * stride, 4.0 * stride]]} for stride in (8, 16)],
        "outputs": [
            {"name": "center", "channels": 2},
            {"name": "size", "channels": 2},
            {"name": "objectness", "channels": 1},
            {"name": "classes", "channels": NUM_CLASSES},
        ],
        "box": {
            "form": "center-and-size",
            "center": {"activation": "sigmoid", "scale": 2.0, "shift": -0.5},
            "size": {"activation": "sigmoid", "limit": None, "scale": 2.0, "exponent": 2.0, "unit": "prior"},
        },
        "score": ["objectness", "classes"],
        "suppression": True,
        "maps": [{"level": level, "outputs": outputs} for level in range(2) for outputs in parts],
    }
