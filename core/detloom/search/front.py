"""The best of several objectives: Pareto front and hypervolume.

Light: imports no torch. Values are those of trials, in the order of the objectives.
"""

from collections.abc import Sequence

from detloom.search.space import Objective, State, Trial, known

__all__ = ["best", "front", "hypervolume", "upward"]


def best(history: Sequence[Trial], objectives: Sequence[Objective]) -> Trial | None:
    """Return the trial that is best in the first objective, and of equals in the next; None where none has values."""
    return max(known(history), key=lambda trial: upward(trial.values, objectives), default=None)


def front(history: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the trials that no other is as good as in everything and better in something, the best of each first.

    Other points that came to the recipe of one of them are left out.

    Deb et al., A fast and elitist multiobjective genetic algorithm: NSGA-II (2002), section III, for the terms.
    """
    trials = [trial for trial in known(history) if trial.state != State.REPEATED]
    values = [upward(trial.values, objectives) for trial in trials]
    kept = [
        trial
        for trial, mine in zip(trials, values, strict=True)
        if not any(other != mine and all(a >= b for a, b in zip(other, mine, strict=True)) for other in values)
    ]
    return sorted(kept, key=lambda trial: upward(trial.values, objectives), reverse=True)


def hypervolume(
    values: Sequence[Sequence[float]], reference: Sequence[float], objectives: Sequence[Objective]
) -> float:
    """Return the volume between a reference and the points that are better than it, by slices.

    Zitzler and Thiele, Multiobjective evolutionary algorithms: a comparative case study (1999), section 3.

    Args:
        values: Of each point.
        reference: The worst value of each objective; points that are not better in everything count nothing.
        objectives: Which way is better.
    """
    origin = upward(reference, objectives)
    gains = [tuple(a - b for a, b in zip(upward(each, objectives), origin, strict=True)) for each in values]
    return _volume([each for each in gains if all(gain > 0 for gain in each)])


def upward(values: Sequence[float], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return values so that more is better in each."""
    return tuple(value if each.is_maximised else -value for value, each in zip(values, objectives, strict=True))


def _volume(gains: Sequence[tuple[float, ...]]) -> float:
    """Return the volume of the union of boxes from the origin."""
    if not gains:
        return 0.0
    if len(gains[0]) == 1:
        return max(gain[0] for gain in gains)
    volume = 0.0
    ordered = sorted(gains, reverse=True)
    for place, (height, *_) in enumerate(ordered):
        below = ordered[place + 1][0] if place + 1 < len(ordered) else 0.0
        if height > below:
            volume += (height - below) * _volume([gain[1:] for gain in ordered[: place + 1]])
    return volume
