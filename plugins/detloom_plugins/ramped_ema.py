"""The average of weights that training is judged by, with a decay that ramps up.

References: Polyak and Juditsky (1992) for averaging; Tarvainen and Valpola, Mean teachers (2017), section 3, for the
exponential form; the ramp is that of YOLOv7's published training.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detloom.errors import PluginError, RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Ema

__all__ = ["RampedEma"]


class RampedEma(Ema):
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
        self.averaged = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)

    def decay_at(self, step: int) -> float:
        """Return ``decay * (1 - exp(-step / ramp))``."""
        return self.decay * (1 - math.exp(-step / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step, counted from 1.

        Raises:
            PluginError: The model no longer has the entries of the average.
        """
        averages, live = self.averaged.state_dict(), model.state_dict()
        _check_names(averages, live)
        floating = [name for name, entry in averages.items() if entry.is_floating_point()]
        torch._foreach_lerp_(
            [averages[name] for name in floating],
            [live[name].to(averages[name].dtype) for name in floating],
            1 - self.decay_at(step),
        )
        for name in averages.keys() - floating:
            averages[name].copy_(live[name])


def _check_names(averages: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    if averages.keys() != live.keys():
        only_average = ", ".join(sorted(averages.keys() - live.keys())[:5]) or "none"
        only_live = ", ".join(sorted(live.keys() - averages.keys())[:5]) or "none"
        raise PluginError(
            f"the model's entries are not those of its average. Only in the average: {only_average}; "
            f"only in the model: {only_live}. Make a new average when the model changes"
        )
    for name, entry in averages.items():
        if entry.shape != live[name].shape:
            raise PluginError(
                f"{name} has shape {tuple(live[name].shape)}, its average {tuple(entry.shape)}. "
                "Make a new average when the model changes"
            )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average."""
    register("ramped", RampedEma)
