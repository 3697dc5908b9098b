"""The checks of detloom's kit, then the assigner by hand, on a grid small enough to draw."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

import detloom
from detloom.errors import RecipeError
from detloom.structures import Predictions, Priors, Targets
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_the_cells_around_the_centre_are_taken() -> None:
    # One level of stride 8 on a picture of 64 x 64 pixels: 8 cells a row. The centre is that of cell (4, 4).
    priors = Priors.on_grids([(8, 8)], [8], torch.tensor([[[8.0, 8.0]]]))
    nothing_BP4 = torch.zeros(1, 64, 4)
    predictions = Predictions(nothing_BP4, nothing_BP4[..., :1], None, priors)
    targets = Targets.from_lists([torch.tensor([[20.0, 20.0, 52.0, 52.0]])], [torch.tensor([0])], (64, 64))

    result = NewComponent(radius=1.0).assign(predictions, targets)

    assert result.prior_M.tolist() == [27, 28, 29, 35, 36, 37, 43, 44, 45]


def test_a_radius_that_leaves_targets_out_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"radius must be at least 0\.5"):
        NewComponent(radius=0.4)
