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
    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)


class DividingEma(PlainEma):
    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.window = 1 / max(decay, 0)


class GrowingEma(PlainEma):
    def decay_at(self, step: int) -> float:
        return self.decay + step / 1_000_000


class ZeroEma(PlainEma):
    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.get_parameter("conv.bias").zero_()


class TrainingEma(PlainEma):
    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.train()


class SharingEma(PlainEma):
    def __init__(self, model: nn.Module, *, decay: float = 0.9) -> None:
        super().__init__(model, decay=decay)
        self.averaged.get_parameter("conv.bias").data = model.get_parameter("conv.bias").data


class FreezingEma(PlainEma):
    def update(self, model: nn.Module, step: int) -> None:
        super().update(model.eval(), step)


class SlowEma(PlainEma):
    def take(self, entry: Tensor, live: Tensor, step: int) -> None:
        if entry.is_floating_point():
            entry.lerp_(live, (1 - self.decay) / 2)
        else:
            entry.copy_(live)


class StillEma(PlainEma):
    def decay_at(self, step: int) -> float:
        return 1.0


class RoundingEma(PlainEma):
    def take(self, entry: Tensor, live: Tensor, step: int) -> None:
        if entry.is_floating_point():
            super().take(entry, live, step)


class PairingEma(PlainEma):
    def update(self, model: nn.Module, step: int) -> None:
        super().update(model, step)
        if next(iter(model.state_dict())) != next(iter(self.averaged.state_dict())):
            self.averaged.get_parameter("conv.bias").add_(1)


class LenientEma(PlainEma):
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


WRONG: dict[str, tuple[type[Ema], str, set[str]]] = {
    "settings_are_keyword_only_and_typed": (PositionalEma, "every setting is keyword-only", set()),
    "numbers_without_sense_are_refused_by_name": (DividingEma, "decay=-1.0 raises ZeroDivisionError", set()),
    "decay_lies_between_0_and_1": (GrowingEma, "decay_at(1000000) is 1.9", set()),
    "first_average_is_the_model": (ZeroEma, "averaged.conv.bias is not the model's", set()),
    "average_is_in_evaluation_mode_without_gradients": (TrainingEma, "call .eval() on it", set()),
    "average_shares_nothing_with_the_model": (SharingEma, "averaged.conv.bias changes with the model", set()),
    "update_leaves_the_model_alone": (FreezingEma, "puts the model into evaluation mode", set()),
    "update_keeps_the_share_that_decay_at_says": (SlowEma, "make update() and decay_at() agree", set()),
    "average_comes_to_the_model_in_time": (StillEma, "it must move towards the model", set()),
    "whole_numbers_are_copied": (RoundingEma, "copy whole numbers", set()),
    "entries_are_matched_by_name": (PairingEma, "match entries by name", set()),
    "model_with_other_entries_is_refused": (LenientEma, "averaged in silence", set()),
    "resumed_average_goes_on_the_same": (ForgetfulEma, "return in state_dict()", set()),
}


def test_right_average_passes_all() -> None:
    check_component(PlainEma)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_average_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message, also = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name, *also}
    assert message in broken[name]


def test_every_check_of_averages_has_a_wrong_one() -> None:
    assert [check.__name__ for check in emas.CHECKS] == list(WRONG)
