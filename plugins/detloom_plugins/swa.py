"""Stochastic weight averaging: the equal average of the weights from a step on, taken every so many steps.

The decay follows from the step alone, so that a run that resumes needs nothing beside the average.

Reference: Izmailov et al., Averaging weights leads to wider optima and better generalization (2018),
arXiv:1803.05407, section 3.2 and algorithm 1.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom_plugins.blending import BlendedEma, averaged_copy

__all__ = ["SwaEma"]


class SwaEma(BlendedEma):
    """Average the weights of steps ``start``, ``start + every``, ``start + 2 every`` and so on, all alike.

    Until ``start`` the average is the model. Its batch norms need statistics of their own once it is an average of
    several: their mean fits none of the averaged layers.

    Args:
        model: Its weights are the first average.
        start: The first optimiser step that counts; published with three quarters of the training done.
        every: Steps from one to the next; published with one an epoch.
    """

    def __init__(self, model: nn.Module, *, start: int, every: int = 1) -> None:
        if start < 1:
            raise RecipeError(f"start must be at least 1, the first step, got {start}")
        if every < 1:
            raise RecipeError(f"every must be at least 1, got {every}; published is one epoch's steps")
        self.start = start
        self.every = every
        self.averaged = averaged_copy(model)

    def decay_at(self, step: int) -> float:
        """Return 0 until ``start``, ``(n - 1) / n`` at the n-th step that counts, 1 at those between."""
        if step <= self.start:
            return 0.0
        taken, rest = divmod(step - self.start, self.every)
        return 1.0 if rest else taken / (taken + 1)

    def needs_statistics(self, step: int) -> bool:
        """Return whether several steps have been averaged by a step."""
        return step >= self.start + self.every


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the average."""
    register("swa", SwaEma)
