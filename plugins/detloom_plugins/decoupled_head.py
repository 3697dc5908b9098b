"""The decoupled, anchor-free head of YOLOX.

Raw maps hold x, y, w, h, objectness and classes of one prediction a cell.

Shape letters: B images, P priors, C classes, H and W rows and columns.

References: Ge et al., YOLOX (2021), section 2.1; Lin et al., Focal loss (2017), section 3.3, for biases from a prior.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Head
from detloom.structures import FeatureSpec, HeadMaps, HeadTraits, Predictions, Role
from detloom_plugins.layers import Activation, ConvBlock
from detloom_plugins.prior_cache import PriorCache

__all__ = ["DecoupledHead"]

# exp(8) cells are far beyond any picture; without a limit one wild logit is an infinite loss.
LARGEST_LOG_SIZE = 8.0
PRIOR_PROBABILITY = 0.01


class DecoupledHead(Head):
    """Separate branches for classes and for boxes, one prediction a cell.

    Args:
        inputs: Lead levels, finest first, then auxiliary ones, if any, which have all or some of their strides.
        num_classes: Number of classes.
        width: Channels of both branches; 0 for those of each level.
        depth: 3x3 convolutions of each branch.
        activation: silu, leaky-relu or relu.
        prior_scale: Nominal size of a prior in cells, for assigners that compare sizes.
    """

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 2,
        activation: Activation = "silu",
        prior_scale: float = 4.0,
    ) -> None:
        super().__init__()
        lead = [spec for spec in inputs if spec.role == Role.LEAD]
        auxiliary = [spec for spec in inputs if spec.role == Role.AUXILIARY]
        if num_classes < 1:
            raise RecipeError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.strides = tuple(spec.stride for spec in lead)
        self.prior_scale = prior_scale
        self.traits = HeadTraits(anchors=False, objectness=True, levels=len(lead))
        sizes_L12 = [[(prior_scale * stride, prior_scale * stride)] for stride in self.strides]
        self.priors = PriorCache(self.strides, sizes_L12, auxiliary=[spec.stride for spec in auxiliary])

        def branches(specs: Sequence[FeatureSpec]) -> nn.ModuleList:
            return nn.ModuleList(
                _Level(spec.channels, num_classes, width=width or spec.channels, depth=depth, activation=activation)
                for spec in specs
            )

        self.lead = branches(lead)
        self.auxiliary = branches(auxiliary)

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps; in training mode the auxiliary ones too, where there are such levels."""
        count = len(self.lead)
        lead = tuple(branch(level) for branch, level in zip(self.lead, levels[:count], strict=True))
        if not self.training or len(levels) == count:
            return HeadMaps(lead)
        pairs = zip(self.auxiliary, levels[count:], strict=True)
        return HeadMaps(lead, tuple(branch(level) for branch, level in pairs))

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions of lead maps, or of auxiliary maps, in float32 (float64 stays)."""
        priors = self.priors.of(maps)
        raw_BPO = torch.cat([each.permute(0, 2, 3, 1).flatten(1, 2) for each in maps], dim=1)
        if raw_BPO.dtype != torch.float64:
            raw_BPO = raw_BPO.float()
        offset_BP2, size_BP2, objectness_BP1, classes_BPC = torch.split(raw_BPO, [2, 2, 1, self.num_classes], dim=-1)
        strides_P1 = priors.strides_P[:, None]
        # Offsets count from the cell's corner; priors have its centre.
        center_BP2 = priors.centers_P2 + (offset_BP2 - 0.5) * strides_P1
        half_BP2 = size_BP2.clamp(max=LARGEST_LOG_SIZE).exp() * (strides_P1 / 2)
        return Predictions(
            boxes_BP4=torch.cat((center_BP2 - half_BP2, center_BP2 + half_BP2), dim=-1),
            class_logits_BPC=classes_BPC,
            objectness_BP=objectness_BP1.squeeze(-1),
            priors=priors,
        )

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        return {
            "num_classes": self.num_classes,
            "levels": [{"stride": stride, "priors": [[self.prior_scale * stride] * 2]} for stride in self.strides],
            "outputs": [
                {"name": "center", "channels": 2},
                {"name": "size", "channels": 2},
                {"name": "objectness", "channels": 1},
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
            "score": ["objectness", "classes"],
        }


class _Level(nn.Module):
    """The two branches of one level."""

    def __init__(self, inputs: int, num_classes: int, *, width: int, depth: int, activation: Activation) -> None:
        super().__init__()
        self.stem = ConvBlock(inputs, width, activation=activation)
        self.for_classes = _convs(width, depth, activation)
        self.for_boxes = _convs(width, depth, activation)
        self.classes = _rare(nn.Conv2d(width, num_classes, 1))
        self.box = nn.Conv2d(width, 4, 1)
        self.objectness = _rare(nn.Conv2d(width, 1, 1))

    def forward(self, level_BCHW: Tensor) -> Tensor:
        """Return box, objectness and classes of each cell."""
        stem_BCHW = self.stem(level_BCHW)
        classes_BCHW = self.classes(self.for_classes(stem_BCHW))
        boxes_BCHW = self.for_boxes(stem_BCHW)
        return torch.cat((self.box(boxes_BCHW), self.objectness(boxes_BCHW), classes_BCHW), dim=1)


def _convs(width: int, depth: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(*(ConvBlock(width, width, 3, activation=activation) for _ in range(depth)))


def _rare(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with biases that start from a small probability."""
    if conv.bias is not None:
        nn.init.constant_(conv.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))
    return conv


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head."""
    register("decoupled", DecoupledHead)
