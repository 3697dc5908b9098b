"""Search by aging evolution: points that did well have children, which differ from them a little.

References: Real et al., Regularized evolution for image classifier architecture search (2019), arXiv:1802.01548,
algorithm 1; Deb et al., NSGA-II (2002), section III, for which of several objectives' trials is better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import SearchStrategy
from detloom.search.space import Point, SearchSpace, Trial, known
from detloom_plugins.search.crowding import best_first
from detloom_plugins.search.untried import mutant, random_of, untried

__all__ = ["EvolutionSearch"]


class EvolutionSearch(SearchStrategy):
    """Mutants of the best of a sample of the last trials.

    The population is the last trials that have values. Of some of them, drawn at random, the best has a child that
    differs at one key; it joins the population, and the oldest dies. Of several objectives the better front is the
    better one, and in a front the trial that is less crowded.

    No point is proposed twice: what a child of a known point would tell is known.

    Args:
        space: Of any choices.
        population: Trials of the population; as many are drawn at random first. 0: twice the root of the trials that
            the search may have, 10 for 24.
        sample: Trials drawn from the population, of which the best has the child; one may be drawn twice. 0: as many as
            the population has, so that its best is the parent in two of three cases.
    """

    def __init__(self, space: SearchSpace, *, population: int = 0, sample: int = 0) -> None:
        super().__init__(space)
        if population < 0 or population == 1:
            raise RecipeError(f"population must be at least 2, or 0 for one that suits the trials, got {population}")
        if sample < 0:
            raise RecipeError(f"sample must be at least 1, or 0 for that of the population, got {sample}")
        self.population = population or max(2, round(2 * math.sqrt(space.trials)))
        self.sample = sample or self.population

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],  # noqa: ARG002 - nothing was prepared
        generator: torch.Generator,
    ) -> Point | None:
        """Return a point that was not proposed yet, or None where all were."""
        source = random_of(generator)
        proposed = {trial.point for trial in history}
        trials = known(history)
        if len(trials) >= self.population:
            ranked = best_first(trials[-self.population :], self.space.objectives)
            parent = ranked[min(source.randrange(len(ranked)) for _ in range(self.sample))]
            point = mutant(self.space, parent.point, proposed, source)
            if point is not None:
                return point
        return untried(self.space, proposed, source)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy."""
    register("evolution", EvolutionSearch)
