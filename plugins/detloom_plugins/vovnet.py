"""VoVNet with cross-stage partial connections: one-shot aggregation on half of the channels.

References: Lee et al., VoVNet (2019), section 3, for one-shot aggregation; Wang, Bochkovskiy and Liao, Scaled-YOLOv4
(2021), section 4.2, "CSPOSANet" with partial computation in one computational block; Wang, Bochkovskiy and Liao, YOLOv7
(2022), figure 2 (b).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Backbone
from detloom.structures import Extent, FeatureSpec
from detloom_plugins.csp_backbone import chosen_levels, make_stem
from detloom_plugins.layers import Activation, ConvBlock

__all__ = ["CspVovnetBackbone", "PartialAggregation"]


class PartialAggregation(nn.Module):
    """One-shot aggregation of half the channels; what it yields stands beside what it is made from.

    Args:
        width: Channels of the input, and of what is yielded.
        depth: 3x3 convolutions in the chain, all of which are aggregated.
        activation: After each convolution.
    """

    def __init__(self, width: int, *, depth: int = 2, activation: Activation = "leaky-relu") -> None:
        super().__init__()
        if depth < 1 or width % 2:
            raise RecipeError(f"aggregating half needs a depth of at least 1 and an even width, got {depth}, {width}")
        self.entry = ConvBlock(width, width, 3, activation=activation)
        half = width // 2
        self.chain = nn.ModuleList(ConvBlock(half, half, 3, activation=activation) for _ in range(depth))
        self.fuse = ConvBlock(depth * half, width, activation=activation)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return entry and aggregate together, and the aggregate alone."""
        entry_BCHW = self.entry(x_BCHW)
        link_BCHW = entry_BCHW.chunk(2, dim=1)[1]
        links: list[Tensor] = []
        for conv in self.chain:
            link_BCHW = conv(link_BCHW)
            links.insert(0, link_BCHW)
        aggregate_BCHW = self.fuse(torch.cat(links, dim=1))
        return torch.cat((entry_BCHW, aggregate_BCHW), dim=1), aggregate_BCHW


class CspVovnetBackbone(Backbone):
    """A stem, then stages of a partial aggregation and pooling, then a convolution. The defaults are YOLOv4-tiny's.

    Levels of the stages are the aggregates alone, the last level is that of the convolution.

    Args:
        stem: Kernel, stride and width of each convolution of the stem; the last width is that of the first stage.
        stages: How many stages there are, each twice as wide as the one before.
        depth: 3x3 convolutions of each stage's chain.
        activation: silu, leaky-relu, relu or relu6.
        out_strides: Strides of the levels that are returned.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "stem.*.2": Extent.WIDTH,
        "depth": Extent.DEPTH,
    }

    def __init__(
        self,
        *,
        stem: Sequence[Sequence[int]] = ((3, 2, 32), (3, 2, 64)),
        stages: int = 3,
        depth: int = 2,
        activation: Activation = "leaky-relu",
        out_strides: Sequence[int] = (16, 32),
    ) -> None:
        super().__init__()
        if stages < 1 or not stem:
            raise RecipeError(f"stages must be at least 1, and stem not empty, got {stages} and {list(stem)}")
        self.stem, width, stride = make_stem(stem, space_to_depth=False, activation=activation)
        self.pool = nn.MaxPool2d(2, 2)
        blocks, specs = [], []
        for _ in range(stages):
            blocks.append(PartialAggregation(width, depth=depth, activation=activation))
            specs.append(FeatureSpec(width, stride))
            width, stride = 2 * width, 2 * stride
        self.stages = nn.ModuleList(blocks)
        self.last = ConvBlock(width, width, 3, activation=activation)
        specs.append(FeatureSpec(width, stride))
        self.returned = chosen_levels(specs, out_strides)
        self.out_specs = tuple(specs[index] for index in self.returned)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""
        x_BCHW = self.stem(images_BCHW)
        outputs: list[Tensor] = []
        for block in self.stages:
            joined_BCHW, aggregate_BCHW = block(x_BCHW)
            outputs.append(aggregate_BCHW)
            x_BCHW = self.pool(joined_BCHW)
        outputs.append(self.last(x_BCHW))
        return tuple(outputs[index] for index in self.returned)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone."""
    register("csp-vovnet", CspVovnetBackbone)
