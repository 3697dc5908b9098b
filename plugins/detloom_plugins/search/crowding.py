"""Trials in the order of several objectives: by fronts, and in a front by how alone they are.

Reference: Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002), section III.
"""

import math
from collections.abc import Sequence

from detloom.search.front import front, upward
from detloom.search.space import Objective, Point, Trial, known

__all__ = ["best_first"]


def best_first(history: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the trials with values: fronts one after the other, in each those first that are far from others."""
    left, ordered = known(history), []
    while left:
        foremost = front(left, objectives)
        distance = _distances(foremost, objectives)
        ordered += sorted(foremost, key=lambda trial: distance[trial.point], reverse=True)
        left = [trial for trial in left if trial.point not in distance]
    return ordered


def _distances(trials: Sequence[Trial], objectives: Sequence[Objective]) -> dict[Point, float]:
    """Return the crowding distance of each point of a front; the ends of a front are infinitely far."""
    distances = dict.fromkeys((trial.point for trial in trials), 0.0)
    for place in range(len(objectives)):
        ordered = sorted(trials, key=lambda trial: upward(trial.values, objectives)[place])
        values = [trial.values[place] for trial in ordered]
        extent = abs(values[-1] - values[0])
        distances[ordered[0].point] = distances[ordered[-1].point] = math.inf
        for before, trial, after in zip(values, ordered[1:-1], values[2:], strict=False):
            distances[trial.point] += abs(after - before) / extent if extent else 0.0
    return distances
