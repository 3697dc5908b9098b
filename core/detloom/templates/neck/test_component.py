"""The checks of detloom's kit, then levels as the specs say, which see the coarse ones."""

from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

import detloom
from detloom.errors import RecipeError
from detloom.structures import FeatureSpec
from detloom.testing import Check, parametrize_with_checks

INPUTS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))


def levels() -> list[torch.Tensor]:
    """Return levels of a picture of 64 x 96 pixels."""
    return [torch.rand(2, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in INPUTS]


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").strides == (8, 16, 32)


@pytest.mark.parametrize("inputs", [INPUTS, INPUTS[1:]])
def test_levels_are_as_the_specs_say(inputs: tuple[FeatureSpec, ...]) -> None:
    neck = NewComponent(inputs, width=12)

    returned = neck(levels()[-len(inputs) :])

    for level, spec in zip(returned, neck.out_specs, strict=True):
        assert level.shape == (2, 12, 64 // spec.stride, 96 // spec.stride)


def test_the_finest_level_sees_the_coarsest() -> None:
    neck = NewComponent(INPUTS)
    given = [level.requires_grad_() for level in levels()]

    neck(given)[0].sum().backward()

    assert given[-1].grad is not None
    assert given[-1].grad.abs().sum() > 0


def test_levels_that_do_not_halve_are_refused() -> None:
    with pytest.raises(RecipeError, match="each stride is twice"):
        NewComponent((FeatureSpec(8, 8), FeatureSpec(8, 32)))
