"""Heads that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.interfaces import Head
from detloom.structures import FeatureSpec, HeadMaps, HeadTraits, Predictions, Priors, Role
from detloom.testing import check_component, heads

Caught = Callable[[type[Any]], dict[str, str]]


class PlainHead(Head):
    """One 1x1 convolution a level; offsets, logarithms of sizes, an objectness and classes of one prior a cell."""

    limit: float | None = 10.0

    def __init__(self, inputs: tuple[FeatureSpec, ...], num_classes: int, *, side: float = 4.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.side = side
        self.strides = [spec.stride for spec in inputs if spec.role is Role.LEAD]
        self.other_strides = [spec.stride for spec in inputs if spec.role is Role.AUXILIARY]
        self.convs = nn.ModuleList(nn.Conv2d(spec.channels, 5 + num_classes, 1) for spec in inputs)
        self.traits = HeadTraits(anchors=False, objectness=True, levels=len(self.strides))

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        maps = tuple(conv(level) for conv, level in zip(self.convs, levels, strict=True))
        count = len(self.strides)
        return HeadMaps(maps[:count], maps[count:] if self.training else ())

    def priors(self, maps: Sequence[Tensor]) -> Priors:
        strides = self.strides if len(maps) == len(self.strides) else self.other_strides
        shapes = {s: (m.shape[2], m.shape[3]) for s, m in zip(strides, maps, strict=True)}
        sizes_L12 = torch.tensor([[[self.side * s] * 2] for s in self.strides])
        return Priors.on_grids([shapes.get(s) for s in self.strides], self.strides, sizes_L12)

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        priors = self.priors(maps)
        raw_BPO = self.converted(torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1))
        center_BP2 = priors.centers_P2 + (raw_BPO[..., :2] - 0.5) * priors.strides_P[:, None]
        half_BP2 = raw_BPO[..., 2:4].clamp(max=self.limit).exp() * priors.strides_P[:, None] / 2
        boxes_BP4 = torch.cat((center_BP2 - half_BP2, center_BP2 + half_BP2), dim=-1)
        return Predictions(boxes_BP4, raw_BPO[..., 5:], raw_BPO[..., 4], priors)

    def converted(self, raw_BPO: Tensor) -> Tensor:
        return raw_BPO.float()

    def decode_spec(self) -> DecodeSpec:
        return {
            "num_classes": self.num_classes,
            "levels": [{"stride": s, "priors": [[self.side * s] * 2]} for s in self.strides],
            "outputs": [
                {"name": "center", "channels": 2},
                {"name": "size", "channels": 2},
                {"name": "objectness", "channels": 1},
                {"name": "classes", "channels": self.num_classes},
            ],
            "box": {
                "form": "center-and-size",
                "center": {"activation": "identity", "scale": 1.0, "shift": 0.0},
                "size": {"activation": "exp", "limit": self.limit, "scale": 1.0, "exponent": 1.0, "unit": "stride"},
            },
            "score": ["objectness", "classes"],
            "suppression": True,
        }


class PositionalHead(PlainHead):
    """Takes its setting by position as well."""

    def __init__(self, inputs: tuple[FeatureSpec, ...], num_classes: int, side: float = 4.0) -> None:
        super().__init__(inputs, num_classes, side=side)


class DividingHead(PlainHead):
    """Divides by its setting, whatever it is."""

    def __init__(self, inputs: tuple[FeatureSpec, ...], num_classes: int, *, side: float = 4.0) -> None:
        super().__init__(inputs, num_classes, side=side)
        self.share = 1 / max(side, 0)


class CroppingHead(PlainHead):
    """Leaves out the last column of each level."""

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        return super().forward([level[..., : max(1, level.shape[-1] - 1)] for level in levels])


class UnsqueezedHead(PlainHead):
    """Gives objectness one axis more, in training."""

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        found = super().decode(maps)
        assert found.objectness_BP is not None
        return replace(found, objectness_BP=found.objectness_BP[..., None]) if self.training else found


class HalfHead(PlainHead):
    """Decodes in the precision of its maps."""

    def converted(self, raw_BPO: Tensor) -> Tensor:
        return raw_BPO


class UnlimitedHead(PlainHead):
    """Decodes sizes without a limit, and says so to a host."""

    limit = None

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        self.limit = float("inf")
        found = super().decode(maps)
        self.limit = None
        return found


class BoastingHead(PlainHead):
    """Says that it predicts distributions, and does not."""

    def __init__(self, inputs: tuple[FeatureSpec, ...], num_classes: int, *, side: float = 4.0) -> None:
        super().__init__(inputs, num_classes, side=side)
        self.traits = replace(self.traits, distribution_bins=16)


class MisleadingHead(PlainHead):
    """Tells a host of a shift of centres that it does not make."""

    def decode_spec(self) -> DecodeSpec:
        spec = super().decode_spec()
        assert spec["box"]["form"] == "center-and-size"
        spec["box"]["center"]["shift"] = 0.5
        return spec


class UnsuppressedHead(PlainHead):
    """Tells a host to suppress nothing, and is not one-to-one."""

    def decode_spec(self) -> DecodeSpec:
        return {**super().decode_spec(), "suppression": False}


class WastefulHead(PlainHead):
    """Computes auxiliary maps in evaluation mode, too."""

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        maps = tuple(conv(level) for conv, level in zip(self.convs, levels, strict=True))
        return HeadMaps(maps[: len(self.strides)], maps[len(self.strides) :])


class RenumberingHead(PlainHead):
    """Numbers the levels of auxiliary priors anew."""

    def priors(self, maps: Sequence[Tensor]) -> Priors:
        priors = super().priors(maps)
        grids = tuple(replace(grid, level=level) for level, grid in enumerate(priors.grids))
        return replace(priors, grids=grids)


class CachingHead(PlainHead):
    """Keeps the priors of the first size of image for every other."""

    def priors(self, maps: Sequence[Tensor]) -> Priors:
        cache: dict[int, Priors] = self.__dict__.setdefault("cache", {})
        return cache.setdefault(len(maps), super().priors(maps))


class BatchNormalisedHead(PlainHead):
    """Subtracts the mean of the batch in evaluation mode."""

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        return super().forward([level - level.mean(dim=0) for level in levels])


class UniqueHead(PlainHead):
    """Has a deep copy with new weights."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "UniqueHead":
        specs = [FeatureSpec(conv.in_channels, s) for conv, s in zip(self.convs, self.strides, strict=False)]  # type: ignore[arg-type]  # they are convolutions
        return UniqueHead(tuple(specs), self.num_classes).eval()


