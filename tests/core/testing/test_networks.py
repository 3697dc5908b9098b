"""Backbones and necks that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.interfaces import Backbone, Neck
from detloom.structures import FeatureSpec, Role
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


class PositionalBackbone(PlainBackbone):
    def __init__(self, width: int = 4) -> None:
        super().__init__(width=width)


class DividingBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.share = 1 / max(width, 0)


class MisstatingBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.out_specs = (FeatureSpec(self.width + 1, 8), FeatureSpec(6, 16))


class ReversedBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.out_specs = self.out_specs[::-1]

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW)[::-1]


class WithholdingNeck(PlainNeck):
    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward(levels) if self.training else super().forward(levels)[1:]


class OverwritingBackbone(PlainBackbone):
    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW.sub_(0.5))


class CentringBackbone(PlainBackbone):
    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW - images_BCHW.mean(dim=0))


class CountingBackbone(PlainBackbone):
    runs = 0

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        # The second run of large pictures is another than the first.
        self.runs += images_BCHW.shape[2] != 64
        return super().forward(images_BCHW + self.runs)


class SecretiveBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.secret = torch.rand(())

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW * self.secret)


class ClingingBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.run = super().forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClingingBackbone":
        return self

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.run(images_BCHW)


class IdleBackbone(PlainBackbone):
    def __init__(self, *, width: int = 4) -> None:
        super().__init__(width=width)
        self.spare = nn.Parameter(torch.zeros(3))


class NumericBackbone(PlainBackbone):
    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images_BCHW / 2 if float(images_BCHW.amax()) > 2 else images_BCHW)


WRONG: dict[str, tuple[type[nn.Module], str, set[str]]] = {
    "settings_are_keyword_only_and_typed": (PositionalBackbone, "every setting is keyword-only", set()),
    "numbers_without_sense_are_refused_by_name": (DividingBackbone, "width=-1 raises ZeroDivisionError", set()),
    "levels_are_as_out_specs_say": (
        MisstatingBackbone,
        "make channels and strides agree",
        {"built_without_numbers_it_has_the_same_shapes"},
    ),
    "levels_come_finest_first": (ReversedBackbone, "return the finest first", set()),
    "lead_levels_are_there_in_evaluation_mode": (WithholdingNeck, "auxiliary ones alone may be left out", set()),
    "inputs_are_left_alone": (OverwritingBackbone, "changed in place", set()),
    "images_do_not_affect_each_other": (CentringBackbone, "depend on the other images", set()),
    "same_input_gives_the_same_levels": (CountingBackbone, "draw nothing at random", set()),
    "state_is_all_in_the_state_dict": (SecretiveBackbone, "in parameters and buffers", set()),
    "copy_computes_the_same": (ClingingBackbone, "share no tensor", set()),
    "gradients_reach_all_parameters": (IdleBackbone, "no gradient reaches spare", set()),
    "built_without_numbers_it_has_the_same_shapes": (NumericBackbone, "raised", set()),
}


@pytest.mark.parametrize("cls", [PlainBackbone, PlainNeck])
def test_right_network_passes_all(cls: type[nn.Module]) -> None:
    check_component(cls)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_network_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message, also = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name, *also}
    assert message in broken[name]


def test_every_check_of_networks_has_a_wrong_one() -> None:
    assert [check.__name__ for check in networks.BACKBONE_CHECKS] == list(WRONG)
    assert set(networks.NECK_CHECKS) <= set(networks.BACKBONE_CHECKS)
