"""A plain backbone: each stage halves the picture with one strided convolution.

Reference: Simonyan and Zisserman, Very deep convolutional networks (2015), section 2.1, for stacks of 3x3 convolutions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from detloom import hookimpl
from detloom.errors import RecipeError
from detloom.interfaces import Backbone
from detloom.structures import FeatureSpec

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1

NUM_LEVELS = 3


class NewComponent(Backbone):
    """A stage for each width; the last three are returned.

    Args:
        widths: Channels of each stage: the strides are 2, 4, 8 and so on.
    """

    def __init__(self, *, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        if len(widths) < NUM_LEVELS or min(widths) < 1:
            raise RecipeError(f"widths needs at least {NUM_LEVELS} values of at least 1, got {list(widths)}")
        self.stages = nn.ModuleList(_stage(channels, width) for channels, width in pairwise((3, *widths)))
        specs = [FeatureSpec(width, 2 ** (index + 1)) for index, width in enumerate(widths)]
        self.out_specs = tuple(specs[-NUM_LEVELS:])

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""
        level_BCHW = images_BCHW
        levels = []
        for stage in self.stages:
            level_BCHW = stage(level_BCHW)
            levels.append(level_BCHW)
        return tuple(levels[-NUM_LEVELS:])


def _stage(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone under the name that recipes use."""
    register("new-component", NewComponent)
