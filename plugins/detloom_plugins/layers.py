"""The vocabulary of the YOLOv7 family: convolutions, ELAN and transitions.

Every layer keeps the order of its parts from the published graphs, so that weights can be mapped by position.
Concatenations put the deepest part first.

References: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3 and figure 2; Wang, Liao and Yeh, Designing network
design strategies through gradient path analysis (2022), for ELAN; Ding et al., RepVGG (2021), section 3, for RepConv.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detloom.errors import RecipeError, suggest

__all__ = [
    "Activation",
    "ConvBlock",
    "Elan",
    "RepConv",
    "SpaceToDepth",
    "SummedElan",
    "Taps",
    "Transition",
    "TwoBranchTransition",
    "make_activation",
    "make_transition",
]

Activation = Literal["silu", "leaky-relu", "relu", "relu6"]
Taps = Literal["all", "even"]
Transition = Literal["none", "pool", "strided", "two-branch", "combined"]

# In-place is safe: neither convolution nor normalisation needs its own output for its gradient.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": lambda: nn.SiLU(inplace=True),
    "leaky-relu": lambda: nn.LeakyReLU(0.1, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
}


def make_activation(name: Activation) -> nn.Module:
    """Return a new activation; the slope of ``leaky-relu`` is 0.1."""
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise RecipeError(f"no activation is called {name!r}.{suggest(name, _ACTIVATIONS)} Known: {known}")
    return _ACTIVATIONS[name]()


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class ConvBlock(nn.Module):
    """A convolution without bias that keeps the size, or divides it by the stride; batch norm; an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = _batch_norm(outputs)
        self.act = make_activation(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the activated maps."""
        out: Tensor = self.act(self.bn(self.conv(x_BCHW)))
        return out


class RepConv(nn.Module):
    """Parallel 3x3 and 1x1 convolutions and, where shapes allow, an identity, each normalised; activated as a sum.

    ``identity=False`` is RepConvN, for places where a residual or a concatenation already carries the input.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        groups: int = 1,
        identity: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        self.bn3 = _batch_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride, 0, groups=groups, bias=False)
        self.bn1 = _batch_norm(outputs)
        self.identity = _batch_norm(outputs) if identity and inputs == outputs and stride == 1 else None
        self.act = make_activation(activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the activated sum of the branches."""
        total_BCHW = self.bn3(self.conv3(x_BCHW)) + self.bn1(self.conv1(x_BCHW))
        if self.identity is not None:
            total_BCHW = total_BCHW + self.identity(x_BCHW)
        out: Tensor = self.act(total_BCHW)
        return out


class Elan(nn.Module):
    """Efficient layer aggregation: a bypass, an entry, and a chain of 3x3 convolutions that is tapped on its way.

    The taps from the deepest up, the entry and the bypass are concatenated and fused by a 1x1 convolution.

    Args:
        inputs: Channels of the input.
        outputs: Channels after the fusion.
        hidden: Channels of bypass and entry.
        width: Channels of the chain.
        depth: Convolutions in the chain.
        taps: ``all`` of the chain's outputs are fused, or each second one, ``even``.
        repconv: Places in the chain, from 1, whose convolution is a RepConv.
        repconv_identity: Whether those have an identity branch; false is RepConvN.
        activation: After each convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int,
        width: int,
        depth: int = 4,
        taps: Taps = "even",
        repconv: Sequence[int] = (),
        repconv_identity: bool = True,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise RecipeError(f"depth must be at least 1, got {depth}")
        if taps not in ("all", "even"):
            raise RecipeError(f"taps must be 'all' or 'even', got {taps!r}")
        if taps == "even" and depth % 2:
            raise RecipeError(f"taps = 'even' needs an even depth, got {depth}; taps = 'all' takes any")
        if not set(repconv) <= set(range(1, depth + 1)):
            raise RecipeError(f"repconv must name places of the chain, 1 to {depth}, got {list(repconv)}")
        step = 1 if taps == "all" else 2
        self.tapped = tuple(reversed(range(step - 1, depth, step)))
        self.bypass = ConvBlock(inputs, hidden, activation=activation)
        self.entry = ConvBlock(inputs, hidden, activation=activation)
        self.chain = nn.ModuleList(
            RepConv(before, width, identity=repconv_identity, activation=activation)
            if place in repconv
            else ConvBlock(before, width, 3, activation=activation)
            for place, before in enumerate([hidden, *[width] * (depth - 1)], start=1)
        )
        self.fuse = ConvBlock(len(self.tapped) * width + 2 * hidden, outputs, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the fused maps."""
        bypass_BCHW = self.bypass(x_BCHW)
        entry_BCHW = self.entry(x_BCHW)
        links = []
        link_BCHW = entry_BCHW
        for conv in self.chain:
            link_BCHW = conv(link_BCHW)
            links.append(link_BCHW)
        out: Tensor = self.fuse(torch.cat([*(links[i] for i in self.tapped), entry_BCHW, bypass_BCHW], dim=1))
        return out


class SummedElan(nn.Module):
    """Extended ELAN in its two-branch form: aggregations of the same input with weights of their own, summed."""

    def __init__(self, branches: list[Elan]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the sum of the branches."""
        return self.sum_and_last(x_BCHW)[0]

    def sum_and_last(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum, and the last branch alone, which partial auxiliary heads read."""
        first, *others = self.branches
        total_BCHW: Tensor = first(x_BCHW)
        last_BCHW = total_BCHW
        for branch in others:
            last_BCHW = branch(x_BCHW)
            total_BCHW = total_BCHW + last_BCHW
        return total_BCHW, last_BCHW


class TwoBranchTransition(nn.Module):
    """Halve the size twice over: by a strided convolution and by pooling, each giving half of the channels.

    Args:
        inputs: Channels of the input.
        outputs: Channels of both branches together.
        projection: Channels before the strided convolution.
        activation: After each convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, projection: int, activation: Activation = "silu") -> None:
        super().__init__()
        if outputs % 2:
            raise RecipeError(f"a transition of two branches needs an even width, got {outputs}")
        self.pool = nn.MaxPool2d(2, 2)
        self.pooled = ConvBlock(inputs, outputs // 2, activation=activation)
        self.project = ConvBlock(inputs, projection, activation=activation)
        self.strided = ConvBlock(projection, outputs // 2, 3, 2, activation=activation)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the strided half, then the pooled one."""
        pooled_BCHW = self.pooled(self.pool(x_BCHW))
        return torch.cat((self.strided(self.project(x_BCHW)), pooled_BCHW), dim=1)


def make_transition(kind: Transition, inputs: int, outputs: int, activation: Activation) -> nn.Module:
    """Return what leads from a stage to the next.

    ``pool`` halves the size and keeps the channels; ``strided`` is one 3x3 convolution; ``two-branch`` joins a strided
    and a pooled branch, each half as wide; ``combined`` does the same with a wide projection; ``none`` does nothing.
    """
    match kind:
        case "strided":
            return ConvBlock(inputs, outputs, 3, 2, activation=activation)
        case "two-branch":
            return TwoBranchTransition(inputs, outputs, projection=outputs // 2, activation=activation)
        case "combined":
            return TwoBranchTransition(inputs, outputs, projection=inputs, activation=activation)
        case "none" | "pool":
            if inputs != outputs:
                raise RecipeError(f"transition {kind!r} keeps its {inputs} channels, it cannot make {outputs}")
            return nn.MaxPool2d(2, 2) if kind == "pool" else nn.Identity()
    known = ("none", "pool", "strided", "two-branch", "combined")
    raise RecipeError(f"no transition is called {kind!r}.{suggest(kind, known)} Known: {', '.join(known)}")


class SpaceToDepth(nn.Module):
    """Turn each square of 2x2 pixels into four times the channels: the phases down each column, then across."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the phases (row, column) = (0, 0), (1, 0), (0, 1), (1, 1)."""
        phases = [x_BCHW[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.cat(phases, dim=1)
