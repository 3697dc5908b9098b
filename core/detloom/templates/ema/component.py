"""An average of weights that is the plain mean of all steps at first, and forgets old ones later.

Reference: Polyak and Juditsky, Acceleration of stochastic approximation by averaging (1992).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detloom import hookimpl
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Ema

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(Ema):
    """Average parameters and statistics: the mean of all steps, until the decay is reached.

    Args:
        model: Its weights are the first average.
        decay: Largest part of the average that is kept at a step.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise RecipeError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.averaged = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)

    def decay_at(self, step: int) -> float:
        """Return ``1 - 1 / step``, at most the decay."""
        return min(self.decay, 1 - 1 / step)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step, counted from 1; counters are copied.

        Raises:
            PluginError: The model no longer has the entries of the average.
        """
        averages, live = self.averaged.state_dict(), model.state_dict()
        shapes, live_shapes = ({name: entry.shape for name, entry in each.items()} for each in (averages, live))
        if shapes != live_shapes:
            other = sorted({name for name, _ in shapes.items() ^ live_shapes.items()})
            raise PluginError(
                f"the model's entries are not those of its average: {', '.join(other[:5])}; "
                "make a new average when the model changes"
            )
        for name, average in averages.items():
            if average.is_floating_point():
                average.lerp_(live[name].to(average), 1 - self.decay_at(step))
            else:
                average.copy_(live[name])


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average under the name that recipes use."""
    register("new-component", NewComponent)
