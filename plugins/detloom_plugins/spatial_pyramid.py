"""Spatial pyramids: maxima of windows of several sizes side by side, alone and within blocks.

Every layer keeps the order of its parts from the published graphs, so that weights can be mapped by position.

References: Wang, Bochkovskiy and Liao, Scaled-YOLOv4 (2021), section 4, for the cross-stage pyramid; Wang, Bochkovskiy
and Liao, YOLOv7 (2022), section 5, for the tiny model's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom_plugins.layers import Activation, ConvBlock

__all__ = ["PyramidPooling", "SppCsp", "SppTiny"]


class PyramidPooling(nn.Module):
    """Max-pool with windows of 5, 9 and 13 at stride 1.

    A window of 9 is a window of 5 over windows of 5, and 13 is three of them: the same maxima with fewer comparisons.
    """

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maxima of windows of 5, 9 and 13."""
        five = functional.max_pool2d(x_BCHW, 5, 1, 2)
        nine = functional.max_pool2d(five, 5, 1, 2)
        thirteen = functional.max_pool2d(nine, 5, 1, 2)
        return five, nine, thirteen


class SppTiny(nn.Module):
    """Spatial pyramid pooling between two 1x1 convolutions, beside a bypass."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation = "silu") -> None:
        super().__init__()
        self.bypass = ConvBlock(inputs, outputs, activation=activation)
        self.entry = ConvBlock(inputs, outputs, activation=activation)
        self.pyramid = PyramidPooling()
        self.mix = ConvBlock(4 * outputs, outputs, activation=activation)
        self.fuse = ConvBlock(2 * outputs, outputs, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the fused maps."""
        bypass_BCHW = self.bypass(x_BCHW)
        entry_BCHW = self.entry(x_BCHW)
        five, nine, thirteen = self.pyramid(entry_BCHW)
        mixed_BCHW = self.mix(torch.cat((thirteen, nine, five, entry_BCHW), dim=1))
        out: Tensor = self.fuse(torch.cat((mixed_BCHW, bypass_BCHW), dim=1))
        return out


class SppCsp(nn.Module):
    """Spatial pyramid pooling inside a cross-stage partial block (SPPCSPC)."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation = "silu") -> None:
        super().__init__()
        self.entry = ConvBlock(inputs, outputs, activation=activation)
        self.bypass = ConvBlock(inputs, outputs, activation=activation)
        self.before1 = ConvBlock(outputs, outputs, 3, activation=activation)
        self.before2 = ConvBlock(outputs, outputs, activation=activation)
        self.pyramid = PyramidPooling()
        self.after1 = ConvBlock(4 * outputs, outputs, activation=activation)
        self.after2 = ConvBlock(outputs, outputs, 3, activation=activation)
        self.fuse = ConvBlock(2 * outputs, outputs, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the fused maps."""
        pooled_from_BCHW = self.before2(self.before1(self.entry(x_BCHW)))
        pyramid = self.pyramid(pooled_from_BCHW)
        deep_BCHW = self.after2(self.after1(torch.cat((pooled_from_BCHW, *pyramid), dim=1)))
        out: Tensor = self.fuse(torch.cat((deep_BCHW, self.bypass(x_BCHW)), dim=1))
        return out
