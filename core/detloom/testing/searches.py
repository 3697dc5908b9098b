"""Checks of search strategies: the history of a search to its next point.

They search spaces of the networks' own settings, since some strategies serve no others; nothing is trained, and the
values of a point are computed from its places.
"""

import copy
import json
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any
from unittest import SkipTest

import numpy as np
import torch

from detloom.interfaces import SearchStrategy
from detloom.search.space import FRUITLESS, Choice, Objective, Point, SearchSpace, State, Trial
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["CHECKS", "CHOICES"]

CHOICES = (
    Choice("backbone.depth", (1, 2, 3, 4), is_ordered=True),
    Choice("backbone.activation", ("silu", "relu", "leaky_relu")),
    Choice("head.implicit", (True, False)),
    Choice("neck.width", (8, 16, 32), is_ordered=True),
)
"""What may be chosen in most checks: an example of what a strategy prepares is for these keys."""

OBJECTIVES = (
    Objective("AP", is_maximised=True),
    Objective("gflops", is_maximised=False),
    Objective("parameters", is_maximised=False),
)
TRIALS = 16
MOMENTS = (0, 1, TRIALS // 2, TRIALS)
"""Lengths of the histories at which a strategy may do different things."""


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """The space comes first; a recipe's table is the keyword arguments of the class."""
    check_signature(build, ("space",))


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A population of -1 is a mistake of a search's file, and is said to be one."""
    check_numbers(build, _space())


def objection_is_a_reason_or_nothing(build: Build) -> None:
    """A space that cannot be searched is refused before anything is trained, in words for its author."""
    objections = [build(space).objection() for space in (_space(1), _space(2))]
    for each in objections:
        demand(
            each is None or (isinstance(each, str) and each.strip()),
            f"objection() returned {each!r}; return None where the space is served, else the reason as text",
        )
    demand(
        None in objections,
        f"objection() refuses both spaces of the kit: {objections[0]}; return None for those that are served",
    )


def every_proposal_is_a_point(build: Build) -> None:
    """The core builds what is proposed: one place for each key, each an int within the options."""
    space = _served(build)
    for trial in _history(build, space):
        complaint = space.complaint(trial.point)
        demand(complaint is None, f"proposal {trial.number}: {complaint}")


def it_goes_on_while_points_are_left(build: Build) -> None:
    """None ends a search, whatever budget is left."""
    space = _served(build)
    done = len(_history(build, space))
    demand(
        done == TRIALS,
        f"None was proposed after {done} of {space.size} points; return None only where nothing is left to try",
    )


def new_points_are_found(build: Build) -> None:
    """A point that is known costs nothing and tells nothing, and a search of nothing else is ended."""
    space = _served(build)
    strategy, prepared = build(space), _prepared(build)
    known: dict[Point, Trial] = {}
    for number in range(FRUITLESS):
        history = [*known.values()]
        point = strategy.propose(history, prepared, _generator(number))
        if point is None or len(known) == TRIALS // 2:
            break
        known.setdefault(point, Trial(len(known), point, State.FINISHED, _values(space, point)))
    demand(
        len(known) == TRIALS // 2,
        f"{FRUITLESS} proposals were {len(known)} points of {space.size}; leave out what the history has",
    )


def same_history_and_generator_give_the_same_point(build: Build) -> None:
    """A search that was killed goes on as if it had not been: with a new strategy, and the history that was kept."""
    space = _served(build)
    history = _history(build, space)
    strategy, prepared = build(space), _prepared(build)
    for number in MOMENTS:
        points = {each.propose(history[:number], prepared, _generator(3)) for each in (strategy, build(space))}
        demand(
            len(points) == 1,
            f"after {number} trials the same generator gives {sorted(map(str, points))}; keep nothing from one "
            "proposal to the next, and compute what was learned from the history",
        )


def global_randomness_is_left_alone(build: Build) -> None:
    """What is trained meanwhile draws from it."""
    space = _served(build)
    history = _history(build, space)
    prepared = _prepared(build)
    before = _global_states()
    for number in MOMENTS:
        build(space).propose(history[:number], prepared, _generator(0))
    changed = [name for name, state in _global_states().items() if state != before[name]]
    demand(
        not changed,
        f"a proposal draws from the global generator of {' and '.join(changed)}; draw from the one that is given",
    )


def what_is_given_is_left_alone(build: Build) -> None:
    """The core keeps the history, and proposes from it again."""
    space = _served(build)
    history = _history(build, space)
    prepared = _prepared(build)
    for number in MOMENTS:
        given = (history[:number], prepared, space)
        before = copy.deepcopy(given)
        build(space).propose(given[0], prepared, _generator(0))
        demand(given == before, "the history, what was prepared or the space was changed in place; work on copies")


def several_objectives_are_borne(build: Build) -> None:
    """A strategy for one objective says so of a space with two, or it serves both."""
    for space in (_space(2), _space(3)):
        if build(space).objection() is None:
            number = len(space.objectives)
            with _told(f"of {number} objectives; search for them, or return a reason from objection()"):
                _history(build, space, trials=TRIALS // 2)


def trials_without_values_are_borne(build: Build) -> None:
    """Some are running, were refused or have failed; none of them has values."""
    space = _served(build)
    history = _history(build, space)
    without = [State.RUNNING, State.REFUSED, State.FAILED]
    some = [
        replace(trial, state=without[trial.number % 3], values=(), figures={}) if trial.number % 2 else trial
        for trial in history
    ]
    none = [replace(trial, state=without[trial.number % 3], values=(), figures={}) for trial in history]
    for words, each in (("every second of", some), ("the first of", none[:1] + history[1:]), ("all", none)):
        _borne(build, space, each, f"with {words} its trials running, refused or failed")


def repeated_points_are_borne(build: Build) -> None:
    """What is proposed again is in the history again, with the values that it had."""
    space = _served(build)
    history = _history(build, space)
    again = [replace(trial, number=TRIALS + trial.number, state=State.REPEATED) for trial in history[:4]]
    _borne(build, space, [*history, *again], "that has points twice")


def values_of_any_size_are_borne(build: Build) -> None:
    """AP is 0 in all trials of a bad beginning; a score may be below 0, and a cost may be anything."""
    space = _served(build)
    history = _history(build, space)
    for words, value in (("0", 0.0), ("the same", 0.25), ("below 0", -3.0), ("1e15", 1e15)):
        same = [replace(trial, values=tuple(value for _ in trial.values)) for trial in history]
        _borne(build, space, same, f"where all values are {words}")


def histories_of_others_are_gone_on_with(build: Build) -> None:
    """What a new release would have proposed otherwise is in the history as the old one did."""
    space = _served(build)
    points = [*_points(space)]
    order = torch.randperm(len(points), generator=_generator(7)).tolist()
    history = _trials(space, [points[place] for place in order[:TRIALS]])
    _borne(build, space, history, "whose points another strategy proposed")


def exhausted_spaces_are_borne(build: Build) -> None:
    """Where all points are known, None ends the search; a point that is known is no mistake."""
    space = _served(build)
    _borne(build, space, _trials(space, [*_points(space)]), f"that has all {space.size} points")


def preparation_is_json_data(build: Build) -> None:
    """It is kept in a file, and a search that is gone on with reads it."""
    prepared = _prepared(build)
    try:
        read = json.loads(json.dumps(prepared))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"what was prepared cannot be written as JSON: {error}; return plain data") from error
    if not prepared:
        return
    space = _served(build)
    with _told("with what was prepared as JSON gives it back; its keys are text, and its tuples lists"):
        point = build(space).propose([], read, _generator(0))
    other = build(space).propose([], prepared, _generator(0))
    demand(point == other, f"{point} is proposed, where it was {other} before what was prepared was kept as JSON")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    objection_is_a_reason_or_nothing,
    every_proposal_is_a_point,
    it_goes_on_while_points_are_left,
    new_points_are_found,
    same_history_and_generator_give_the_same_point,
    global_randomness_is_left_alone,
    what_is_given_is_left_alone,
    several_objectives_are_borne,
    trials_without_values_are_borne,
    repeated_points_are_borne,
    values_of_any_size_are_borne,
    histories_of_others_are_gone_on_with,
    exhausted_spaces_are_borne,
    preparation_is_json_data,
)


