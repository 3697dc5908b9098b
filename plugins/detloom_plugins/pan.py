"""A path down the pyramid and a path up, joined by partial blocks or by RepConvs.

References: Liu et al., Path aggregation network (2018), section 3; Wang, Bochkovskiy and Liao, Scaled-YOLOv4 (2021),
section 4.1, for partial blocks; Li et al., YOLOv6 (2022), section 2.2, for RepConvs.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Neck
from detloom.structures import Extent, FeatureSpec, Role
from detloom_plugins.csp import CspBlock, repconv_chain
from detloom_plugins.layers import Activation, ConvBlock
from detloom_plugins.spatial_pyramid import SppCsp

__all__ = ["PanNeck"]

BLOCKS = ("csp", "csp-entry", "repconv")


class PanNeck(Neck):
    """Coarse levels inform fine ones, then fine ones inform coarse ones. The defaults are those of YOLOX-S.

    Lists have one value for each level, finest first.

    Args:
        inputs: Levels, finest first, each half as fine as the one before.
        widths: Width of each level inside the neck.
        block: What joins two levels: csp, csp-entry (split after an entry) or repconv (a chain of RepConvs).
        depth: Bottlenecks or RepConvs of each block.
        pyramid: Start with a spatial pyramid in a partial block.
        lateral: Narrow the backbone's levels to the width of the neck before they are joined.
        enlarge: How levels are enlarged: nearest, or transposed (a learned convolution).
        upward: What a level on the path up is joined with: reduced (what the level handed down) or merged (the level
            of the path down).
        outputs: Width of a 3x3 convolution before each returned level; empty for none.
        auxiliary: Width of each auxiliary level, 0 where there is none; empty for none at all. They are taken from the
            path down, by a 3x3 convolution.
        activation: silu, leaky-relu, relu or relu6.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "widths": Extent.WIDTH,
        "outputs": Extent.WIDTH,
        "auxiliary": Extent.WIDTH,
        "depth": Extent.DEPTH,
    }

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        *,
        widths: Sequence[int] = (128, 256, 512),
        block: Literal["csp", "csp-entry", "repconv"] = "csp",
        depth: int = 1,
        pyramid: bool = False,
        lateral: bool = False,
        enlarge: Literal["nearest", "transposed"] = "nearest",
        upward: Literal["reduced", "merged"] = "reduced",
        outputs: Sequence[int] = (),
        auxiliary: Sequence[int] = (),
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        _check(inputs, widths=widths, outputs=outputs, auxiliary=auxiliary, block=block, enlarge=enlarge, upward=upward)

        def join(channels: int, width: int) -> nn.Module:
            if block == "repconv":
                return repconv_chain(channels, width, depth, activation)
            split: Literal["input", "entry"] = "entry" if block == "csp-entry" else "input"
            return CspBlock(channels, width, depth=depth, split=split, residual=False, activation=activation)

        coarsest = len(inputs) - 1
        self.takes_merged = upward == "merged"
        top = widths[-1] if pyramid else inputs[-1].channels
        self.pyramid = SppCsp(inputs[-1].channels, top, activation=activation) if pyramid else nn.Identity()
        self.top_down = nn.ModuleList(
            _Merge(
                reduce=ConvBlock(
                    widths[level + 1] if level + 1 < coarsest else top, widths[level], activation=activation
                ),
                enlarge=_enlarge(enlarge, widths[level]),
                lateral=ConvBlock(inputs[level].channels, widths[level], activation=activation)
                if lateral
                else nn.Identity(),
                block=join(widths[level] + (widths[level] if lateral else inputs[level].channels), widths[level]),
            )
            for level in reversed(range(coarsest))
        )
        kept = [*widths[:-1], top]
        self.bottom_up = nn.ModuleList(
            _Descent(
                down=ConvBlock(widths[level - 1], widths[level - (not self.takes_merged)], 3, 2, activation=activation),
                block=join(
                    widths[level] + kept[level] if self.takes_merged else 2 * widths[level - 1],
                    widths[level],
                ),
            )
            for level in range(1, coarsest + 1)
        )
        self.outputs = nn.ModuleList(
            ConvBlock(width, out, 3, activation=activation) for width, out in zip(widths, outputs, strict=bool(outputs))
        )
        self.auxiliary_levels = tuple(level for level, width in enumerate(auxiliary) if width)
        self.auxiliary = nn.ModuleList(
            ConvBlock(kept[level], auxiliary[level], 3, activation=activation) for level in self.auxiliary_levels
        )
        self.out_specs = (
            *(FeatureSpec(width, spec.stride) for width, spec in zip(outputs or widths, inputs, strict=True)),
            *(FeatureSpec(auxiliary[level], inputs[level].stride, Role.AUXILIARY) for level in self.auxiliary_levels),
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the lead levels, and in training mode the auxiliary ones after them."""
        x_BCHW: Tensor = self.pyramid(levels[-1])
        merged: list[Tensor] = [x_BCHW]
        reduced: list[Tensor] = []
        for step, merge in enumerate(self.top_down):
            x_BCHW, reduced_BCHW = merge(x_BCHW, levels[-2 - step])
            merged.insert(0, x_BCHW)
            reduced.insert(0, reduced_BCHW)
        beside = merged[1:] if self.takes_merged else reduced
        made = [x_BCHW]
        for descent, other_BCHW in zip(self.bottom_up, beside, strict=True):
            x_BCHW = descent(x_BCHW, other_BCHW)
            made.append(x_BCHW)
        if len(self.outputs):
            made = [conv(level) for conv, level in zip(self.outputs, made, strict=True)]
        if not (self.training and len(self.auxiliary)):
            return tuple(made)
        pairs = zip(self.auxiliary, self.auxiliary_levels, strict=True)
        return (*made, *(conv(merged[level]) for conv, level in pairs))


class _Merge(nn.Module):
    """A step down the pyramid: the coarser level, narrowed and enlarged, joins a level of the backbone."""

    def __init__(self, *, reduce: nn.Module, enlarge: nn.Module, lateral: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.reduce = reduce
        self.enlarge = enlarge
        self.lateral = lateral
        self.block = block

    def forward(self, coarse_BCHW: Tensor, fine_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the level, and the coarser one as it was narrowed."""
        reduced_BCHW: Tensor = self.reduce(coarse_BCHW)
        joined_BCHW = torch.cat((self.enlarge(reduced_BCHW), self.lateral(fine_BCHW)), dim=1)
        return self.block(joined_BCHW), reduced_BCHW


class _Descent(nn.Module):
    """A step up the pyramid's strides: the finer level, halved, joins a level of the path down."""

    def __init__(self, *, down: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.block = block

    def forward(self, fine_BCHW: Tensor, coarse_BCHW: Tensor) -> Tensor:
        """Return the level."""
        level_BCHW: Tensor = self.block(torch.cat((self.down(fine_BCHW), coarse_BCHW), dim=1))
        return level_BCHW


def _enlarge(kind: str, width: int) -> nn.Module:
    if kind == "transposed":
        return nn.ConvTranspose2d(width, width, 2, 2)
    return nn.Upsample(scale_factor=2.0, mode="nearest")


def _check(
    inputs: Sequence[FeatureSpec],
    *,
    widths: Sequence[int],
    outputs: Sequence[int],
    auxiliary: Sequence[int],
    block: str,
    enlarge: str,
    upward: str,
) -> None:
    strides = [spec.stride for spec in inputs]
    if len(strides) < 2 or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise RecipeError(f"pan needs at least two levels, each stride twice the one before, got {strides}")
    for name, values in (("widths", widths), ("outputs", outputs), ("auxiliary", auxiliary)):
        if len(values) != len(inputs) and (values or name == "widths"):
            raise RecipeError(
                f"{name} needs one value for each of the backbone's {len(inputs)} levels (strides {strides}), "
                f"got {list(values)}"
            )
    if any(width < 0 for width in auxiliary):
        raise RecipeError(f"auxiliary must not be negative, 0 for none at a level, got {list(auxiliary)}")
    for name, value, known in (
        ("block", block, BLOCKS),
        ("enlarge", enlarge, ("nearest", "transposed")),
        ("upward", upward, ("reduced", "merged")),
    ):
        if value not in known:
            raise RecipeError(f"{name} must be one of {', '.join(known)}, got {value!r}")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the neck."""
    register("pan", PanNeck)
