"""Darknet with cross-stage partial stages, as in YOLOv4-CSP, YOLOR, YOLOv5 and YOLOX.

References: Wang et al., CSPNet (2020), section 3; Wang, Bochkovskiy and Liao, Scaled-YOLOv4 (2021), section 4.1; Ge et
al., YOLOX (2021), section 2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Backbone
from detloom.structures import Extent, FeatureSpec
from detloom_plugins.csp import Bottleneck, CspBlock, Order, ShortPyramid
from detloom_plugins.layers import Activation, ConvBlock, SpaceToDepth

__all__ = ["CspBackbone"]


class CspBackbone(Backbone):
    """A stem, then stages of a strided convolution and a partial block. The defaults are those of YOLOX-S.

    Args:
        stem: Kernel, stride and width of each convolution of the stem.
        space_to_depth: Start with a space-to-depth layer, which halves the size without loss.
        widths: Width of each stage.
        depths: Bottlenecks of each stage.
        plain_stages: How many stages, from the first, are plain residual bottlenecks, half as wide inside, in place of
            partial blocks.
        transition: Put a 1x1 convolution behind the chain of each partial block.
        last_residual: Whether the bottlenecks of the last stage add their input.
        pyramid: A spatial pyramid in the last stage: none, before its block, or after it.
        order: Order within the bottlenecks: reduce-first or reduce-last.
        repconv: Make the 3x3 convolutions of the bottlenecks RepConvs.
        repconv_identity: Whether those may have an identity.
        activation: silu, leaky-relu, relu or relu6.
        out_strides: Strides of the levels that are returned.
    """

    # The blocks are half as wide inside, whatever their width: nothing is hidden of its own.
    extents: ClassVar[Mapping[str, Extent]] = {
        "stem.*.2": Extent.WIDTH,
        "widths": Extent.WIDTH,
        "depths": Extent.DEPTH,
    }

    def __init__(
        self,
        *,
        stem: Sequence[Sequence[int]] = ((3, 1, 32),),
        space_to_depth: bool = True,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (1, 3, 3, 1),
        plain_stages: int = 0,
        transition: bool = False,
        last_residual: bool = False,
        pyramid: Literal["none", "before", "after"] = "before",
        order: Order = "reduce-first",
        repconv: bool = False,
        repconv_identity: bool = True,
        activation: Activation = "silu",
        out_strides: Sequence[int] = (8, 16, 32),
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise RecipeError(
                f"each stage needs one value of each list: widths has {len(widths)}, depths {len(depths)}"
            )
        if pyramid not in ("none", "before", "after"):
            raise RecipeError(f"pyramid must be 'none', 'before' or 'after', got {pyramid!r}")
        self.stem, channels, stride = make_stem(stem, space_to_depth=space_to_depth, activation=activation)
        stages: list[nn.Module] = []
        specs: list[FeatureSpec] = []
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            is_last = index == len(widths) - 1
            residual = last_residual or not is_last
            layers: list[nn.Module] = [ConvBlock(channels, width, 3, 2, activation=activation)]
            if is_last and pyramid == "before":
                layers.append(ShortPyramid(width, width, activation=activation))
            if index < plain_stages:
                layers += [
                    Bottleneck(
                        width,
                        hidden=width // 2,
                        residual=residual,
                        order=order,
                        repconv=repconv,
                        repconv_identity=repconv_identity,
                        activation=activation,
                    )
                    for _ in range(depth)
                ]
            else:
                layers.append(
                    CspBlock(
                        width,
                        width,
                        depth=depth,
                        transition=transition,
                        residual=residual,
                        order=order,
                        repconv=repconv,
                        repconv_identity=repconv_identity,
                        activation=activation,
                    )
                )
            if is_last and pyramid == "after":
                layers.append(ShortPyramid(width, width, activation=activation))
            stages.append(nn.Sequential(*layers))
            channels, stride = width, 2 * stride
            specs.append(FeatureSpec(channels, stride))
        self.stages = nn.ModuleList(stages)
        self.returned = chosen_levels(specs, out_strides)
        self.out_specs = tuple(specs[index] for index in self.returned)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""
        x_BCHW = self.stem(images_BCHW)
        outputs: list[Tensor] = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            outputs.append(x_BCHW)
        return tuple(outputs[index] for index in self.returned)


def make_stem(
    rows: Sequence[Sequence[int]], *, space_to_depth: bool, activation: Activation
) -> tuple[nn.Sequential, int, int]:
    """Return a stem, its width and its stride; each row is kernel, stride and width of a convolution."""
    layers: list[nn.Module] = [SpaceToDepth()] if space_to_depth else []
    channels, stride = (12, 2) if space_to_depth else (3, 1)
    for row in rows:
        if len(row) != 3:
            raise RecipeError(f"a convolution of the stem is [kernel, stride, width], got {list(row)}")
        kernel, step, width = row
        layers.append(ConvBlock(channels, width, kernel, step, activation=activation))
        channels, stride = width, stride * step
    return nn.Sequential(*layers), channels, stride


def chosen_levels(specs: Sequence[FeatureSpec], out_strides: Sequence[int]) -> tuple[int, ...]:
    """Return which of the levels made have the strides asked for."""
    made = {spec.stride: index for index, spec in enumerate(specs)}
    if not set(out_strides) <= set(made) or list(out_strides) != sorted(out_strides):
        raise RecipeError(f"out_strides must be ascending and among {sorted(made)}, got {list(out_strides)}")
    return tuple(made[wanted] for wanted in out_strides)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone."""
    register("csp", CspBackbone)
