"""Search strategies that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable, Mapping, Sequence
from itertools import count, product
from typing import Any
from unittest import SkipTest

import pytest
import torch

from detloom.interfaces import SearchStrategy
from detloom.search.ground import Ground
from detloom.search.space import Point, SearchSpace, Trial
from detloom.testing import check_component, checks_of, searches

Caught = Callable[[type[Any], Callable[[], Any] | None], dict[str, str]]
History = Sequence[Trial]
Prepared = Mapping[str, Any]


class SweepingSearch(SearchStrategy):
    """Takes one point after the other, from a place that it draws."""

    def __init__(self, space: SearchSpace, *, stride: int = 5) -> None:
        super().__init__(space)
        self.stride = stride

    def propose(self, history: History, prepared: Prepared, generator: torch.Generator) -> Point | None:
        proposed = {trial.point for trial in history}
        points = [point for point in product(*map(range, self.space.counts)) if point not in proposed]
        if not points:
            return self.last(history)
        drawn = int(torch.randint(len(points), (), generator=generator))
        return self.spoiled(points[drawn], history)

    def last(self, history: History) -> Point | None:
        """Return what is proposed where all is known; the wrong strategies change it."""
        del history
        return None

    def spoiled(self, point: Point, history: History) -> Point | None:
        """Return the point as it is; the wrong strategies change it."""
        del history
        return point


class PositionalSearch(SweepingSearch):
    """Takes its setting by position as well."""

    def __init__(self, space: SearchSpace, stride: int = 5) -> None:
        super().__init__(space, stride=stride)


class DividingSearch(SweepingSearch):
    """Divides by its setting, whatever it is."""

    def __init__(self, space: SearchSpace, *, stride: int = 5) -> None:
        super().__init__(space, stride=stride)
        self.share = 1 / max(stride, 0)


class SilentSearch(SweepingSearch):
    """Objects without a reason where there are two objectives."""

    def objection(self) -> str | None:
        return "" if len(self.space.objectives) > 1 else None


class FractionalSearch(SweepingSearch):
    """Has its third point's places as floats."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        if len(history) != 2:
            return point
        return tuple(float(place) for place in point)  # type: ignore[misc]  # what is wrong with it


class TiredSearch(SweepingSearch):
    """Ends after a dozen trials."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        return point if len(history) < 12 else None


class StubbornSearch(SweepingSearch):
    """Proposes one point for ever."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        return history[0].point if history else (0,) * len(self.space.choices)


class CountingSearch(SweepingSearch):
    """Draws by how often it was asked."""

    asked = count()

    def spoiled(self, point: Point, history: History) -> Point | None:
        number = next(self.asked)
        counts = self.space.counts
        return tuple((place + number) % options for place, options in zip(point, counts, strict=True))


class NoisySearch(SweepingSearch):
    """Draws from torch's global generator before its first point, for nothing."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        if not history:
            torch.rand(1)
        return point


class NotingSearch(SweepingSearch):
    """Counts in a short history how often it has seen a trial."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        for trial in history if len(history) < searches.TRIALS else ():
            trial.figures["seen"] = trial.figures.get("seen", 0) + 1  # type: ignore[index]  # what is wrong with it
        return point


class SingleSearch(SweepingSearch):
    """Reads one value of each trial, and does not say that it serves no more."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        for trial in history:
            if trial.values:
                (_,) = trial.values
        return point


class ImpatientSearch(SweepingSearch):
    """Reads the value of each trial, whether it has one or not."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        max((trial.values[0] for trial in history), default=0.0)
        return point


class OrderlySearch(SweepingSearch):
    """Expects every trial to be another point."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        if len({trial.point for trial in history}) < len(history):
            raise ValueError("a point is there twice")
        return point


class RelativeSearch(SweepingSearch):
    """Divides by how far values lie apart."""

    def spoiled(self, point: Point, history: History) -> Point | None:
        values = [trial.values[0] for trial in history if trial.values]
        if len(values) > 1:
            1 / (max(values) - min(values))
        return point


class JealousSearch(SweepingSearch):
    """Begins with the first point, and goes on with no history that does not."""

    def propose(self, history: History, prepared: Prepared, generator: torch.Generator) -> Point | None:
        first = (0,) * len(self.space.choices)
        if history and history[0].point != first:
            raise ValueError(f"expected {first}")
        return super().propose(history, prepared, generator) if history else first


class EndlessSearch(SweepingSearch):
    """Has an empty point where none is left."""

    def last(self, history: History) -> Point | None:
        return ()


class NumberingSearch(SweepingSearch):
    """Learns something by the number of a key, which JSON makes a text."""

    def prepare(self, ground: Ground) -> Mapping[str, Any]:
        return {"options": {0: 1}}

    def propose(self, history: History, prepared: Prepared, generator: torch.Generator) -> Point | None:
        assert prepared["options"][0] == 1
        return super().propose(history, prepared, generator)


WRONG: dict[str, tuple[type[SearchStrategy], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalSearch, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingSearch, "stride=-1 raises ZeroDivisionError"),
    "objection_is_a_reason_or_nothing": (SilentSearch, "objection() returned ''; return None"),
    "every_proposal_is_a_point": (FractionalSearch, "the place of 'backbone.depth' is one of 0 to 3; got"),
    "it_goes_on_while_points_are_left": (TiredSearch, "None was proposed after 12 of 72 points"),
    "new_points_are_found": (StubbornSearch, "200 proposals were 1 points of 72"),
    "same_history_and_generator_give_the_same_point": (CountingSearch, "keep nothing from one proposal to the next"),
    "global_randomness_is_left_alone": (NoisySearch, "the global generator of torch"),
    "what_is_given_is_left_alone": (NotingSearch, "work on copies"),
    "several_objectives_are_borne": (SingleSearch, "return a reason from objection()"),
    "trials_without_values_are_borne": (ImpatientSearch, "IndexError"),
    "repeated_points_are_borne": (OrderlySearch, "with a history that has points twice"),
    "values_of_any_size_are_borne": (RelativeSearch, "where all values are 0"),
    "histories_of_others_are_gone_on_with": (JealousSearch, "whose points another strategy proposed"),
    "exhausted_spaces_are_borne": (EndlessSearch, "that has all 72 points: a point is a tuple of 4 places"),
    "preparation_is_json_data": (NumberingSearch, "its keys are text"),
}
EXAMPLES: dict[str, Callable[[], Any]] = {"preparation_is_json_data": lambda: {"options": {0: 1}}}


def test_right_strategy_passes_all() -> None:
    check_component(SweepingSearch)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_strategy_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls, EXAMPLES.get(name))

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_searches_has_a_wrong_one() -> None:
    assert [check.__name__ for check in searches.CHECKS] == list(WRONG)


def test_strategy_that_learns_first_is_skipped_without_an_example() -> None:
    (check,) = (each for each in checks_of(NumberingSearch) if each.name == "preparation_is_json_data")

    with pytest.raises(SkipTest, match="give what `prepare` returns"):
        check()
