"""The efficient decoupled head with a distribution of each side's distance: anchor-free, without objectness.

Raw maps hold, of one prediction a cell, the logits of the distances left, top, right and bottom, ``bins`` of each,
then the classes.

Shape letters: B images, P priors, O outputs, R bins, C classes.

References: Li et al., YOLOv6 (2022), section 2.1, and v3 (2023), section 2, for the branches; Li et al., Generalized
focal loss (2020), section 3.2, for the distribution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Head
from detloom.structures import Extent, FeatureSpec, HeadMaps, HeadTraits, Predictions, Priors, Role
from detloom_plugins.decoupled_branches import DecoupledBranches
from detloom_plugins.layers import Activation
from detloom_plugins.prior_cache import PriorCache

__all__ = [
    "DistributionHead",
    "check_distribution",
    "decode_distances",
    "distances_spec",
    "distribution_branches",
    "logits_of_mean",
]


class DistributionHead(Head):
    """Separate branches for classes and for boxes, whose sides are distributions over distances.

    A side lies at most ``bins - 1`` strides from the cell's centre. Before training every box has about the
    size of its prior. There is no objectness: take a criterion that learns none.

    Args:
        inputs: Lead levels, finest first, then auxiliary ones, if any.
        num_classes: Number of classes.
        width: Channels of both branches; 0 for those of each level.
        depth: 3x3 convolutions of each branch.
        activation: silu, leaky-relu, relu or relu6.
        bins: Distances that a side chooses from: 0, 1, ..., ``bins - 1`` strides.
        prior_scale: Nominal size of a prior in cells, for assigners that compare sizes.
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
        width: int = 0,
        depth: int = 1,
        activation: Activation = "silu",
        bins: int = 17,
        prior_scale: float = 4.0,
    ) -> None:
        super().__init__()
        check_distribution(num_classes, bins=bins, prior_scale=prior_scale)
        lead = [spec for spec in inputs if spec.role == Role.LEAD]
        auxiliary = [spec for spec in inputs if spec.role == Role.AUXILIARY]
        self.num_classes = num_classes
        self.strides = tuple(spec.stride for spec in lead)
        self.bins = bins
        self.prior_scale = prior_scale
        self.traits = HeadTraits(anchors=False, objectness=False, distribution_bins=bins, levels=len(lead))
        sizes_L12 = [[(prior_scale * stride,) * 2] for stride in self.strides]
        self.priors = PriorCache(self.strides, sizes_L12, auxiliary=[spec.stride for spec in auxiliary])

        def branches(specs: Sequence[FeatureSpec]) -> nn.ModuleList:
            return distribution_branches(
                specs, num_classes, width=width, depth=depth, activation=activation, bins=bins, prior_scale=prior_scale
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
        """Return the predictions of lead maps, or of auxiliary maps, in float32 (float64 stays).

        The distribution is among them in training mode alone.
        """
        return decode_distances(maps, self.priors.of(maps), bins=self.bins, with_distribution=self.training)

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        return distances_spec(
            self.num_classes, self.strides, bins=self.bins, prior_scale=self.prior_scale, suppression=True
        )


def check_distribution(num_classes: int, *, bins: int, prior_scale: float) -> None:
    """Refuse settings of which no head can be made."""
    if num_classes < 1:
        raise RecipeError(f"num_classes must be at least 1, got {num_classes}")
    if bins < 2:
        raise RecipeError(f"bins must be at least 2, got {bins}; published is 17")
    if not 0 < prior_scale < 2 * (bins - 1):
        limit = 2 * (bins - 1)
        raise RecipeError(
            f"prior_scale must lie between 0 and the {limit} cells that {bins} bins span, got {prior_scale}"
        )


def distribution_branches(
    specs: Sequence[FeatureSpec],
    num_classes: int,
    *,
    width: int,
    depth: int,
    activation: Activation,
    bins: int,
    prior_scale: float,
) -> nn.ModuleList:
    """Return the branches of each level; their biases make boxes of the priors' nominal size."""
    levels = nn.ModuleList()
    bias_O = torch.tensor(logits_of_mean(bins, prior_scale / 2)).repeat(4)
    for spec in specs:
        level = DecoupledBranches(
            spec.channels,
            num_classes,
            box_outputs=4 * bins,
            objectness=False,
            width=width,
            depth=depth,
            activation=activation,
        )
        level.box.bias = nn.Parameter(bias_O.clone())
        levels.append(level)
    return levels


def decode_distances(maps: Sequence[Tensor], priors: Priors, *, bins: int, with_distribution: bool) -> Predictions:
    """Return the predictions of maps whose sides are distributions over distances from the cell's centre."""
    raw_BPO = torch.cat([each.permute(0, 2, 3, 1).flatten(1, 2) for each in maps], dim=1)
    if raw_BPO.dtype != torch.float64:
        raw_BPO = raw_BPO.float()
    distribution_BP4R = raw_BPO[..., : 4 * bins].view(*raw_BPO.shape[:2], 4, bins)
    distances_R = torch.arange(bins, device=raw_BPO.device, dtype=raw_BPO.dtype)
    # Elementwise, not a matrix product, which autocast would round to half precision.
    distances_BP4 = (distribution_BP4R.softmax(dim=-1) * distances_R).sum(dim=-1) * priors.strides_P[:, None]
    before_BP2, after_BP2 = torch.split(distances_BP4, 2, dim=-1)
    return Predictions(
        boxes_BP4=torch.cat((priors.centers_P2 - before_BP2, priors.centers_P2 + after_BP2), dim=-1),
        class_logits_BPC=raw_BPO[..., 4 * bins :],
        objectness_BP=None,
        priors=priors,
        distribution_BP4R=distribution_BP4R if with_distribution else None,
    )


def distances_spec(
    num_classes: int, strides: Sequence[int], *, bins: int, prior_scale: float, suppression: bool
) -> DecodeSpec:
    """Return what a host has to know of such maps."""
    return {
        "num_classes": num_classes,
        "levels": [{"stride": stride, "priors": [[prior_scale * stride] * 2]} for stride in strides],
        "outputs": [
            {"name": "distances", "channels": 4 * bins},
            {"name": "classes", "channels": num_classes},
        ],
        "box": {"form": "distances", "bins": bins},
        "score": ["classes"],
        "suppression": suppression,
    }


def logits_of_mean(bins: int, mean: float) -> list[float]:
    """Return logits that fall, or rise, evenly over the bins, and whose softmax has a given mean."""
    low, high = -100.0, 100.0
    # A step of 200 halved 60 times is below the precision of a double.
    for _ in range(60):
        slope = (low + high) / 2
        weights = [math.exp(slope * place - max(0.0, slope * (bins - 1))) for place in range(bins)]
        found = sum(place * weight for place, weight in enumerate(weights)) / sum(weights)
        low, high = (slope, high) if found < mean else (low, slope)
    return [slope * (place - (bins - 1) / 2) for place in range(bins)]


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head."""
    register("distribution", DistributionHead)
