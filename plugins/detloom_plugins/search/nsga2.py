"""One generation of NSGA-II after the other, by optuna, replayed from the history of a search.

optuna is asked for each point that was proposed, given it, and told its values, so that it deals trials to generations
itself; nothing of it is kept. Needs the extra ``search``.

Reference: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002), section III.
"""

import random
from collections.abc import Collection, Sequence
from typing import Any

from optuna import create_study, logging
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from detloom.search.space import Point, SearchSpace, State, Trial

__all__ = ["next_of_generation"]

ATTEMPTS = 50
"""Children that are asked for, of which the first that was not proposed yet is taken."""


def next_of_generation(
    space: SearchSpace, history: Sequence[Trial], *, population: int, source: random.Random
) -> Point | None:
    """Return a point that was not proposed yet, or None where many children in a row were.

    Args:
        space: Of the points.
        history: All trials in the order of their proposals.
        population: Trials of a generation.
        source: Of what is drawn.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        sampler = _ReplayingSampler(space, population, source.randrange(2**32))
        directions = ["maximize" if each.is_maximised else "minimize" for each in space.objectives]
        study = create_study(directions=directions, sampler=sampler)
        for trial in history:
            if trial.state != State.REPEATED:
                sampler.replay(study, trial)
        return sampler.child(study, {trial.point for trial in history})
    finally:
        logging.set_verbosity(level)


class _ReplayingSampler(NSGAIISampler):  # type: ignore[misc]  # optuna is not always there to be looked at
    """NSGA-II that can be given what it samples, and counts that to its generations all the same.

    Trials that are enqueued are not asked of a sampler, and so belong to no generation.
    """

    def __init__(self, space: SearchSpace, population: int, seed: int) -> None:
        super().__init__(population_size=population, seed=seed)
        self._distributions: dict[str, BaseDistribution] = {
            str(key): IntDistribution(0, len(choice.options) - 1)
            if choice.is_ordered
            else CategoricalDistribution(range(len(choice.options)))
            for key, choice in enumerate(space.choices)
        }
        self._given: dict[str, int] = {}

    def replay(self, study: Study, trial: Trial) -> None:
        """Let a study have a trial, and its values where it has some."""
        self._given = {str(key): place for key, place in enumerate(trial.point)}
        asked = study.ask(self._distributions)
        self._given = {}
        if trial.values:
            study.tell(asked, list(trial.values))
        elif trial.state != State.RUNNING:
            study.tell(asked, state=TrialState.FAIL)

    def child(self, study: Study, proposed: Collection[Point]) -> Point | None:
        """Return the first child that was not proposed, or None where many in a row were."""
        for _ in range(ATTEMPTS):
            asked = study.ask(self._distributions)
            point = tuple(int(asked.params[key]) for key in self._distributions)
            if point not in proposed:
                return point
            study.tell(asked, state=TrialState.FAIL)
        return None

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002 - the space is known before any trial
        trial: FrozenTrial,  # noqa: ARG002 - the same
    ) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Deal the trial to its generation, and return what is given, or else a child."""
        child = super().sample_relative(study, trial, search_space)
        return dict(self._given) or child
