"""Searches for anchors that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from detloom.interfaces import AnchorSearch
from detloom.testing import anchor_searches, check_component

Caught = Callable[[type[Any]], dict[str, str]]


class QuantileSearch(AnchorSearch):
    """Boxes at even places among all, by area."""

    threshold = 4.0
    min_recall = 0.98

    def __init__(self, *, places: int = 1) -> None:
        self.places = places

    def search(self, sizes_N2: Tensor, current_A2: Tensor, generator: torch.Generator) -> Tensor:
        order_N = sizes_N2.prod(dim=1).argsort()
        place_A = (torch.arange(len(current_A2)) + 0.5) * len(sizes_N2) / len(current_A2)
        return self.spoiled(sizes_N2[order_N[place_A.long()]], sizes_N2, generator)

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        """Return the anchors as they are; the wrong searches change them."""
        del sizes_N2, generator
        return found_A2


class PositionalSearch(QuantileSearch):
    """Takes its setting by position as well."""

    def __init__(self, places: int = 1) -> None:
        super().__init__(places=places)


class DividingSearch(QuantileSearch):
    """Divides by its setting, whatever it is."""

    def __init__(self, *, places: int = 1) -> None:
        super().__init__(places=places)
        self.share = 1 / max(places, 0)


class ShareSearch(QuantileSearch):
    """Has a recall in per cent."""

    min_recall = 98.0


class DistinctSearch(QuantileSearch):
    """Returns eight anchors at most."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        return found_A2[:8]


class EqualSearch(QuantileSearch):
    """Returns anchors of size 0 where all boxes are alike."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        return found_A2 * 0 if sizes_N2.std() == 0 else found_A2


class UnsortedSearch(QuantileSearch):
    """Returns the largest anchor first."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        return found_A2.flip(0)


class TurnedSearch(QuantileSearch):
    """Returns anchors that are all as the smallest box."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        return found_A2[:1] * torch.linspace(1, 1.1, len(found_A2))[:, None]


class RestlessSearch(QuantileSearch):
    """Returns other anchors at each call."""

    calls = 0

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        RestlessSearch.calls += 1
        return found_A2 * (1 + RestlessSearch.calls / 1e4)


class DrawingSearch(QuantileSearch):
    """Draws from torch's global generator."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        torch.rand(1)
        return found_A2


class RoundingSearch(QuantileSearch):
    """Rounds the boxes that it is given in place."""

    def spoiled(self, found_A2: Tensor, sizes_N2: Tensor, generator: torch.Generator) -> Tensor:
        sizes_N2.round_()
        return found_A2


WRONG: dict[str, tuple[type[AnchorSearch], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalSearch, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingSearch, "places=-1 raises ZeroDivisionError"),
    "limits_are_numbers_that_make_sense": (ShareSearch, "min_recall is 98.0"),
    "anchors_are_as_many_as_at_present": (DistinctSearch, "as many as current_A2"),
    "anchors_are_sizes_above_0": (EqualSearch, "keep them above 0"),
    "anchors_come_by_growing_area": (UnsortedSearch, "the smallest first"),
    "plain_groups_of_boxes_find_their_anchors": (TurnedSearch, "find groups"),
    "same_generator_gives_the_same_anchors": (RestlessSearch, "draw from the one that is given"),
    "global_randomness_is_left_alone": (DrawingSearch, "torch's global generator"),
    "inputs_are_left_alone": (RoundingSearch, "work on a copy"),
}


def test_right_search_passes_all() -> None:
    check_component(QuantileSearch)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_search_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_searches_has_a_wrong_one() -> None:
    assert [check.__name__ for check in anchor_searches.CHECKS] == list(WRONG)
