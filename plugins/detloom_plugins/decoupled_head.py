"""The decoupled, anchor-free head of YOLOX.

Raw maps hold x, y, w, h, objectness, if any, and classes of one prediction a cell.

Shape letters: B images, P priors, O outputs, C classes.

Reference: Ge et al., YOLOX (2021), section 2.1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Head
from detloom.structures import Extent, FeatureSpec, HeadMaps, HeadTraits, Predictions, Role
from detloom_plugins.decoupled_branches import DecoupledBranches
from detloom_plugins.layers import Activation
from detloom_plugins.prior_cache import PriorCache

__all__ = ["DecoupledHead"]

# exp(8) cells are far beyond any picture; without a limit one wild logit is an infinite loss.
LARGEST_LOG_SIZE = 8.0


class DecoupledHead(Head):
    """Separate branches for classes and for boxes, one prediction a cell.

    Args:
        inputs: Lead levels, finest first, then auxiliary ones, if any, which have all or some of their strides.
        num_classes: Number of classes.
        width: Channels of both branches; 0 for those of each level.
        depth: 3x3 convolutions of each branch.
        activation: silu, leaky-relu, relu or relu6.
        prior_scale: Nominal size of a prior in cells, for assigners that compare sizes.
        objectness: Predict an objectness, whose product with a class is its score; some criteria learn one,
            others ask for heads without.
    """

    # As published families do, scaling leaves the branches as deep as they are.
    extents: ClassVar[Mapping[str, Extent]] = {
        "width": Extent.WIDTH,
    }

    def __init__(
        self,
        inputs: Sequence[FeatureSpec],
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 2,
        activation: Activation = "silu",
        prior_scale: float = 4.0,
        objectness: bool = True,
    ) -> None:
        super().__init__()
        lead = [spec for spec in inputs if spec.role == Role.LEAD]
        auxiliary = [spec for spec in inputs if spec.role == Role.AUXILIARY]
        if num_classes < 1:
            raise RecipeError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.strides = tuple(spec.stride for spec in lead)
        self.prior_scale = prior_scale
        self.traits = HeadTraits(anchors=False, objectness=objectness, levels=len(lead))
        sizes_L12 = [[(prior_scale * stride, prior_scale * stride)] for stride in self.strides]
        self.priors = PriorCache(self.strides, sizes_L12, auxiliary=[spec.stride for spec in auxiliary])

        def branches(specs: Sequence[FeatureSpec]) -> nn.ModuleList:
            return nn.ModuleList(
                DecoupledBranches(
                    spec.channels,
                    num_classes,
                    box_outputs=4,
                    objectness=objectness,
                    width=width,
                    depth=depth,
                    activation=activation,
                )
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
        num_objectness = int(self.traits.objectness)
        offset_BP2, size_BP2, objectness_BPO, classes_BPC = torch.split(
            raw_BPO, [2, 2, num_objectness, self.num_classes], dim=-1
        )
        strides_P1 = priors.strides_P[:, None]
        # Offsets count from the cell's corner; priors have its centre.
        center_BP2 = priors.centers_P2 + (offset_BP2 - 0.5) * strides_P1
        half_BP2 = size_BP2.clamp(max=LARGEST_LOG_SIZE).exp() * (strides_P1 / 2)
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
            "levels": [{"stride": stride, "priors": [[self.prior_scale * stride] * 2]} for stride in self.strides],
            "outputs": [
                {"name": "center", "channels": 2},
                {"name": "size", "channels": 2},
                *(({"name": "objectness", "channels": 1},) if has_objectness else ()),
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
            "score": ["objectness", "classes"] if has_objectness else ["classes"],
            "suppression": True,
        }


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head."""
    register("decoupled", DecoupledHead)
