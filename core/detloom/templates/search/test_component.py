"""The checks of detloom's kit, then the way that the search goes."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

from detloom.building import build
from detloom.errors import RecipeError
from detloom.kinds import Kind
from detloom.search.settings import load_search
from detloom.search.space import Choice, Objective, SearchSpace, State, Trial
from detloom.testing import Check, parametrize_with_checks

SPACE = SearchSpace(
    (Choice("backbone.depth", (1, 2, 3), is_ordered=True), Choice("assigner", ("yolov7", "simota"))),
    (Objective("AP", is_maximised=True),),
    trials=6,
)


def searched(strategy: NewComponent, trials: int) -> list[Trial]:
    """Return the trials of a search in which deeper is better."""
    history: list[Trial] = []
    for number in range(trials):
        point = strategy.propose(history, {}, torch.Generator().manual_seed(number))
        if point is None:
            break
        history.append(Trial(number, point, State.FINISHED, (0.1 * point[0],)))
    return history


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_search_can_be_used() -> None:
    search = load_search(Path(__file__).parents[1] / "example.toml")

    strategy = build(Kind.SEARCH, search.strategy, search.space, where="[search]")

    assert type(strategy).__name__ == "NewComponent"
    assert strategy.objection() is None


def test_what_follows_the_drawn_points_are_neighbours_of_the_best() -> None:
    strategy = NewComponent(SPACE, drawn=2)
    history = [
        Trial(0, (2, 0), State.FINISHED, (0.3,)),
        Trial(1, (0, 1), State.FINISHED, (0.1,)),
        Trial(2, (1, 0), State.FINISHED, (0.2,)),
        Trial(3, (2, 1), State.REFUSED, reason="it has too many parameters"),
    ]

    point = strategy.propose(history, {}, torch.Generator().manual_seed(0))

    assert point == (0, 0)


def test_all_points_are_found_once() -> None:
    assert len({trial.point for trial in searched(NewComponent(SPACE), 10)}) == 6
    assert len(searched(NewComponent(SPACE), 10)) == 6


def test_no_drawn_points_are_refused() -> None:
    with pytest.raises(RecipeError, match="drawn must be at least 1, got 0"):
        NewComponent(SPACE, drawn=0)
