"""A feature pyramid: coarse levels are enlarged and added to finer ones.

Reference: Lin et al., Feature pyramid networks (2017), section 3.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from detloom import hookimpl
from detloom.errors import RecipeError
from detloom.interfaces import Neck
from detloom.structures import FeatureSpec

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(Neck):
    """All levels come out with the same width.

    Args:
        inputs: Levels, finest first, each half as fine as the one before.
        width: Channels of every level that is returned.
    """

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 128) -> None:
        super().__init__()
        strides = [spec.stride for spec in inputs]
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise RecipeError(f"it needs levels of which each stride is twice the one before, got {strides}")
        if width < 1:
            raise RecipeError(f"width must be at least 1, got {width}")
        self.lateral = nn.ModuleList(nn.Conv2d(spec.channels, width, 1) for spec in inputs)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in inputs)
        self.out_specs = tuple(FeatureSpec(width, stride) for stride in strides)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one tensor for each level, finest first."""
        narrow = [conv(level) for conv, level in zip(self.lateral, levels, strict=True)]
        summed = [narrow[-1]]
        for finer in reversed(narrow[:-1]):
            summed.append(finer + functional.interpolate(summed[-1], scale_factor=2.0))
        return tuple(conv(level) for conv, level in zip(self.outputs, reversed(summed), strict=True))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the neck under the name that recipes use."""
    register("new-component", NewComponent)
