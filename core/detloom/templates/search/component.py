"""Local search: a neighbour of the best point so far, until all of its neighbours are known.

Reference: White et al., Local search is state of the art for neural architecture search benchmarks (2020),
arXiv:2005.02960, section 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from detloom import hookimpl
from detloom.errors import RecipeError
from detloom.interfaces import SearchStrategy
from detloom.search.front import upward
from detloom.search.space import Point, SearchSpace, Trial, known

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(SearchStrategy):
    """Draw some points, then take neighbours of the best one, then those of the next best.

    Neighbours differ at one key. Of several objectives the first counts, and others where it is equal.

    Args:
        space: Of any choices.
        drawn: Points that are drawn at random first.
    """

    def __init__(self, space: SearchSpace, *, drawn: int = 4) -> None:
        super().__init__(space)
        if drawn < 1:
            raise RecipeError(f"drawn must be at least 1, got {drawn}")
        self.drawn = drawn

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],  # noqa: ARG002 - nothing was prepared
        generator: torch.Generator,
    ) -> Point | None:
        """Return a point that was not proposed yet, or None where all were."""
        proposed = {trial.point for trial in history}
        trials = sorted(known(history), key=lambda trial: upward(trial.values, self.space.objectives), reverse=True)
        if len(trials) >= self.drawn:
            for trial in trials:
                if found := [point for point in self.neighbours(trial.point) if point not in proposed]:
                    return _drawn(found, generator)
        # At the beginning, and where no known point has neighbours that are not known.
        for _ in range(100):
            point = tuple(_number(count, generator) for count in self.space.counts)
            if point not in proposed:
                return point
        return next((point for point in product(*map(range, self.space.counts)) if point not in proposed), None)

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Yield the points that differ from one at a single key."""
        for key, count in enumerate(self.space.counts):
            for place in range(count):
                if place != point[key]:
                    yield (*point[:key], place, *point[key + 1 :])


def _drawn(points: Sequence[Point], generator: torch.Generator) -> Point:
    return points[_number(len(points), generator)]


def _number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy under the name that searches use."""
    register("new-component", NewComponent)
