"""What the tests of LiteRT files share: small networks, and what runs a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.export.network import Network
from detloom_plugins.litert import Converted, make_runner

__all__ = ["Maps", "decibels", "network_of", "pictures", "ran"]


class Maps(nn.Module):
    """Functions of a picture, each of which makes a map with the modules in its place."""

    def __init__(self, *branches: tuple[Callable[[Any, Tensor], Tensor], Sequence[nn.Module]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.ModuleList(modules) for _, modules in branches)
        self.functions = [function for function, _ in branches]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the maps."""
        return tuple(
            function(modules, images_BCHW) for function, modules in zip(self.functions, self.branches, strict=True)
        )


def network_of(
    module: nn.Module, *, size: tuple[int, int] = (16, 16), maps: int = 1, precise: tuple[str, ...] = ()
) -> Network:
    """Return what an exporter is given; strides tell the maps apart and say nothing."""
    spec: DecodeSpec = {
        "num_classes": 1,
        "levels": [{"stride": level + 1, "priors": [[1.0, 1.0]]} for level in range(maps)],
        "outputs": [{"name": "classes", "channels": 1}],
        "box": {"form": "distances", "bins": 1},
        "score": ["classes"],
        "suppression": False,
    }
    return Network(module.eval(), size, spec, ("thing",), precise)


def pictures(size: tuple[int, int] = (16, 16), count: int = 4) -> Tensor:
    """Return pictures of pixels from 0 to 255, divided by 255, always the same."""
    pixels = torch.randint(0, 256, (count, 3, *size), generator=torch.Generator().manual_seed(3))
    return pixels.float() / 255


def ran(converted: Converted, images_BCHW: Tensor, *, reference: bool = False) -> list[NDArray[np.float32]]:
    """Return the maps that a file makes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(converted.data)
        return list(make_runner(path, converted.tensors, reference=reference)(images_BCHW.numpy()))


def decibels(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the ratio of signal to noise."""
    return float(10 * np.log10((wanted**2).mean() / ((wanted - found) ** 2).mean()))
