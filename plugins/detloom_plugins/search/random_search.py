"""Random search: every point that was not proposed yet is as probable as another.

Reference: Bergstra and Bengio, Random search for hyper-parameter optimization (2012); Li and Talwalkar (2019),
arXiv:1902.07638, for why every search of architectures must be held to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from detloom.hookspecs import hookimpl
from detloom.interfaces import SearchStrategy
from detloom.search.space import Point, Trial
from detloom_plugins.search.untried import random_of, untried

__all__ = ["RandomSearch"]


class RandomSearch(SearchStrategy):
    """Draw evenly, and no point twice."""

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],  # noqa: ARG002 - nothing was prepared
        generator: torch.Generator,
    ) -> Point | None:
        """Return a point that was not proposed yet, or None where all were."""
        return untried(self.space, {trial.point for trial in history}, random_of(generator))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy."""
    register("random", RandomSearch)
