"""Backbones that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.interfaces import Backbone
from detloom.structures import FeatureSpec
from detloom.testing import check_component, networks

Caught = Callable[[type[Any]], dict[str, str]]


class PlainBackbone(Backbone):
    """Patches of 8 pixels, then of 2."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__()
        self.width = max(width, 1)
        self.first = nn.Conv2d(3, self.width, 8, 8)
        self.second = nn.Sequential(nn.BatchNorm2d(self.width), nn.Conv2d(self.width, 6, 2, 2))
        self.out_specs = (FeatureSpec(self.width, 8), FeatureSpec(6, 16))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        fine_BCHW = self.first(images_BCHW)
        return fine_BCHW, self.second(fine_BCHW)


class PositionalBackbone(PlainBackbone):
    """Takes its setting by position as well."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(width=width)


class DividingBackbone(PlainBackbone):
    """Divides by its setting, whatever it is."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.share = 1 / max(width, 0)


class FixedBackbone(PlainBackbone):
    """Resizes its levels to those of pictures of 64 x 128."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        fine_BCHW, coarse_BCHW = super().forward(images_BCHW)
        return functional.interpolate(fine_BCHW, (8, 16)), functional.interpolate(coarse_BCHW, (4, 8))


class ReversedBackbone(PlainBackbone):
    """Returns the coarsest level first."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.out_specs = self.out_specs[::-1]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW)[::-1]


class WithholdingBackbone(PlainBackbone):
    """Leaves out the finest level in evaluation mode."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW) if self.training else super().forward(images_BCHW)[1:]


class OverwritingBackbone(PlainBackbone):
    """Subtracts from what it is given in place."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW.sub_(0.5))


class CentringBackbone(PlainBackbone):
    """Subtracts the mean of the batch in evaluation mode."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW - images_BCHW.mean(dim=0))


class CountingBackbone(PlainBackbone):
    """Counts runs, and adds the count."""

    runs = 0

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        # The second run of large pictures is another than the first.
        self.runs += images_BCHW.shape[2] != 64
        return super().forward(images_BCHW + self.runs)


class SecretiveBackbone(PlainBackbone):
    """Multiplies by a random number that is no parameter."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.secret = torch.rand(())

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW * self.secret)


class ClingingBackbone(PlainBackbone):
    """Has a deep copy that is itself."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.run = super().forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClingingBackbone":
        return self

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.run(images_BCHW)


class IdleBackbone(PlainBackbone):
    """Has a parameter that it does not use."""

    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.spare = nn.Parameter(torch.zeros(3))


class NumericBackbone(PlainBackbone):
    """Asks what the largest value is, which no meta tensor knows."""

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW / 2 if float(images_BCHW.amax()) > 2 else images_BCHW)


WRONG: dict[str, tuple[type[Backbone], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalBackbone, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingBackbone, "width=-1 raises ZeroDivisionError"),
    "levels_are_as_out_specs_say": (FixedBackbone, "make channels and strides agree"),
    "levels_come_finest_first": (ReversedBackbone, "return the finest first"),
    "lead_levels_are_there_in_evaluation_mode": (WithholdingBackbone, "auxiliary ones alone may be left out"),
    "inputs_are_left_alone": (OverwritingBackbone, "changed in place"),
    "images_do_not_affect_each_other": (CentringBackbone, "depend on the other images"),
    "same_input_gives_the_same_levels": (CountingBackbone, "draw nothing at random"),
    "state_is_all_in_the_state_dict": (SecretiveBackbone, "in parameters and buffers"),
    "copy_computes_the_same": (ClingingBackbone, "share no tensor"),
    "gradients_reach_all_parameters": (IdleBackbone, "no gradient reaches spare"),
    "built_without_numbers_it_has_the_same_shapes": (NumericBackbone, "raised"),
}


def test_right_backbone_passes_all() -> None:
    check_component(PlainBackbone)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_backbone_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_backbones_has_a_wrong_one() -> None:
    assert [check.__name__ for check in networks.BACKBONE_CHECKS] == list(WRONG)
