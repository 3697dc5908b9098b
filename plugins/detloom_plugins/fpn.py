"""A small feature pyramid: from the coarsest level down, with one convolution before each output.

References: Lin et al., Feature pyramid networks (2017), section 3; Wang, Bochkovskiy and Liao, Scaled-YOLOv4 (2021),
section 4.2, for the form of YOLOv4-tiny.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Neck
from detloom.structures import Extent, FeatureSpec, Role
from detloom_plugins.layers import Activation, ConvBlock

__all__ = ["FpnNeck"]


class FpnNeck(Neck):
    """Coarse levels, narrowed and enlarged, stand beside finer ones. The defaults are those of YOLOv4-tiny.

    Args:
        inputs: Levels, finest first, each half as fine as the one before.
        top: Width to which the coarsest level is narrowed.
        reduced: Width of what each level but the finest hands down, finest receiver first.
        outputs: Width of each level that is returned, finest first.
        auxiliary: Width of each auxiliary level, finest first, 0 where there is none; empty for none at all. They
            are made of what the returned levels are made of, by a convolution of their own.
        activation: silu, leaky-relu, relu or relu6.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "top": Extent.WIDTH,
        "reduced": Extent.WIDTH,
        "outputs": Extent.WIDTH,
        "auxiliary": Extent.WIDTH,
    }

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        *,
        top: int = 256,
        reduced: Sequence[int] = (128,),
        outputs: Sequence[int] = (256, 512),
        auxiliary: Sequence[int] = (),
        activation: Activation = "leaky-relu",
    ) -> None:
        super().__init__()
        strides = [spec.stride for spec in inputs]
        if not strides or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise RecipeError(f"fpn needs levels of which each stride is twice the one before, got {strides}")
        if len(outputs) != len(strides) or len(reduced) != len(strides) - 1:
            raise RecipeError(
                f"for levels of strides {strides} outputs needs {len(strides)} values and reduced {len(strides) - 1}, "
                f"got {list(outputs)} and {list(reduced)}"
            )
        if len(auxiliary) not in (0, len(strides)) or any(width < 0 for width in auxiliary):
            raise RecipeError(
                f"auxiliary needs one width for each of the levels of strides {strides}, 0 for none, or none at all, "
                f"got {list(auxiliary)}"
            )
        if top < 1:
            raise RecipeError(f"top must be at least 1 channel wide, got {top}")
        self.top = ConvBlock(inputs[-1].channels, top, activation=activation)
        # What a level hands down is what its output is made from at the top, and its output below.
        givers = [*outputs[1:-1], top] if len(strides) > 1 else []
        self.reduce = nn.ModuleList(
            ConvBlock(giver, width, activation=activation) for giver, width in zip(givers, reduced, strict=True)
        )
        joined = [spec.channels + width for spec, width in zip(inputs[:-1], reduced, strict=True)]
        self.outputs = nn.ModuleList(
            ConvBlock(width, out, 3, activation=activation) for width, out in zip([*joined, top], outputs, strict=True)
        )
        self.auxiliary_levels = tuple(level for level, width in enumerate(auxiliary) if width)
        self.auxiliary = nn.ModuleList(
            ConvBlock([*joined, top][level], auxiliary[level], 3, activation=activation)
            for level in self.auxiliary_levels
        )
        self.out_specs = (
            *(FeatureSpec(width, stride) for width, stride in zip(outputs, strides, strict=True)),
            *(FeatureSpec(auxiliary[level], strides[level], Role.AUXILIARY) for level in self.auxiliary_levels),
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the lead levels, and in training mode the auxiliary ones after them."""
        handed_BCHW = self.top(levels[-1])
        joined = [handed_BCHW]
        made = [self.outputs[-1](handed_BCHW)]
        for index in reversed(range(len(levels) - 1)):
            enlarged_BCHW = functional.interpolate(self.reduce[index](handed_BCHW), scale_factor=2.0, mode="nearest")
            joined.insert(0, torch.cat((enlarged_BCHW, levels[index]), dim=1))
            handed_BCHW = self.outputs[index](joined[0])
            made.insert(0, handed_BCHW)
        if not (self.training and len(self.auxiliary)):
            return tuple(made)
        pairs = zip(self.auxiliary, self.auxiliary_levels, strict=True)
        return (*made, *(conv(joined[level]) for conv, level in pairs))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the neck."""
    register("fpn", FpnNeck)