class IdleHead(PlainHead):
    """Has a parameter that it does not use."""

    def __init__(self, inputs: tuple[FeatureSpec, ...], num_classes: int, *, side: float = 4.0) -> None:
        super().__init__(inputs, num_classes, side=side)
        self.spare = nn.Parameter(torch.zeros(3))


# For each check a component that is wrong in one way, and a part of what its author is told.
WRONG: dict[str, tuple[type[Head], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalHead, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingHead, "side=-1.0 raises ZeroDivisionError"),
    "each_level_has_a_map": (CroppingHead, "keep batch, rows and columns"),
    "predictions_have_the_shapes_of_their_priors": (UnsqueezedHead, "objectness_BP has shape"),
    "predictions_are_float32": (HalfHead, "torch.bfloat16"),
    "predictions_are_finite_and_boxes_not_inverted": (UnlimitedHead, "boxes_BP4 is not finite"),
    "traits_agree_with_predictions": (BoastingHead, "traits.distribution_bins is 16"),
    "host_decodes_the_same_from_the_spec": (MisleadingHead, "finds other boxes than decode()"),
    "spec_says_whether_to_suppress": (UnsuppressedHead, "['suppression'] is False"),
    "auxiliary_maps_come_in_training_alone": (WastefulHead, "in evaluation mode"),
    "auxiliary_priors_keep_their_levels": (RenumberingHead, "see Priors.on_grids"),
    "grids_of_any_size_are_served": (CachingHead, "raised RuntimeError"),
    "images_do_not_affect_each_other": (BatchNormalisedHead, "depends on the other images"),
    "copy_predicts_the_same": (UniqueHead, "of a deep copy differ"),
    "gradients_reach_all_parameters": (IdleHead, "no gradient reaches spare"),
}


def test_right_head_passes_all() -> None:
    check_component(PlainHead)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_head_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_heads_has_a_wrong_one() -> None:
    assert [check.__name__ for check in heads.CHECKS] == list(WRONG)
