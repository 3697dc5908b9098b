"""The vocabulary of cross-stage partial networks: bottlenecks, partial blocks and a short spatial pyramid.

References: Wang et al., CSPNet (2020), section 3; Wang, Bochkovskiy and Liao, Scaled-YOLOv4 (2021), section 3;
He et al., Deep residual learning (2016), section 3.3, for bottlenecks; Wang, Bochkovskiy and Liao, YOLOv7 (2022),
section 4.2 and table 5, for the reversed order.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from detloom.errors import RecipeError, suggest
from detloom_plugins.layers import Activation, ConvBlock, RepConv
from detloom_plugins.spatial_pyramid import PyramidPooling

__all__ = ["Bottleneck", "CspBlock", "Order", "ShortPyramid", "repconv_chain"]

Order = Literal["reduce-first", "reduce-last"]


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, and the input added where asked for.

    Args:
        width: Channels of input and output.
        hidden: Channels between the two.
        residual: Add the input.
        order: ``reduce-first`` ends in the 3x3 convolution, ``reduce-last`` in the 1x1.
        repconv: Make the 3x3 convolution a RepConv.
        repconv_identity: Whether that may have an identity.
        activation: After each convolution.
    """

    def __init__(
        self,
        width: int,
        *,
        hidden: int,
        residual: bool = True,
        order: Order = "reduce-first",
        repconv: bool = False,
        repconv_identity: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if order not in get_args(Order):
            raise RecipeError(
                f"no order is called {order!r}.{suggest(order, get_args(Order))} Known: {', '.join(get_args(Order))}"
            )

        def three(inputs: int, outputs: int) -> nn.Module:
            if repconv:
                return RepConv(inputs, outputs, identity=repconv_identity, activation=activation)
            return ConvBlock(inputs, outputs, 3, activation=activation)

        if order == "reduce-first":
            self.first: nn.Module = ConvBlock(width, hidden, activation=activation)
            self.second: nn.Module = three(hidden, width)
        else:
            self.first = three(width, hidden)
            self.second = ConvBlock(hidden, width, activation=activation)
        self.residual = residual

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the maps."""
        out_BCHW: Tensor = self.second(self.first(x_BCHW))
        return x_BCHW + out_BCHW if self.residual else out_BCHW


class CspBlock(nn.Module):
    """A chain of bottlenecks on one part of the channels, and a bypass beside it.

    Args:
        inputs: Channels of the input.
        outputs: Channels after the fusion.
        depth: Bottlenecks in the chain.
        split: ``input`` draws both parts from the input, each half as wide as the output; ``entry`` narrows it once to
            the width of the output, which both parts then have.
        transition: Put a 1x1 convolution behind the chain.
        residual: Bottlenecks add their input.
        order: Order within the bottlenecks.
        repconv: Make their 3x3 convolutions RepConvs.
        repconv_identity: Whether those may have an identity.
        activation: After each convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int,
        split: Literal["input", "entry"] = "input",
        transition: bool = False,
        residual: bool = True,
        order: Order = "reduce-first",
        repconv: bool = False,
        repconv_identity: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise RecipeError(f"depth must be at least 1, as a CSP block has bottlenecks, got {depth}")
        if split not in ("input", "entry"):
            raise RecipeError(f"split must be 'input' or 'entry', got {split!r}")
        width = outputs if split == "entry" else outputs // 2
        self.split_after_entry = split == "entry"
        self.entry = ConvBlock(inputs, width, activation=activation)
        self.bypass = ConvBlock(width if self.split_after_entry else inputs, width, activation=activation)
        self.chain = nn.Sequential(
            *(
                Bottleneck(
                    width,
                    hidden=width,
                    residual=residual,
                    order=order,
                    repconv=repconv,
                    repconv_identity=repconv_identity,
                    activation=activation,
                )
                for _ in range(depth)
            ),
            *([ConvBlock(width, width, activation=activation)] if transition else []),
        )
        self.fuse = ConvBlock(2 * width, outputs, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the fused maps."""
        entry_BCHW = self.entry(x_BCHW)
        bypass_BCHW = self.bypass(entry_BCHW if self.split_after_entry else x_BCHW)
        out: Tensor = self.fuse(torch.cat((self.chain(entry_BCHW), bypass_BCHW), dim=1))
        return out


class ShortPyramid(nn.Module):
    """Spatial pyramid pooling of half the channels, without bypass."""

    def __init__(self, inputs: int, outputs: int, *, activation: Activation = "silu") -> None:
        super().__init__()
        self.entry = ConvBlock(inputs, inputs // 2, activation=activation)
        self.pyramid = PyramidPooling()
        self.fuse = ConvBlock(4 * (inputs // 2), outputs, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the fused maps."""
        entry_BCHW = self.entry(x_BCHW)
        out: Tensor = self.fuse(torch.cat((entry_BCHW, *self.pyramid(entry_BCHW)), dim=1))
        return out


def repconv_chain(inputs: int, outputs: int, depth: int, activation: Activation) -> nn.Sequential:
    """Return RepConvs one after the other; all but a first one that changes the width have an identity."""
    if depth < 1:
        raise RecipeError(f"depth must be at least 1, as a chain has RepConvs, got {depth}")
    return nn.Sequential(
        *(RepConv(outputs if place else inputs, outputs, activation=activation) for place in range(depth))
    )
