"""The space of a search: keys of a recipe, their options, what is wanted; and the trials of its points.

Light: imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["FRUITLESS", "Choice", "Objective", "Point", "SearchSpace", "State", "Trial", "known"]

FRUITLESS = 200
"""Proposals one after the other that are refused or known, after which a search ends."""

Point = tuple[int, ...]
"""The place of an option for each key, in the order of the space's choices."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may stand at one key of the recipe.

    Attributes:
        key: A kind, as ``assigner``, or a setting, as ``backbone.depth``.
        options: Values, each as an override has it; two at least.
        is_ordered: Whether they are numbers that ascend, so that neighbours are alike.
    """

    key: str
    options: tuple[Any, ...]
    is_ordered: bool = False


@dataclass(frozen=True, slots=True)
class Objective:
    """Something that is wanted.

    Attributes:
        name: Of the figure, as ``AP`` or ``gflops``.
        is_maximised: Whether more of it is better; less is otherwise.
    """

    name: str
    is_maximised: bool


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All points of a search.

    Attributes:
        choices: One for each key.
        objectives: What is wanted, the first one before all.
        trials: How many points the search may train.
    """

    choices: tuple[Choice, ...]
    objectives: tuple[Objective, ...]
    trials: int

    @property
    def size(self) -> int:
        """Return the number of points."""
        return math.prod(len(choice.options) for choice in self.choices)

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the number of options of each choice."""
        return tuple(len(choice.options) for choice in self.choices)

    def overrides(self, point: Point) -> dict[str, Any]:
        """Return what a point sets, by key."""
        return {choice.key: choice.options[place] for choice, place in zip(self.choices, point, strict=True)}

    def complaint(self, point: Any) -> str | None:
        """Return what is wrong with something that should be a point."""
        if not isinstance(point, tuple) or len(point) != len(self.choices):
            return f"a point is a tuple of {len(self.choices)} places, one for each key; got {point!r}"
        for choice, place in zip(self.choices, point, strict=True):
            if type(place) is not int or not 0 <= place < len(choice.options):
                return f"the place of '{choice.key}' is one of 0 to {len(choice.options) - 1}; got {place!r}"
        return None


class State(StrEnum):
    """What became of a point."""

    RUNNING = "running"
    FINISHED = "finished"
    REFUSED = "refused"  # by `check` or a constraint, before anything ran
    FAILED = "failed"
    REPEATED = "repeated"  # its values are those of the trial before, once that has some


@dataclass(frozen=True, slots=True)
class Trial:
    """A point that was proposed.

    Attributes:
        number: In the order of proposals, from 0.
        point: What was proposed.
        state: What became of it.
        values: Of the objectives, in their order; empty unless it is finished, or repeats one that is.
        figures: All that is known of it, by name.
        reason: Why it was refused or failed.
    """

    number: int
    point: Point
    state: State
    values: tuple[float, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Return whether it is one of the trials that the search may have."""
        return self.state not in (State.REFUSED, State.REPEATED)


def known(history: Sequence[Trial]) -> list[Trial]:
    """Return the trials that have values, each point once."""
    found: dict[Point, Trial] = {}
    for trial in history:
        if trial.values:
            found.setdefault(trial.point, trial)
    return list(found.values())
