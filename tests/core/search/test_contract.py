"""What the contract of strategies gives to one that has nothing to set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from detloom.interfaces import SearchStrategy
from detloom.search.space import Choice, Objective, Point, SearchSpace, Trial
from detloom.settings import settings_model, validated


class FirstPoint(SearchStrategy):
    """Has no settings, so no constructor of its own."""

    def propose(
        self, history: Sequence[Trial], prepared: Mapping[str, Any], generator: torch.Generator
    ) -> Point | None:
        del history, prepared, generator
        return (0,) * len(self.space.choices)


def test_strategy_needs_no_constructor_of_its_own() -> None:
    settings, complaints = validated(settings_model(FirstPoint), {}, "space.toml [search]")

    assert complaints == []
    assert settings is not None
    assert settings.model_dump() == {}


def test_setting_that_such_a_strategy_has_not_is_refused_by_name() -> None:
    _, complaints = validated(settings_model(FirstPoint), {"population": 8}, "space.toml [search]")

    assert len(complaints) == 1
    assert "'population'" in complaints[0]


def test_space_is_kept_as_given() -> None:
    space = SearchSpace((Choice("backbone.depth", (1, 2), is_ordered=True),), (Objective("AP", is_maximised=True),), 2)

    assert FirstPoint(space).space is space
