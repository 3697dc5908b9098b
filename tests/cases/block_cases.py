"""Small networks of one computational block each, between a layer ``stem`` and a layer ``head``."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "BLOCKS",
    "Csp",
    "CspVov",
    "Dense",
    "ExtendedElan",
    "LayerAggregation",
    "Network",
    "Plain",
    "Residual",
    "TwoElans",
    "Vov",
    "one_map",
]

WIDTH = 8


def conv(inputs: int = WIDTH, outputs: int = WIDTH, groups: int = 1) -> nn.Sequential:
    """Return a layer as detectors have them: convolution, norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


class Plain(nn.Module):
    """A chain."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.chain = nn.ModuleList(conv() for _ in range(depth))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for layer in self.chain:
            x_BCHW = layer(x_BCHW)
        return x_BCHW


class Residual(Plain):
    """A chain with an identity around each two layers."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for first, second in zip(self.chain[::2], self.chain[1::2], strict=True):
            x_BCHW = x_BCHW + second(first(x_BCHW))
        return x_BCHW


class Dense(nn.Module):
    """Each layer reads the input and all layers before it, and so does what follows."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.chain = nn.ModuleList(conv(WIDTH * (place + 1)) for place in range(depth))
        self.outputs = WIDTH * (depth + 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for layer in self.chain:
            x_BCHW = torch.cat((x_BCHW, layer(x_BCHW)), dim=1)
        return x_BCHW


class Csp(nn.Module):
    """A dense block on one half of the channels and a transition behind it; the other half goes around both."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        half = WIDTH // 2
        self.chain = nn.ModuleList(conv(half * (place + 1), half) for place in range(depth))
        self.transition = conv(half * (depth + 1), half)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        around_BCHW, x_BCHW = x_BCHW.chunk(2, dim=1)
        for layer in self.chain:
            x_BCHW = torch.cat((x_BCHW, layer(x_BCHW)), dim=1)
        return torch.cat((around_BCHW, self.transition(x_BCHW)), dim=1)


class Vov(nn.Module):
    """A chain whose layers are aggregated once, with the input, by a fusing layer."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.chain = nn.ModuleList(conv() for _ in range(depth))
        self.fuse = conv(WIDTH * (depth + 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts = [x_BCHW]
        for layer in self.chain:
            parts.append(layer(parts[-1]))
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


class CspVov(nn.Module):
    """An entry, of which one half goes through a chain that is aggregated once."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        half = WIDTH // 2
        self.entry = conv()
        self.chain = nn.ModuleList(conv(half, half) for _ in range(depth))
        self.fuse = conv(half * (depth + 2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts = list(self.entry(x_BCHW).chunk(2, dim=1))
        for layer in self.chain:
            parts.append(layer(parts[-1]))
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


class LayerAggregation(nn.Module):
    """ELAN: a bypass, an entry, and a chain of which each second layer is fused with both."""

    def __init__(self, depth: int = 4, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        wide = WIDTH * groups
        self.bypass, self.entry = conv(WIDTH, wide), conv(WIDTH, wide)
        self.chain = nn.ModuleList(conv(wide, wide, groups) for _ in range(depth))
        self.fuse = conv(wide * (depth // 2 + 2), wide, groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        link_BCHW = self.entry(x_BCHW)
        parts = [self.bypass(x_BCHW), link_BCHW]
        for place, layer in enumerate(self.chain, start=1):
            link_BCHW = layer(link_BCHW)
            if place % 2 == 0:
                parts.append(link_BCHW)
        return self.fused(parts)

    def fused(self, parts: list[Tensor]) -> Tensor:
        """Return what the parts are fused to."""
        fused: Tensor = self.fuse(torch.cat(parts, dim=1))
        return fused


class ExtendedElan(LayerAggregation):
    """E-ELAN: cardinality is expanded by group convolutions, shuffled group by group, and merged by addition."""

    def __init__(self, depth: int = 4, groups: int = 2) -> None:
        super().__init__(depth, groups)

    def fused(self, parts: list[Tensor]) -> Tensor:
        """Return the sum of the groups of the fused parts."""
        shuffled_BGCHW = torch.cat([self.by_group(part) for part in parts], dim=2)
        return self.by_group(self.fuse(shuffled_BGCHW.flatten(1, 2))).sum(dim=1)

    def by_group(self, x_BCHW: Tensor) -> Tensor:
        """Return the channels of each group for themselves."""
        batch, channels, height, width = x_BCHW.shape
        return x_BCHW.reshape(batch, self.groups, channels // self.groups, height, width)


class TwoElans(nn.Module):
    """E-ELAN in its other form: two aggregations of the same input, added."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(LayerAggregation() for _ in range(2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first, second = self.branches
        out_BCHW: Tensor = first(x_BCHW)
        out_BCHW += second(x_BCHW)
        return out_BCHW


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "dense": Dense,
    "CSP": Csp,
    "VoV": Vov,
    "ELAN": LayerAggregation,
    "E-ELAN": ExtendedElan,
}


class Network(nn.Module):
    """Blocks between a first and a last layer."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(getattr(blocks[-1], "outputs", WIDTH) if blocks else WIDTH, WIDTH, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(images_BCHW)))
        return out


def one_map(made: Any) -> Iterator[tuple[str, Tensor]]:
    """Name the only result of a network."""
    yield "map", made
