"""The checks of detloom's kit, then the average by hand."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent
from torch import nn

import detloom
from detloom.errors import RecipeError
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_the_average_is_the_mean_of_the_steps() -> None:
    model = nn.Linear(1, 1)
    ema = NewComponent(model)

    for step, value in enumerate((2.0, 4.0, 9.0), start=1):
        nn.init.constant_(model.weight, value)
        ema.update(model, step)

    assert ema.averaged.get_parameter("weight").item() == pytest.approx(5.0)


def test_the_decay_is_the_limit() -> None:
    ema = NewComponent(nn.Linear(1, 1), decay=0.9)

    assert [ema.decay_at(step) for step in (1, 2, 100)] == [0.0, 0.5, 0.9]


def test_the_model_and_its_average_share_nothing() -> None:
    model = nn.BatchNorm2d(2)
    ema = NewComponent(model)

    model(torch.rand(4, 2, 3, 3))

    assert not torch.equal(ema.averaged.get_buffer("running_mean"), model.get_buffer("running_mean"))
    assert not ema.averaged.training
    ema.update(model, 1)
    assert ema.averaged.get_buffer("num_batches_tracked").item() == 1


def test_a_decay_that_keeps_everything_is_refused() -> None:
    with pytest.raises(RecipeError, match="below 1, got 1"):
        NewComponent(nn.Linear(1, 1), decay=1.0)
