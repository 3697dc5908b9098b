"""Averages that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import PluginError
from detloom.interfaces import Ema
from detloom.testing import check_component, emas

Caught = Callable[[type[Any]], dict[str, str]]


class PlainEma(Ema):
    """A share of the average is kept at each step."""

    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        self.decay = decay
        self.averaged = deepcopy(model).eval().requires_grad_(requires_grad=False)

    def decay_at(self, step: int) -> float:
        return self.decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        live = model.state_dict()
        for name, entry in self.averaged.state_dict().items():
            if name not in live:
                raise PluginError(f"the model has no {name}")
            self.take(entry, live[name], step)

    def take(self, entry: Tensor, live: Tensor, step: int) -> None:
        if entry.is_floating_point():
            entry.lerp_(live, 1 - self.decay_at(step))
        else:
            entry.copy_(live)


class PositionalEma(PlainEma):
    """Takes its setting by position as well."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)


class DividingEma(PlainEma):
    """Divides by its setting, whatever it is."""

    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.window = 1 / max(decay, 0)


class GrowingEma(PlainEma):
    """Has a decay that grows with the steps beyond 1."""

    def decay_at(self, step: int) -> float:
        return self.decay + step / 1_000_000


class ZeroEma(PlainEma):
    """Starts with a bias of 0."""

    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.get_parameter("conv.bias").zero_()


class TrainingEma(PlainEma):
    """Leaves the average in training mode."""

    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.train()


class SharingEma(PlainEma):
    """Shares a bias with the model."""

    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.get_parameter("conv.bias").data = model.get_parameter("conv.bias").data


class FreezingEma(PlainEma):
    """Puts the model into evaluation mode."""

    def update(self, model: nn.Module, step: int) -> None:
        super().update(model.eval(), step)


class SlowEma(PlainEma):
    """Moves half as far as its decay says."""

    def take(self, entry: Tensor, live: Tensor, step: int) -> None:
        if entry.is_floating_point():
            entry.lerp_(live, (1 - self.decay) / 2)
        else:
            entry.copy_(live)


class StillEma(PlainEma):
    """Keeps all of the average at every step."""

    def decay_at(self, step: int) -> float:
        return 1.0


class RoundingEma(PlainEma):
    """Leaves whole numbers as they were at first."""

    def take(self, entry: Tensor, live: Tensor, step: int) -> None:
        if entry.is_floating_point():
            super().take(entry, live, step)


class PairingEma(PlainEma):
    """Depends on the order in which the model lists its parts."""

    def update(self, model: nn.Module, step: int) -> None:
        super().update(model, step)
        if next(iter(model.state_dict())) != next(iter(self.averaged.state_dict())):
            self.averaged.get_parameter("conv.bias").add_(1)


class LenientEma(PlainEma):
    """Averages what the model has, and says nothing of what it lacks."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        live = model.state_dict()
        for name, entry in self.averaged.state_dict().items():
            if name in live:
                self.take(entry, live[name], step)


class ForgetfulEma(PlainEma):
    """Begins slowly and forgets in a resumption how long it has been going on."""

    updates = 0

    def decay_at(self, step: int) -> float:
        return self.decay if self.updates < 2 else self.decay / 2

    def update(self, model: nn.Module, step: int) -> None:
        super().update(model, step)
        self.updates += 1


WRONG: dict[str, tuple[type[Ema], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalEma, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingEma, "decay=-1.0 raises ZeroDivisionError"),
    "decay_lies_between_0_and_1": (GrowingEma, "decay_at(1000000) is 1.9"),
    "first_average_is_the_model": (ZeroEma, "averaged.conv.bias is not the model's"),
    "average_is_in_evaluation_mode_without_gradients": (TrainingEma, "call .eval() on it"),
    "average_shares_nothing_with_the_model": (SharingEma, "averaged.conv.bias changes with the model"),
    "update_leaves_the_model_alone": (FreezingEma, "puts the model into evaluation mode"),
    "update_keeps_the_share_that_decay_at_says": (SlowEma, "make update() and decay_at() agree"),
    "average_comes_to_the_model_in_time": (StillEma, "it must move towards the model"),
    "whole_numbers_are_copied": (RoundingEma, "copy whole numbers"),
    "entries_are_matched_by_name": (PairingEma, "match entries by name"),
    "model_with_other_entries_is_refused": (LenientEma, "averaged in silence"),
    "resumed_average_goes_on_the_same": (ForgetfulEma, "return in state_dict()"),
}


def test_right_average_passes_all() -> None:
    check_component(PlainEma)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_average_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_averages_has_a_wrong_one() -> None:
    assert [check.__name__ for check in emas.CHECKS] == list(WRONG)
