"""The checks of detloom's kit, then levels as the specs say, in a recipe that can be used."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

import detloom
from detloom.errors import RecipeError
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").strides == (8, 16, 32)


@pytest.mark.parametrize("widths", [(16, 32, 64, 128, 256), (4, 6, 8)])
def test_levels_are_as_the_specs_say(widths: tuple[int, ...]) -> None:
    backbone = NewComponent(widths=widths)

    levels = backbone(torch.zeros(2, 3, 64, 96))

    for level, spec in zip(levels, backbone.out_specs, strict=True):
        assert level.shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_every_weight_learns() -> None:
    backbone = NewComponent(widths=(4, 6, 8))

    sum(level.square().sum() for level in backbone(torch.rand(2, 3, 32, 32))).backward()

    assert [name for name, weight in backbone.named_parameters() if weight.grad is None] == []


def test_too_few_stages_are_refused() -> None:
    with pytest.raises(RecipeError, match="widths needs at least 3"):
        NewComponent(widths=(4, 6))
