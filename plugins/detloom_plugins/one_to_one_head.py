"""A head that finds each object once, so that nothing need be suppressed: two branches, of which one is deployed.

Raw maps are those of the head ``distribution``.

References: Wang et al., YOLOv10 (2024), section 3.1, for the two branches; see ``distribution_head`` for their form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from detloom.decode_spec import DecodeSpec
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Head
from detloom.structures import Extent, FeatureSpec, HeadMaps, HeadTraits, Predictions, Role
from detloom_plugins.distribution_head import (
    check_distribution,
    decode_distances,
    distances_spec,
    distribution_branches,
)
from detloom_plugins.layers import Activation
from detloom_plugins.prior_cache import PriorCache

__all__ = ["OneToOneHead"]


class OneToOneHead(Head):
    """The branches of the head ``distribution`` twice, on the same levels: one-to-one, and one-to-many.

    The one-to-one branch is the lead, which predicts; it asks for an assigner that gives a target one prior at
    most. The one-to-many branch is auxiliary: it runs in training mode alone, gets the matches of the assigner's
    ``assign_auxiliary``, and the pass ``drop-auxiliary`` takes it out of the deployed form. Published is as much
    weight on either branch, ``[train] auxiliary_weight = 1.0``.

    Args:
        inputs: Lead levels, finest first.
        num_classes: Number of classes.
        width: Channels of both branches; 0 for those of each level.
        depth: 3x3 convolutions of each branch.
        activation: silu, leaky-relu, relu or relu6.
        bins: Distances that a side chooses from: 0, 1, ..., ``bins - 1`` strides.
        prior_scale: Nominal size of a prior in cells, for assigners that compare sizes.
        detach: Let backbone and neck learn from the one-to-many branch alone, as published, as long as there
            is one.
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
        detach: bool = True,
    ) -> None:
        super().__init__()
        check_distribution(num_classes, bins=bins, prior_scale=prior_scale)
        if any(spec.role is Role.AUXILIARY for spec in inputs):
            raise RecipeError(
                "head 'one-to-one' has an auxiliary branch of its own, on the lead levels, and no use for the neck's "
                "auxiliary levels: leave them out of the neck, or take the head 'distribution'"
            )
        self.num_classes = num_classes
        self.strides = tuple(spec.stride for spec in inputs)
        self.bins = bins
        self.prior_scale = prior_scale
        self.detach = detach
        self.traits = HeadTraits(
            anchors=False, objectness=False, distribution_bins=bins, levels=len(inputs), one_to_one=True
        )
        self.priors = PriorCache(self.strides, [[(prior_scale * stride,) * 2] for stride in self.strides])
        self.lead, self.auxiliary = (
            distribution_branches(
                inputs, num_classes, width=width, depth=depth, activation=activation, bins=bins, prior_scale=prior_scale
            )
            for _ in ("one-to-one", "one-to-many")
        )

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps of the one-to-one branch; in training mode those of the one-to-many branch too."""
        if not self.training or not len(self.auxiliary):
            return HeadMaps(tuple(branch(level) for branch, level in zip(self.lead, levels, strict=True)))
        seen = [level.detach() for level in levels] if self.detach else levels
        return HeadMaps(
            tuple(branch(level) for branch, level in zip(self.lead, seen, strict=True)),
            tuple(branch(level) for branch, level in zip(self.auxiliary, levels, strict=True)),
        )

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions of either branch's maps, in float32 (float64 stays).

        The distribution is among them in training mode alone.
        """
        return decode_distances(maps, self.priors.of(maps), bins=self.bins, with_distribution=self.training)

    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""
        return distances_spec(
            self.num_classes, self.strides, bins=self.bins, prior_scale=self.prior_scale, suppression=False
        )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the head."""
    register("one-to-one", OneToOneHead)
