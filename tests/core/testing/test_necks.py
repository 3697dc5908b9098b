"""Necks that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.interfaces import Neck
from detloom.structures import FeatureSpec, Role
from detloom.testing import check_component, networks

Caught = Callable[[type[Any]], dict[str, str]]


class PlainNeck(Neck):
    """A 1x1 convolution a level, and an auxiliary level in training."""

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 4) -> None:
        super().__init__()
        width = max(width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(spec.channels, width, 1) for spec in inputs)
        self.auxiliary = nn.Conv2d(inputs[0].channels, width, 1)
        lead = [FeatureSpec(width, spec.stride) for spec in inputs]
        self.out_specs = (*lead, FeatureSpec(width, inputs[0].stride, Role.AUXILIARY))

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        lead = tuple(conv(level) for conv, level in zip(self.convs, levels, strict=True))
        return (*lead, self.auxiliary(levels[0])) if self.training else lead


class PositionalNeck(PlainNeck):
    """Takes its setting by position as well."""

    def __init__(self, inputs: Sequence[FeatureSpec], width: int = 4) -> None:
        super().__init__(inputs, width=width)


class DividingNeck(PlainNeck):
    """Divides by its setting, whatever it is."""

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 4) -> None:
        super().__init__(inputs, width=width)
        self.share = 1 / max(width, 0)


class FixedNeck(PlainNeck):
    """Resizes its levels to those of pictures of 64 x 128."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sizes = ((8, 16), (4, 8), (2, 4), (8, 16))
        return tuple(functional.interpolate(t, size) for t, size in zip(super().forward(levels), sizes, strict=False))


class ReversedNeck(PlainNeck):
    """Returns the coarsest level first."""

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 4) -> None:
        super().__init__(inputs, width=width)
        self.out_specs = (*self.out_specs[2::-1], self.out_specs[3])

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, second, third, *auxiliary = super().forward(levels)
        return third, second, first, *auxiliary


class WithholdingNeck(PlainNeck):
    """Leaves out the finest level in evaluation mode."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward(levels) if self.training else super().forward(levels)[1:]


class OverwritingNeck(PlainNeck):
    """Subtracts from what it is given in place."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward([level.sub_(0.5) for level in levels])


class CentringNeck(PlainNeck):
    """Subtracts the mean of the batch in evaluation mode."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward([level - level.mean(dim=0) for level in levels])


class CountingNeck(PlainNeck):
    """Counts runs, and adds the count."""

    runs = 0

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # The second run of ordinary levels is another than the first.
        self.runs += levels[0].shape[2] != 8
        return super().forward([level + self.runs for level in levels])


class SecretiveNeck(PlainNeck):
    """Multiplies by a random number that is no parameter."""

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 4) -> None:
        super().__init__(inputs, width=width)
        self.secret = torch.rand(())

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward([level * self.secret for level in levels])


class ClingingNeck(PlainNeck):
    """Has a deep copy that is itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClingingNeck":
        return self


class IdleNeck(PlainNeck):
    """Has a parameter that it does not use."""

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 4) -> None:
        super().__init__(inputs, width=width)
        self.spare = nn.Parameter(torch.zeros(3))


class NumericNeck(PlainNeck):
    """Asks what the largest value is, which no meta tensor knows."""

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward([level / 2 if float(level.amax()) > 99 else level for level in levels])


WRONG: dict[str, tuple[type[Neck], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalNeck, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingNeck, "width=-1 raises ZeroDivisionError"),
    "levels_are_as_out_specs_say": (FixedNeck, "make channels and strides agree"),
    "levels_come_finest_first": (ReversedNeck, "return the finest first"),
    "lead_levels_are_there_in_evaluation_mode": (WithholdingNeck, "auxiliary ones alone may be left out"),
    "inputs_are_left_alone": (OverwritingNeck, "changed in place"),
    "images_do_not_affect_each_other": (CentringNeck, "depend on the other images"),
    "same_input_gives_the_same_levels": (CountingNeck, "draw nothing at random"),
    "state_is_all_in_the_state_dict": (SecretiveNeck, "in parameters and buffers"),
    "copy_computes_the_same": (ClingingNeck, "share no tensor"),
    "gradients_reach_all_parameters": (IdleNeck, "no gradient reaches spare"),
    "built_without_numbers_it_has_the_same_shapes": (NumericNeck, "raised"),
}


def test_right_neck_passes_all() -> None:
    check_component(PlainNeck)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_neck_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_necks_has_a_wrong_one() -> None:
    assert [check.__name__ for check in networks.NECK_CHECKS] == list(WRONG)
