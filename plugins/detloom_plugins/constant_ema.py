"""The average of weights with one decay from the first step on.

Reference: Tarvainen and Valpola, Mean teachers (2017), section 3.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom_plugins.blending import BlendedEma, averaged_copy

__all__ = ["ConstantEma"]


class ConstantEma(BlendedEma):
    """Average parameters and statistics with one decay; the first weights fade as slowly as any others.

    Args:
        model: Its weights are the first average.
        decay: How much of the average is kept at a step; it reaches back about ``1 / (1 - decay)`` steps.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise RecipeError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.averaged = averaged_copy(model)

    def decay_at(self, step: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return ``decay``."""
        return self.decay


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average."""
    register("constant", ConstantEma)