def _space(objectives: int = 1) -> SearchSpace:
    return SearchSpace(CHOICES, OBJECTIVES[:objectives], trials=TRIALS)


def _served(build: Build) -> SearchSpace:
    """Return the space that is searched in the checks: with one objective, if it is served."""
    for space in (_space(1), _space(2)):
        if build(space).objection() is None:
            return space
    raise SkipTest("it objects to the spaces of the kit")


def _prepared(build: Build) -> Mapping[str, Any]:
    """Return what the strategy learned of the kit's choices."""
    if build.example is not None:
        prepared: Mapping[str, Any] = build.example()
        return prepared
    if build.cls.prepare is SearchStrategy.prepare:
        return {}
    raise SkipTest("it learns before the first trial; give what `prepare` returns for the kit's CHOICES as the example")


def _history(build: Build, space: SearchSpace, trials: int = TRIALS) -> list[Trial]:
    """Return the trials of a search of its own, all of them finished; fewer where it ends before."""
    strategy, prepared = build(space), _prepared(build)
    history: list[Trial] = []
    while len(history) < trials:
        point = strategy.propose(history, prepared, _generator(len(history)))
        if point is None:
            break
        history += _trials(space, [point], len(history))
    return history


def _trials(space: SearchSpace, points: Sequence[Point], start: int = 0) -> list[Trial]:
    return [Trial(start + n, each, State.FINISHED, _values(space, each)) for n, each in enumerate(points)]


def _values(space: SearchSpace, point: Point) -> tuple[float, ...]:
    """Return what a point has: more of everything with each place, and nothing twice."""
    size = sum(place * 4.0**key for key, place in enumerate(point)) / 4.0 ** len(point)
    return (0.2 + 0.3 * size, 1 + size, 1000 * (1 + size**2))[: len(space.objectives)]


def _points(space: SearchSpace) -> Iterator[Point]:
    return product(*map(range, space.counts))


def _borne(build: Build, space: SearchSpace, history: Sequence[Trial], words: str) -> None:
    """Demand that a history can be gone on with, to a point or to the end."""
    with _told(f"with a history {words}"):
        point = build(space).propose(history, _prepared(build), _generator(1))
    complaint = None if point is None else space.complaint(point)
    demand(complaint is None, f"with a history {words}: {complaint}")


@contextmanager
def _told(words: str) -> Iterator[None]:
    try:
        yield
    except SkipTest:
        raise
    except Exception as error:
        raise AssertionError(f"propose() raises {type(error).__name__}: {error}, {words}") from error


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _global_states() -> dict[str, object]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": pickle.dumps(np.random.get_state()),  # noqa: NPY002 - this is the state that must stay
    }
