"""The anchor-based head of YOLOv7, with implicit knowledge in front of and behind its convolutions.

Raw maps are anchor-major: channel ``anchor * (5 + num_classes) + o``, ``o`` being x, y, w, h, objectness, classes;
without an objectness, ``anchor * (4 + num_classes) + o``.

Shape letters: B images, P priors, C classes, H and W rows and columns, I and O channels in and out.

References: Wang, Bochkovskiy and Liao, YOLOv7 (2022); Wang, Yeh and Liao, You only learn one representation (2021),
section 3, for implicit knowledge; Lin et al., Focal loss (2017), section 3.3, for biases from a prior.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Head
from detloom.structures import Extent, FeatureSpec, HeadMaps, HeadTraits, Predictions, Role
from detloom_plugins.decoupled_branches import PRIOR_PROBABILITY
from detloom_plugins.prior_cache import PriorCache

__all__ = ["AnchorHead", "ImplicitConv"]

TINY_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


class ImplicitConv(nn.Module):
    """A 1x1 convolution with learned constants: ``multiply * (W (x + add) + b)``.

    The constants are drawn into the kernel at each step, which is equal and spares two passes over the maps.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.add = nn.Parameter(torch.randn(conv.in_channels) * 0.02)
        self.multiply = nn.Parameter(1 + torch.randn(conv.out_channels) * 0.02)

    def forward(self, x_BIHW: Tensor) -> Tensor:
        """Return the maps."""
        return functional.conv2d(x_BIHW, *self.explicit())

    def explicit(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias of the plain convolution that equals this one."""
        weight_OI11 = self.conv.weight
        # Elementwise, not a matrix product, which autocast would round to half precision.
        shift_O = (weight_OI11.flatten(1) * self.add).sum(dim=1)
        bias_O = shift_O if self.conv.bias is None else self.conv.bias + shift_O
        return weight_OI11 * self.multiply[:, None, None, None], bias_O * self.multiply


class AnchorHead(Head):
    """One 1x1 convolution a level, predicting for each anchor a box, an objectness and classes.

    Args:
        inputs: Lead levels, finest first, then auxiliary ones, if any, which have all or some of their strides.
        num_classes: Number of classes.
        anchors: Widths and heights in pixels of each level's anchors, finest level first.
        implicit: Learn constants in front of and behind the lead convolutions.
        objectness: Predict an objectness, whose product with a class is its score; some criteria learn one,
            others ask for heads without.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "anchors": Extent.LENGTH,
    }

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        num_classes: int,
        *,
        anchors: Sequence[Sequence[Sequence[float]]] = TINY_ANCHORS,
        implicit: bool = True,
        objectness: bool = True,
    ) -> None:
        super().__init__()
        lead = [spec for spec in inputs if spec.role == Role.LEAD]
        auxiliary = [spec for spec in inputs if spec.role == Role.AUXILIARY]
        _check(anchors, lead, num_classes)
        self.num_classes = num_classes
        self.anchors = tuple(tuple((float(w), float(h)) for w, h in level) for level in anchors)
        self.strides = tuple(spec.stride for spec in lead)
        self.traits = HeadTraits(anchors=True, objectness=objectness, levels=len(lead))
        self.channels = 4 + int(objectness) + num_classes
        self.priors = PriorCache(self.strides, self.anchors, auxiliary=[spec.stride for spec in auxiliary])
        outputs = len(self.anchors[0]) * self.channels
        convs = [self._conv(spec, outputs) for spec in lead]
        self.lead = nn.ModuleList(ImplicitConv(conv) if implicit else conv for conv in convs)
        self.auxiliary = nn.ModuleList(self._conv(spec, outputs) for spec in auxiliary)

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps; in training mode the auxiliary ones too, where there are such levels."""
        count = len(self.lead)
        lead = tuple(conv(level) for conv, level in zip(self.lead, levels[:count], strict=True))
        if not self.training or len(levels) == count:
            return HeadMaps(lead)
        pairs = zip(self.auxiliary, levels[count:], strict=True)
        return HeadMaps(lead, tuple(conv(level) for conv, level in pairs))

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions of lead maps, or of auxiliary maps, in float32 (float64 stays)."""
        priors = self.priors.of(maps)
        # A map in channels-last memory is read as it lies.
        raw_BPO = torch.cat([each.permute(0, 2, 3, 1).reshape(each.shape[0], -1, self.channels) for each in maps], 1)
        if raw_BPO.dtype != torch.float64:
            raw_BPO = raw_BPO.float()
        num_objectness = int(self.traits.objectness)
        box_BP4, objectness_BPO, classes_BPC = torch.split(raw_BPO, [4, num_objectness, self.num_classes], dim=-1)
        offset_BP2, scale_BP2 = torch.split(2 * box_BP4.sigmoid(), 2, dim=-1)
        # The offset runs from -1/2 to 3/2 of a cell, from its corner; priors have the cell's centre.
        center_BP2 = priors.centers_P2 + (offset_BP2 - 1) * priors.strides_P[:, None]
        half_BP2 = scale_BP2.square() * (priors.sizes_P2 / 2)
        return Predictions(
            boxes_BP4=torch.cat((center_BP2 - half_BP2, center_BP2 + half_BP2), dim=-1),
            class_logits_BPC=classes_BPC,
            objectness_BP=objectness_BPO.squeeze(-1) if num_objectness else None,
            priors=priors,
        )

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        has_objectness = self.traits.objectness
        return {
            "num_classes": self.num_classes,
            "levels": [
                {"stride": stride, "priors": [list(pair) for pair in level]}
                for stride, level in zip(self.strides, self.anchors, strict=True)
            ],
            "outputs": [
                {"name": "center", "channels": 2},
                {"name": "size", "channels": 2},
                *(({"name": "objectness", "channels": 1},) if has_objectness else ()),
                {"name": "classes", "channels": self.num_classes},
            ],
            "box": {
                "form": "center-and-size",
                "center": {"activation": "sigmoid", "scale": 2.0, "shift": -0.5},
                "size": {"activation": "sigmoid", "limit": None, "scale": 2.0, "exponent": 2.0, "unit": "prior"},
            },
            "score": ["objectness", "classes"] if has_objectness else ["classes"],
            "suppression": True,
        }

    def _conv(self, spec: FeatureSpec, outputs: int) -> nn.Conv2d:
        """Return a convolution that expects 8 objects in 640 x 640 pixels, and classes as rare as there are many.

        Without an objectness, each class starts from the small probability of Lin et al. (2017), section 4.1.
        """
        conv = nn.Conv2d(spec.channels, outputs, 1)
        prior_O = torch.zeros(self.channels)
        if self.traits.objectness:
            prior_O[4] = math.log(8 / (640 / spec.stride) ** 2)
            prior_O[5:] = math.log(0.6 / (self.num_classes - 0.99))
        else:
            prior_O[4:] = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
        if conv.bias is not None:
            # Added to the drawn bias, not in its place.
            conv.bias = nn.Parameter(conv.bias.detach() + torch.cat([prior_O] * (outputs // self.channels)))
        return conv


def _check(
    anchors: Sequence[Sequence[Sequence[float]]],
    lead: Sequence[FeatureSpec],
    num_classes: int,
) -> None:
    if num_classes < 1:
        raise RecipeError(f"num_classes must be at least 1, got {num_classes}")
    if len(anchors) != len(lead):
        strides = [spec.stride for spec in lead]
        raise RecipeError(f"anchors needs one list for each level (strides {strides}), got {len(anchors)}")
    if len({len(level) for level in anchors}) != 1 or not anchors[0]:
        raise RecipeError(f"each level needs the same number of anchors, got {[len(level) for level in anchors]}")
    if any(len(pair) != 2 or min(pair) <= 0 for level in anchors for pair in level):
        raise RecipeError("an anchor is [width, height] in pixels, both above 0")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head."""
    register("anchor", AnchorHead)
