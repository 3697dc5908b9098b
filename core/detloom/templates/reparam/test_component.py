"""The checks of detloom's kit, then what is merged, and what not."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent
from torch import nn

import detloom
from detloom.reparam import fold
from detloom.testing import Check, parametrize_with_checks


def model(*, bias: bool = True) -> nn.Sequential:
    """Return a network with one pair to merge, and one that may not be."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, bias=bias), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Conv2d(6, 2, 1)
    )


@parametrize_with_checks(NewComponent, example=model)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_model_is_equal_and_smaller(bias: bool) -> None:
    original = model(bias=bias)

    # detloom compares every output, in float32 and in float64, and raises where one differs.
    folded, report = fold(original, [NewComponent()], example=torch.rand(2, 3, 8, 8))

    assert [each.fold.applies for each in report.folds] == [True, False]
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(original[1], nn.Conv2d)


def test_a_folded_model_has_nothing_more_to_fold() -> None:
    folded, _ = fold(model(), [NewComponent()])

    assert not any(each.applies for each in NewComponent().plan(folded))


def test_what_may_not_be_merged_is_told() -> None:
    _, refused = NewComponent().plan(model())

    assert refused.parts == ("3", "4")
    assert refused.reason.startswith("3 not 1x1")
