"""Passes that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detloom.interfaces import Fold, ReparamPass
from detloom.testing import check_component, reparams

Caught = Callable[..., dict[str, str]]


class Doubled(nn.Module):
    """A convolution, and the same input again through one more."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.one(images_BCHW) + self.other(images_BCHW)
        return out_BCHW


class PlainPass(ReparamPass):
    """Add up both kernels."""

    def __init__(self, *, tidy: bool = True) -> None:
        self.tidy = tidy

    def plan(self, model: nn.Module) -> list[Fold]:
        places = [path for path, module in model.named_modules() if isinstance(module, Doubled)]
        return [Fold(path, applies=True, reason="two sums are one", parts=("one", "other")) for path in places]

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        assert isinstance(module, Doubled)
        module.one.weight += module.other.weight
        assert module.one.bias is not None
        assert module.other.bias is not None
        module.one.bias += module.other.bias
        return module.one


class PositionalPass(PlainPass):
    """Takes its setting by position as well."""

    def __init__(self, tidy: bool = True) -> None:
        super().__init__(tidy=tidy)


class ShyPass(PlainPass):
    """Applies nowhere."""

    def plan(self, model: nn.Module) -> list[Fold]:
        return [replace(place, applies=False) for place in super().plan(model)]


class MutePass(PlainPass):
    """Gives no reasons."""

    def plan(self, model: nn.Module) -> list[Fold]:
        return [replace(place, reason=" ") for place in super().plan(model)]


class HastyPass(PlainPass):
    """Sets a statistic while it plans."""

    def plan(self, model: nn.Module) -> list[Fold]:
        for module in model.modules():
            if isinstance(module, Doubled):
                module.norm.running_mean = torch.zeros_like(module.one.weight[0, :, 0, 0])
        return super().plan(model)


class ReadingPass(PlainPass):
    """Plans nothing on the meta device."""

    def plan(self, model: nn.Module) -> list[Fold]:
        found = super().plan(model)
        return [] if any(each.is_meta for each in model.parameters()) else found


class WrongPass(PlainPass):
    """Forgets the bias of one of two kernels."""

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        assert isinstance(module, Doubled)
        module.one.weight += module.other.weight
        return module.one


class EagerPass(PlainPass):
    """Plans to fold what it has folded."""

    def plan(self, model: nn.Module) -> list[Fold]:
        found = super().plan(model)
        places = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        return found or [Fold(path, applies=True, reason="so") for path in places]

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        return super().fold(module, fold) if isinstance(module, Doubled) else module


class HoardingPass(PlainPass):
    """Leaves a hundred numbers behind."""

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        made = super().fold(module, fold)
        made.register_buffer("before", torch.zeros(100))
        return made


WRONG: dict[str, tuple[type[ReparamPass], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalPass, "every setting is keyword-only"),
    "example_is_folded_somewhere": (ShyPass, "give example="),
    "places_of_the_plan_are_there": (MutePass, "has no reason"),
    "planning_changes_nothing": (HastyPass, "plan() changes weights"),
    "planning_needs_no_numbers": (ReadingPass, "on the meta device the plan is []"),
    "folded_model_gives_the_same": (WrongPass, "folding changed"),
    "nothing_is_left_to_fold_afterwards": (EagerPass, "plan what is unfolded alone"),
    "folding_gives_no_more_than_it_takes": (HoardingPass, "take away what was folded"),
}


def example() -> nn.Module:
    return nn.Sequential(nn.ReLU(), Doubled())


def test_right_pass_passes_all() -> None:
    check_component(PlainPass, example=example)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pass_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls, example)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_passes_has_a_wrong_one() -> None:
    assert [check.__name__ for check in reparams.CHECKS] == list(WRONG)
