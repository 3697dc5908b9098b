"""The neck of the YOLOv7 family: a spatial pyramid, then a path down and a path up, joined by ELANs.

References: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3 and figure 2; Liu et al., Path aggregation network
(2018), section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Neck
from detloom.structures import Extent, FeatureSpec, Role
from detloom_plugins.e_elan import GroupedElan, make_elan
from detloom_plugins.layers import (
    Activation,
    ConvBlock,
    Elan,
    RepConv,
    SummedElan,
    Taps,
    make_transition,
)
from detloom_plugins.spatial_pyramid import SppCsp, SppTiny

__all__ = ["ElanPanNeck"]


class ElanPanNeck(Neck):
    """Coarse levels inform fine ones, then fine ones inform coarse ones. The defaults are those of YOLOv7-tiny.

    Lists have one value for each level, finest first.

    Args:
        inputs: Levels, finest first, each half as fine as the one before.
        widths: Width of each level inside the neck; the last is that of the spatial pyramid.
        hidden: Width of the entries of each level's ELANs.
        outputs: Width of each level that is returned.
        output: A convolution before each returned level: conv or repconv.
        auxiliary: Width of each auxiliary level, 0 where there is none; empty for none at all. They are taken from the
            path down.
        partial_auxiliary: Where ELANs are summed, take auxiliary levels from the last branch alone, as published for
            YOLOv7-E6E (table 8), not from the whole sum.
        spp: The spatial pyramid: tiny, or csp.
        down: How the path up halves sizes: strided, two-branch or combined.
        depth: Convolutions in each chain.
        taps: Outputs of a chain that are fused: all, or even ones.
        chain_ratio: Width of a chain over that of its entry.
        branches: Aggregations summed in each ELAN; 2 is extended ELAN.
        grouped: Compute the branches as one aggregation with group convolutions: the same function in another form.
        repconv: Places in each chain, from 1, whose convolution is a RepConv.
        repconv_identity: Whether those have an identity branch.
        activation: silu, leaky-relu, relu or relu6.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "widths": Extent.WIDTH,
        "outputs": Extent.WIDTH,
        "auxiliary": Extent.WIDTH,
        "hidden": Extent.HIDDEN,
        "depth": Extent.DEPTH,
    }

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        *,
        widths: Sequence[int] = (64, 128, 256),
        hidden: Sequence[int] = (32, 64, 128),
        outputs: Sequence[int] = (128, 256, 512),
        output: Literal["conv", "repconv"] = "conv",
        auxiliary: Sequence[int] = (),
        partial_auxiliary: bool = True,
        spp: Literal["tiny", "csp"] = "tiny",
        down: Literal["strided", "two-branch", "combined"] = "strided",
        depth: int = 2,
        taps: Taps = "all",
        chain_ratio: float = 1.0,
        branches: int = 1,
        grouped: bool = False,
        repconv: Sequence[int] = (),
        repconv_identity: bool = True,
        activation: Activation = "leaky-relu",
    ) -> None:
        super().__init__()
        _check(inputs, widths=widths, hidden=hidden, outputs=outputs, auxiliary=auxiliary)

        def elan(width_in: int, level: int) -> Elan | SummedElan | GroupedElan:
            return make_elan(
                width_in,
                widths[level],
                hidden=hidden[level],
                chain_ratio=chain_ratio,
                depth=depth,
                taps=taps,
                branches=branches,
                is_grouped=grouped,
                repconv=repconv,
                repconv_identity=repconv_identity,
                activation=activation,
            )

        coarsest = len(inputs) - 1
        self.spp = _make_spp(spp, inputs[-1].channels, widths[-1], activation)
        self.top_down = nn.ModuleList(
            _Merge(
                reduce=ConvBlock(widths[level + 1], widths[level], activation=activation),
                lateral=ConvBlock(inputs[level].channels, widths[level], activation=activation),
                elan=elan(2 * widths[level], level),
            )
            for level in reversed(range(coarsest))
        )
        self.bottom_up = nn.ModuleList(
            _Descent(
                down=make_transition(down, widths[level - 1], widths[level], activation),
                elan=elan(2 * widths[level], level),
            )
            for level in range(1, coarsest + 1)
        )
        self.outputs = nn.ModuleList(
            _make_output(output, width, out, activation) for width, out in zip(widths, outputs, strict=True)
        )
        self.partial_auxiliary = partial_auxiliary
        self.auxiliary_levels = tuple(level for level, width in enumerate(auxiliary) if width)
        self.auxiliary = nn.ModuleList(
            ConvBlock(widths[level], auxiliary[level], 3, activation=activation) for level in self.auxiliary_levels
        )
        strides = [spec.stride for spec in inputs]
        self.out_specs = (
            *(FeatureSpec(width, stride) for width, stride in zip(outputs, strides, strict=True)),
            *(FeatureSpec(auxiliary[level], strides[level], Role.AUXILIARY) for level in self.auxiliary_levels),
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the lead levels, and in training mode the auxiliary ones after them."""
        x_BCHW: Tensor = self.spp(levels[-1])
        going_down = [x_BCHW]
        for_auxiliary = [x_BCHW]
        for step, merge in enumerate(self.top_down):
            x_BCHW, partial_BCHW = merge(x_BCHW, levels[-2 - step])
            going_down.insert(0, x_BCHW)
            for_auxiliary.insert(0, partial_BCHW if self.partial_auxiliary else x_BCHW)
        going_up = [x_BCHW]
        for step, descent in enumerate(self.bottom_up):
            x_BCHW = descent(x_BCHW, going_down[step + 1])
            going_up.append(x_BCHW)
        lead = [conv(level) for conv, level in zip(self.outputs, going_up, strict=True)]
        if not (self.training and len(self.auxiliary)):
            return tuple(lead)
        pairs = zip(self.auxiliary, self.auxiliary_levels, strict=True)
        return (*lead, *(conv(for_auxiliary[level]) for conv, level in pairs))


class _Merge(nn.Module):
    """A step down the pyramid: the coarser level, enlarged, joins a level of the backbone."""

    def __init__(self, *, reduce: nn.Module, lateral: nn.Module, elan: Elan | SummedElan | GroupedElan) -> None:
        super().__init__()
        self.reduce = reduce
        self.lateral = lateral
        self.elan = elan

    def forward(self, coarse_BCHW: Tensor, fine_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level, and what a partial auxiliary level is made of."""
        enlarged_BCHW = functional.interpolate(self.reduce(coarse_BCHW), scale_factor=2.0, mode="nearest")
        joined_BCHW = torch.cat((self.lateral(fine_BCHW), enlarged_BCHW), dim=1)
        if isinstance(self.elan, SummedElan | GroupedElan):
            return self.elan.sum_and_last(joined_BCHW)
        level_BCHW: Tensor = self.elan(joined_BCHW)
        return level_BCHW, level_BCHW


class _Descent(nn.Module):
    """A step up the pyramid's strides: the finer level, halved, joins a level of the path down."""

    def __init__(self, *, down: nn.Module, elan: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.elan = elan

    def forward(self, fine_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        """Return the level."""
        level_BCHW: Tensor = self.elan(torch.cat((self.down(fine_BCHW), coarse_BCHW), dim=1))
        return level_BCHW


def _make_spp(kind: str, inputs: int, outputs: int, activation: Activation) -> nn.Module:
    match kind:
        case "tiny":
            return SppTiny(inputs, outputs, activation=activation)
        case "csp":
            return SppCsp(inputs, outputs, activation=activation)
    raise RecipeError(f"spp must be 'tiny' or 'csp', got {kind!r}")


def _make_output(kind: str, inputs: int, outputs: int, activation: Activation) -> nn.Module:
    match kind:
        case "conv":
            return ConvBlock(inputs, outputs, 3, activation=activation)
        case "repconv":
            return RepConv(inputs, outputs, activation=activation)
    raise RecipeError(f"output must be 'conv' or 'repconv', got {kind!r}")


def _check(
    inputs: Sequence[FeatureSpec],
    *,
    widths: Sequence[int],
    hidden: Sequence[int],
    outputs: Sequence[int],
    auxiliary: Sequence[int],
) -> None:
    strides = [spec.stride for spec in inputs]
    if len(strides) < 2 or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise RecipeError(f"elan-pan needs at least two levels, each stride twice the one before, got {strides}")
    for name, values in (("widths", widths), ("hidden", hidden), ("outputs", outputs), ("auxiliary", auxiliary)):
        if len(values) != len(inputs) and not (name == "auxiliary" and not values):
            raise RecipeError(
                f"{name} needs one value for each of the backbone's {len(inputs)} levels (strides {strides}), "
                f"got {list(values)}"
            )
    if any(width < 0 for width in auxiliary):
        raise RecipeError(f"auxiliary must not be negative, 0 for none at a level, got {list(auxiliary)}")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the neck."""
    register("elan-pan", ElanPanNeck)
