"""The assignment of FCOS: points inside a target, on the levels made for its size.

Shape letters: B images, P priors, T targets of the batch, L levels, K pairs of a target and a prior, M matches.

References: Tian et al., FCOS (2019), sections 3.1 to 3.3; for sampling around centres, Tian et al. (2020),
arXiv:2006.09214, section 3.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, ordered_key, position_of
from detloom.ops.windows import center_squares, pair_blocks, windows_inside
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets

__all__ = ["FcosAssigner", "SoftLabels", "centerness", "register_components", "sides"]

SoftLabels = Literal["none", "centre-ness", "iou"]
SOFT_LABELS = ("none", "centre-ness", "iou")

# Pairs of target and prior inside it that are held at once: 8 MiB a tensor of int64.
PAIRS_AT_ONCE = 1 << 20

# Upper limits by default, in strides of the level: 64 pixels at stride 8, and so on.
LIMIT_STRIDES = 8


class FcosAssigner(Assigner):
    """Priors inside a target, near its centre, whose farthest side lies in the range of their level.

    A prior inside several targets goes to the smallest, the first of equals. Every prior of a cell is
    a point at its centre; sizes of anchors play no part, nor do predictions, but for the quality. The device
    is waited for twice in a batch: for the numbers of priors near the targets, and for the number of matches.

    Args:
        radius: Half the side of the square around a target's centre that positives lie in, in strides of
            their level; 0 for the whole target, as first published.
        limits: Largest distance from a point to the sides of its target, in pixels, for each level
            but the last, which has none; also the smallest of the next level. Empty for 8 strides of each.
        soft_labels: What the quality is: ``none``: 1. ``centre-ness``: how evenly the point lies between
            the sides. ``iou``: IoU of the predicted box and the target.
    """

    def __init__(
        self, *, radius: float = 1.5, limits: tuple[float, ...] = (), soft_labels: SoftLabels = "none"
    ) -> None:
        if not 0 <= radius < math.inf:
            raise RecipeError(f"radius must not be negative, got {radius}; published is 1.5, or 0 for the whole target")
        if any(low >= high for low, high in pairwise((0.0, *limits))):
            raise RecipeError(
                f"limits must be above 0 and rise, got {list(limits)}; published is [64, 128, 256, 512] for five levels"
            )
        if soft_labels not in SOFT_LABELS:
            raise RecipeError(f"soft_labels must be {', '.join(SOFT_LABELS[:-1])} or iou, got {soft_labels}")
        self.radius = radius
        self.limits = tuple(limits)
        self.soft_labels = soft_labels

    def objection(self, head: HeadTraits) -> str | None:
        """Ask for as many limits as the head has levels, less one."""
        if not self.limits or len(self.limits) == head.levels - 1:
            return None
        return (
            f"limits has {len(self.limits)} values, and this head has {head.levels} levels: "
            f"give {head.levels - 1}, or none for 8 strides of each level"
        )

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, image after image."""
        priors, boxes_T4 = predictions.priors, targets.boxes_T4
        with torch.autocast(boxes_T4.device.type, enabled=False):
            target_T = torch.arange(targets.num_targets, device=boxes_T4.device)
            key_T = ordered_key((boxes_T4[:, 2:] - boxes_T4[:, :2]).prod(dim=1), target_T)
            low_P, high_P = self._ranges(priors)
            least_BP = key_T.new_full((predictions.num_images, priors.num_priors), LAST_KEY)
            for pairs in pair_blocks(windows_inside(priors.grids, self._regions(priors, boxes_T4)), PAIRS_AT_ONCE):
                prior_K = pairs.prior_K
                farthest_K = sides(priors.centers_P2[prior_K], boxes_T4[pairs.box_K]).amax(dim=1)
                is_in_range_K = (farthest_K >= low_P[prior_K]) & (farthest_K <= high_P[prior_K])
                key_K = key_T[pairs.box_K].where(is_in_range_K, LAST_KEY)
                place_K = targets.image_T[pairs.box_K] * priors.num_priors + prior_K
                least_BP.view(-1).scatter_reduce_(0, place_K, key_K, "amin")
            image_M, prior_M = (least_BP != LAST_KEY).nonzero(as_tuple=True)
            target_M = position_of(least_BP[image_M, prior_M])
            quality_M = self._quality(predictions, targets, image_M, prior_M, target_M)
        return Assignment(image_M, prior_M, target_M, quality_M)

    def relaxed(self) -> "FcosAssigner | None":
        """Return the same with a ``radius`` larger by one stride; None where whole targets are positive already."""
        if self.radius == 0:
            return None
        return FcosAssigner(radius=self.radius + 1, limits=self.limits, soft_labels=self.soft_labels)

    def _ranges(self, priors: Priors) -> tuple[Tensor, Tensor]:
        """Return the least and the largest distance to the farthest side for each prior.

        Where there are priors on some levels alone, each has the limit of its own level, and the last has none, so
        that targets of all sizes are learned.
        """
        grids, needed = priors.grids, priors.num_levels - 1
        if self.limits and len(self.limits) != needed:
            raise RecipeError(f"limits has {len(self.limits)} values for {priors.num_levels} levels; give {needed}")
        limits = tuple(
            self.limits[grid.level] if self.limits else float(LIMIT_STRIDES * grid.stride) for grid in grids[:-1]
        )
        lows, highs = (0.0, *limits), (*limits, math.inf)

        def of_priors(values: tuple[float, ...]) -> Tensor:
            fills = [priors.strides_P.new_full((g.num_priors,), v) for g, v in zip(grids, values, strict=True)]
            return torch.cat(fills)

        return of_priors(lows), of_priors(highs)

    def _regions(self, priors: Priors, boxes_T4: Tensor) -> Tensor:
        """Return the boxes ``[T, L, 4]`` that positives lie in."""
        if self.radius == 0:
            return boxes_T4[:, None]
        squares_TL4 = center_squares(priors.grids, boxes_T4, self.radius)
        low_TL2 = torch.maximum(squares_TL4[..., :2], boxes_T4[:, None, :2])
        high_TL2 = torch.minimum(squares_TL4[..., 2:], boxes_T4[:, None, 2:])
        return torch.cat((low_TL2, high_TL2), dim=-1)

    def _quality(
        self, predictions: Predictions, targets: Targets, image_M: Tensor, prior_M: Tensor, target_M: Tensor
    ) -> Tensor:
        boxes_M4 = targets.boxes_T4[target_M]
        if self.soft_labels == "iou":
            return overlap(predictions.boxes_BP4[image_M, prior_M].float(), boxes_M4).clamp(0, 1)
        if self.soft_labels == "centre-ness":
            return centerness(sides(predictions.priors.centers_P2[prior_M], boxes_M4))
        return torch.ones_like(prior_M, dtype=torch.float32)


def sides(center_X2: Tensor, boxes_X4: Tensor) -> Tensor:
    """Return ``[X, 4]`` distances from points to the left, upper, right and lower sides of boxes, positive inside."""
    return torch.cat((center_X2 - boxes_X4[..., :2], boxes_X4[..., 2:] - center_X2), dim=-1)


def centerness(sides_X4: Tensor) -> Tensor:
    """Return how evenly points lie between the sides of their boxes: 1 in the middle, 0 on a side."""
    near_X2 = torch.minimum(sides_X4[..., :2], sides_X4[..., 2:])
    far_X2 = torch.maximum(sides_X4[..., :2], sides_X4[..., 2:])
    return (near_X2 / far_X2).prod(dim=-1).sqrt()


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the assignment of FCOS."""
    register("fcos", FcosAssigner)
