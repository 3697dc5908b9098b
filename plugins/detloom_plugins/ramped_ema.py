"""The average of weights that training is judged by, with a decay that ramps up.

References: Polyak and Juditsky (1992) for averaging; Tarvainen and Valpola, Mean teachers (2017), section 3, for the
exponential form; the ramp is that of YOLOv7's published training.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom_plugins.blending import BlendedEma, averaged_copy

__all__ = ["RampedEma"]


class RampedEma(BlendedEma):
    """Average parameters and statistics with a decay that ramps up, so that early steps are not remembered.

    Args:
        model: Its weights are the first average.
        decay: What the decay comes to.
        ramp: Steps until about two thirds of it.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999, ramp: int = 2000) -> None:
        if not 0 <= decay < 1:
            raise RecipeError(f"decay must be at least 0 and below 1, got {decay}")
        if ramp < 1:
            raise RecipeError(f"ramp must be at least 1, got {ramp}")
        self.decay = decay
        self.ramp = ramp
        self.averaged = averaged_copy(model)

    def decay_at(self, step: int) -> float:
        """Return ``decay * (1 - exp(-step / ramp))``."""
        return self.decay * (1 - math.exp(-step / self.ramp))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average."""
    register("ramped", RampedEma)
