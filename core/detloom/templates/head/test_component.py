"""The checks of detloom's kit, then a box by hand."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

import detloom
from detloom.errors import RecipeError
from detloom.structures import FeatureSpec
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_a_box_by_hand() -> None:
    head = NewComponent([FeatureSpec(8, 8)], 1)
    map_BOHW = torch.zeros(1, 5, 1, 2)
    map_BOHW[0, :2, 0, 1] = 0.5

    found = head.decode([map_BOHW])

    # The second cell's centre is (12, 4); the box is as large as a cell.
    assert found.boxes_BP4[0, 1].tolist() == pytest.approx([8.0, 0.0, 16.0, 8.0])


def test_classes_start_from_the_score_that_is_set() -> None:
    head = NewComponent([FeatureSpec(8, 8)], 2, first_score=0.1)

    maps = head([torch.zeros(1, 8, 2, 2)])

    assert maps.lead[0][0, 4:].sigmoid().flatten().tolist() == pytest.approx([0.1] * 8)


def test_a_score_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="first_score"):
        NewComponent([FeatureSpec(8, 8)], 1, first_score=1.0)
