"""A network small enough to be exported in a test, with what networks of detectors have."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from detloom.decode_spec import DecodeSpec
from detloom.export.network import Network

SIDE = 64
SPEC: DecodeSpec = {
    "num_classes": 3,
    "levels": [{"stride": 8, "priors": [[8.0, 8.0]]}, {"stride": 16, "priors": [[16.0, 16.0]]}],
    "outputs": [
        {"name": "center", "channels": 2},
        {"name": "size", "channels": 2},
        {"name": "objectness", "channels": 1},
        {"name": "classes", "channels": 3},
    ],
    "box": {
        "form": "center-and-size",
        "center": {"activation": "sigmoid", "scale": 2.0, "shift": -0.5},
        "size": {"activation": "sigmoid", "limit": None, "scale": 2.0, "exponent": 2.0, "unit": "prior"},
    },
    "score": ["objectness", "classes"],
    "suppression": True,
}


class Block(nn.Module):
    """A convolution and an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.act = activation()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the activated maps."""
        out: Tensor = self.act(self.conv(x_BCHW))
        return out


class Tiny(nn.Module):
    """Strided convolutions, a pool, an upsampling, concatenations and a head on two levels."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.backbone = nn.Sequential(Block(3, 8, 4, activation), Block(8, 12, 2, activation))
        self.down = nn.ModuleList([Block(12, 16, 2, activation)])
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.head = nn.ModuleList([nn.Conv2d(12 + 32, 8, 1), nn.Conv2d(32, 8, 1)])

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw maps of both levels."""
        fine = self.backbone(images_BCHW)
        coarse = self.down[0](fine)
        coarse = torch.cat((coarse, self.pool(coarse)), 1)
        enlarged = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.head[0](torch.cat((fine, enlarged), 1)), self.head[1](coarse)


def tiny_network(
    activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.1), *, precise: tuple[str, ...] = ()
) -> Network:
    """Return the network, with weights that let maps vary, always the same."""
    module = Tiny(activation).eval()
    generator = torch.Generator().manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, generator=generator)
            if each.bias is not None:
                nn.init.uniform_(each.bias, -0.2, 0.2, generator=generator)
    return Network(module, (SIDE, SIDE), SPEC, ("a", "b", "c"), precise)


def pictures(count: int, *, seed: int = 1) -> Tensor:
    """Return pictures of coloured patches and some noise, RGB in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, 3, 8, 8, generator=generator)
    noise = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    return 0.8 * functional.interpolate(patches, size=(SIDE, SIDE), mode="bilinear") + 0.2 * noise


def decibels(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the ratio of a signal to what an approximation of it is wrong by."""
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))
