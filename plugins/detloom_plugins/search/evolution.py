"""Search by evolution: points that did well have children, which differ from them a little.

Reference: Real et al., Regularized evolution for image classifier architecture search (2019), arXiv:1802.01548,
algorithm 1; Deb et al., NSGA-II (2002), section III, for several objectives and for ``nsga2``.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import SearchStrategy
from detloom.search.space import Point, SearchSpace, Trial, known
from detloom_plugins.extras import missing_packages
from detloom_plugins.search.crowding import best_first
from detloom_plugins.search.untried import mutant, random_of, untried

__all__ = ["EvolutionSearch"]

Algorithm = Literal["aging", "nsga2"]


class EvolutionSearch(SearchStrategy):
    """Mutants of the best of a sample, or generations that cross.

    ``aging``: the population is the last trials that have values; of some of them, drawn at random, the best has a
    child that differs at one key, and the oldest dies. Of several objectives the better front is the better one, and in
    a front the trial that is less crowded. ``nsga2``: optuna's NSGA-II, which crosses and mutates whole generations.

    No point is proposed twice: what a child of a known point would tell is known.

    Args:
        space: Of any choices.
        algorithm: One of the two.
        population: Trials of the population; as many are drawn at random first. 0: twice the root of the trials that
            the search may have, 10 for 24.
        sample: Of ``aging``: trials drawn from the population, of which the best has the child; one may be drawn
            twice. 0: as many as the population has, so that the best of it is the parent in two of three cases.
    """

    def __init__(
        self, space: SearchSpace, *, algorithm: Algorithm = "aging", population: int = 0, sample: int = 0
    ) -> None:
        super().__init__(space)
        if algorithm not in get_args(Algorithm):
            raise RecipeError(f"algorithm must be one of {', '.join(get_args(Algorithm))}, got {algorithm!r}")
        if population < 0 or population == 1:
            raise RecipeError(f"population must be at least 2, or 0 for one that suits the trials, got {population}")
        if sample < 0:
            raise RecipeError(f"sample must be at least 1, or 0 for that of the population, got {sample}")
        self.algorithm = algorithm
        self.population = population or max(2, round(2 * math.sqrt(space.trials)))
        self.sample = sample or self.population

    def objection(self) -> str | None:
        """Return what is not installed, or None."""
        if self.algorithm == "nsga2":
            return missing_packages('algorithm = "nsga2"', ("optuna",), "search")
        return None

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],  # noqa: ARG002 - nothing was prepared
        generator: torch.Generator,
    ) -> Point | None:
        """Return a point that was not proposed yet, or None where all were."""
        source = random_of(generator)
        proposed = {trial.point for trial in history}
        point = self._child(history, proposed, source) if len(proposed) < self.space.size else None
        return untried(self.space, proposed, source) if point is None else point

    def _child(self, history: Sequence[Trial], proposed: set[Point], source: random.Random) -> Point | None:
        if self.algorithm == "nsga2":
            from detloom_plugins.search.nsga2 import next_of_generation

            return next_of_generation(self.space, history, population=self.population, source=source)
        trials = known(history)
        if len(trials) < self.population:
            return None
        ranked = best_first(trials[-self.population :], self.space.objectives)
        parent = ranked[min(source.randrange(len(ranked)) for _ in range(self.sample))]
        return mutant(self.space, parent.point, proposed, source)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy."""
    register("evolution", EvolutionSearch)
