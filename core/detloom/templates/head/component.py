"""A head of one convolution a level, anchor-free and without objectness.

Raw maps hold x, y, width, height and classes of one prediction a cell.

Shape letters: B images, P priors, O outputs, C classes.

Reference: the box's form is that of Ge et al., YOLOX (2021), section 2.1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloom import hookimpl
from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.interfaces import Head
from detloom.structures import FeatureSpec, HeadMaps, HeadTraits, Predictions, Priors, Role

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1

# exp(8) cells are far beyond any picture; without a limit one wild logit is an infinite loss.
LARGEST_LOG_SIZE = 8.0


class NewComponent(Head):
    """One 1x1 convolution a level.

    Args:
        inputs: Levels, finest first.
        num_classes: Number of classes.
        first_score: Score of every class before training; most priors are background.
    """

    def __init__(self, inputs: Sequence[FeatureSpec], num_classes: int, *, first_score: float = 0.01) -> None:
        super().__init__()
        if num_classes < 1:
            raise RecipeError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < first_score < 1:
            raise RecipeError(f"first_score must be above 0 and below 1, got {first_score}")
        if any(spec.role == Role.AUXILIARY for spec in inputs):
            raise RecipeError("it has no auxiliary outputs; choose a neck without auxiliary levels")
        self.num_classes = num_classes
        self.strides = tuple(spec.stride for spec in inputs)
        self.traits = HeadTraits(anchors=False, objectness=False, levels=len(inputs))
        self.outputs = nn.ModuleList(nn.Conv2d(spec.channels, 4 + num_classes, 1) for spec in inputs)
        for conv in self.outputs:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.constant_(conv.bias[4:], math.log(first_score / (1 - first_score)))

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps."""
        return HeadMaps(tuple(conv(level) for conv, level in zip(self.outputs, levels, strict=True)))

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions, in float32 (float64 stays)."""
        shapes = [(each.shape[-2], each.shape[-1]) for each in maps]
        sizes_LA2 = torch.tensor([[[stride, stride]] for stride in self.strides], device=maps[0].device)
        priors = Priors.on_grids(shapes, self.strides, sizes_LA2.float())
        raw_BPO = torch.cat([each.permute(0, 2, 3, 1).flatten(1, 2) for each in maps], dim=1)
        if raw_BPO.dtype != torch.float64:
            raw_BPO = raw_BPO.float()
        offset_BP2, size_BP2, classes_BPC = torch.split(raw_BPO, [2, 2, self.num_classes], dim=-1)
        strides_P1 = priors.strides_P[:, None]
        # Offsets count from the cell's corner; priors have its centre.
        center_BP2 = priors.centers_P2 + (offset_BP2 - 0.5) * strides_P1
        half_BP2 = size_BP2.clamp(max=LARGEST_LOG_SIZE).exp() * (strides_P1 / 2)
        return Predictions(
            boxes_BP4=torch.cat((center_BP2 - half_BP2, center_BP2 + half_BP2), dim=-1),
            class_logits_BPC=classes_BPC,
            objectness_BP=None,
            priors=priors,
        )

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        return {
            "num_classes": self.num_classes,
            "levels": [{"stride": stride, "priors": [[float(stride)] * 2]} for stride in self.strides],
            "outputs": [
                {"name": "center", "channels": 2},
                {"name": "size", "channels": 2},
                {"name": "classes", "channels": self.num_classes},
            ],
            "box": {
                "form": "center-and-size",
                "center": {"activation": "identity", "scale": 1.0, "shift": 0.0},
                "size": {
                    "activation": "exp",
                    "limit": LARGEST_LOG_SIZE,
                    "scale": 1.0,
                    "exponent": 1.0,
                    "unit": "stride",
                },
            },
            "score": ["classes"],
            "suppression": True,
        }


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head under the name that recipes use."""
    register("new-component", NewComponent)
