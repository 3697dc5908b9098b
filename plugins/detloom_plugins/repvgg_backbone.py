"""A backbone of RepConvs one after the other, as in YOLOv6.

References: Ding et al., RepVGG (2021), section 3; Li et al., YOLOv6 (2022), section 2.1, "EfficientRep".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Backbone
from detloom.structures import Extent, FeatureSpec
from detloom_plugins.csp import ShortPyramid, repconv_chain
from detloom_plugins.csp_backbone import chosen_levels
from detloom_plugins.layers import Activation, RepConv

__all__ = ["RepVggBackbone"]


class RepVggBackbone(Backbone):
    """A strided RepConv, then stages of a strided RepConv and a chain of them. The defaults are those of YOLOv6-S.

    Args:
        stem: Width of the stem.
        widths: Width of each stage.
        depths: RepConvs of each stage beside the strided one.
        pyramid: Put a spatial pyramid behind the last stage.
        activation: silu, leaky-relu, relu or relu6.
        out_strides: Strides of the levels that are returned.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "stem": Extent.WIDTH,
        "widths": Extent.WIDTH,
        "depths": Extent.DEPTH,
    }

    def __init__(
        self,
        *,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 6, 2),
        pyramid: bool = True,
        activation: Activation = "relu",
        out_strides: Sequence[int] = (8, 16, 32),
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise RecipeError(
                f"each stage needs one value of each list: widths has {len(widths)}, depths {len(depths)}"
            )
        if stem < 1:
            raise RecipeError(f"stem must be at least 1 channel wide, got {stem}")
        self.stem = RepConv(3, stem, 2, activation=activation)
        channels, stages = stem, []
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            layers: list[nn.Module] = [
                RepConv(channels, width, 2, activation=activation),
                repconv_chain(width, width, depth, activation),
            ]
            if pyramid and index == len(widths) - 1:
                layers.append(ShortPyramid(width, width, activation=activation))
            stages.append(nn.Sequential(*layers))
            channels = width
        self.stages = nn.ModuleList(stages)
        specs = [FeatureSpec(width, 2 ** (index + 2)) for index, width in enumerate(widths)]
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


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone."""
    register("repvgg", RepVggBackbone)
