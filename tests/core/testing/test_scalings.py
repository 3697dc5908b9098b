"""Scalings that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import pytest

from detloom.interfaces import Scaling
from detloom.structures import Extent
from detloom.testing import check_component, scalings

Caught = Callable[[type[Any]], dict[str, str]]
Tables = Mapping[str, Any]


class DoublingScaling(Scaling):
    """Twice as deep."""

    changes = frozenset({Extent.DEPTH})

    def __init__(self, *, factor: int = 2) -> None:
        self.factor = factor

    def scale(self, tables: Tables, extents: Mapping[str, Extent]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, extent in extents.items():
            section, setting = path.split(".")[:2]
            if extent is Extent.DEPTH:
                value = tables[section][setting]
                found[path] = [2 * each for each in value] if isinstance(value, list) else 2 * value
        return self.spoiled(found, tables)

    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        """Return the settings as they are; the wrong scalings change them."""
        del tables
        return found


class PositionalScaling(DoublingScaling):
    def __init__(self, factor: int = 2) -> None:
        super().__init__(factor=factor)


class DividingScaling(DoublingScaling):
    def __init__(self, *, factor: int = 2) -> None:
        super().__init__(factor=factor)
        self.share = 1 / max(factor, 0)


class IdleScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {}


class KernelScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {**found, "backbone.stem": [[2 * each for each in row] for row in tables["backbone"]["stem"]]}


class StagedScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {**found, "backbone.depths": [*found["backbone.depths"], 3]}


class BrokenScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {**found, "neck.depth": found["neck.depth"] * 0.75}


class VanishingScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {**found, "neck.depth": 0}


class InPlaceScaling(DoublingScaling):
    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        tables["neck"]["depth"] = found["neck.depth"]
        return found


class RestlessScaling(DoublingScaling):
    calls = count(2)

    def spoiled(self, found: dict[str, Any], tables: Tables) -> dict[str, Any]:
        return {**found, "neck.depth": next(self.calls)}


WRONG: dict[str, tuple[type[Scaling], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalScaling, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingScaling, "factor=-1 raises ZeroDivisionError"),
    "something_is_changed": (IdleScaling, "return the settings that change"),
    "what_it_says_is_changed_alone": (KernelScaling, "one of: depth"),
    "lists_keep_their_form": (StagedScaling, "backbone.depths.3"),
    "whole_numbers_stay_whole": (BrokenScaling, "neck.depth became 3.0 from 2; round to an int"),
    "what_is_there_stays_there": (VanishingScaling, "neck.depth became 0 from 2"),
    "recipe_is_left_alone": (InPlaceScaling, "work on copies"),
    "same_recipe_gives_the_same": (RestlessScaling, "other settings the second time"),
}


def test_right_scaling_passes_all() -> None:
    check_component(DoublingScaling)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_scaling_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_scalings_has_a_wrong_one() -> None:
    assert [check.__name__ for check in scalings.CHECKS] == list(WRONG)
