"""One generation of NSGA-II after the other, by optuna, replayed from the history of a search.

optuna is asked for each point that was proposed, given it, and told its values, so that it deals trials to generations
itself; nothing of it is kept. Needs the extra ``search``.

Reference: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002), section III.
"""

import random
from collections.abc import Collection, Mapping, Sequence

from optuna import create_study, logging
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.study import Study
from optuna.trial import TrialState

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
        sampler = NSGAIISampler(population_size=population, seed=source.randrange(2**32))
        directions = ["maximize" if each.is_maximised else "minimize" for each in space.objectives]
        study = create_study(directions=directions, sampler=sampler)
        for trial in history:
            if trial.state != State.REPEATED:
                _replay(study, space, trial)
        return _child(study, space, {trial.point for trial in history})
    finally:
        logging.set_verbosity(level)


def _replay(study: Study, space: SearchSpace, trial: Trial) -> None:
    """Let the study ask for a trial, and tell its values where it has some."""
    study.enqueue_trial({str(key): place for key, place in enumerate(trial.point)})
    asked = study.ask(_distributions(space))
    if trial.values:
        study.tell(asked, list(trial.values))
    elif trial.state != State.RUNNING:
        study.tell(asked, state=TrialState.FAIL)


def _child(study: Study, space: SearchSpace, proposed: Collection[Point]) -> Point | None:
    for _ in range(ATTEMPTS):
        asked = study.ask(_distributions(space))
        point = tuple(int(asked.params[str(key)]) for key in range(len(space.choices)))
        if point not in proposed:
            return point
        study.tell(asked, state=TrialState.FAIL)
    return None


def _distributions(space: SearchSpace) -> Mapping[str, BaseDistribution]:
    return {
        str(key): IntDistribution(0, len(choice.options) - 1)
        if choice.is_ordered
        else CategoricalDistribution(range(len(choice.options)))
        for key, choice in enumerate(space.choices)
    }
