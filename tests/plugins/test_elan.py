from typing import Any

import pytest
import torch

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec
from detloom_plugins.elan import ElanBackbone


def test_levels_have_the_widths_and_strides_that_are_announced() -> None:
    backbone = ElanBackbone()

    levels = backbone(torch.rand(1, 3, 64, 96))

    assert backbone.out_specs == (FeatureSpec(128, 8), FeatureSpec(256, 16), FeatureSpec(512, 32))
    assert [level.shape for level in levels] == [(1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]


def test_only_the_strides_asked_for_are_returned() -> None:
    backbone = ElanBackbone(out_strides=[4, 16])

    assert [spec.stride for spec in backbone.out_specs] == [4, 16]
    assert len(backbone(torch.rand(1, 3, 64, 64))) == 2


def test_space_to_depth_counts_as_a_stride_of_two() -> None:
    backbone = ElanBackbone(space_to_depth=True, stem=[[3, 1, 8]], transitions=["pool"] * 4, out_strides=[4, 32])

    assert [level.shape[-1] for level in backbone(torch.rand(1, 3, 64, 64))] == [16, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": [64, 128]}, "widths has 2, hidden has 4, transitions has 4"),
        ({"transition_widths": [64]}, "transition_widths has 1"),
        ({"stem": [[3, 32]]}, r"\[kernel, stride, width\], got \[3, 32\]"),
        ({"out_strides": [8, 64]}, r"among \[4, 8, 16, 32\], got \[8, 64\]"),
        ({"out_strides": [16, 8]}, "must be ascending"),
        ({"branches": 0}, "branches must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"taps": "odd"}, "taps must be 'all' or 'even', got 'odd'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ElanBackbone(**settings)
