"""timm's average of weights: its decay may rise by a power of the step, and may begin late.

The formula of the decay is that of the package. Entries are matched by name here, as all averages do.

Reference: Wightman, PyTorch Image Models, ``timm.utils.ModelEmaV3``.
"""

from collections.abc import Callable
from typing import Any

from timm.utils.model_ema import ModelEmaV3
from torch import nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom_plugins.blending import BlendedEma

__all__ = ["TimmEma"]


class TimmEma(BlendedEma):
    """Average parameters and statistics as timm's training does.

    With the warm-up, the decay is ``1 - (1 + s / warmup_gamma) ** -warmup_power`` at the s-th step after the first,
    held between ``min_decay`` and ``decay``: with a gamma and a power of 1, the equal average of all steps.

    Args:
        model: Its weights are the first average.
        decay: The highest.
        min_decay: The lowest, in the warm-up.
        update_after_step: Steps in which the average is the model.
        use_warmup: Whether the decay rises by the power; otherwise it is ``decay`` throughout.
        warmup_gamma: Steps in which the warm-up comes about.
        warmup_power: 2 / 3 for long trainings (a million steps), 3 / 4 for shorter ones.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = True,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
    ) -> None:
        if not 0 <= min_decay <= decay < 1:
            raise RecipeError(
                f"decay must be at least min_decay ({min_decay}), which is from 0, and below 1, got {decay}"
            )
        if update_after_step < 0:
            raise RecipeError(f"update_after_step must be at least 0, got {update_after_step}")
        for name, value in (("warmup_gamma", warmup_gamma), ("warmup_power", warmup_power)):
            if value <= 0:
                raise RecipeError(f"{name} must be above 0, got {value}")
        self._timm = ModelEmaV3(
            model,
            decay=decay,
            min_decay=min_decay,
            update_after_step=update_after_step,
            use_warmup=use_warmup,
            warmup_gamma=warmup_gamma,
            warmup_power=warmup_power,
        )
        self.averaged: nn.Module = self._timm.module.requires_grad_(requires_grad=False)

    def decay_at(self, step: int) -> float:
        """Return the package's decay."""
        return float(self._timm.get_decay(step))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average."""
    register("timm", TimmEma)
