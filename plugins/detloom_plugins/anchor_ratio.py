"""Candidates by anchor ratio: priors near a target's centre and not much larger or smaller than it.

They depend on the targets alone, not on what is predicted. Any priors on grids will do: points are
compared by their nominal size. They are a method by themselves, and what dynamic k chooses from.

Shape letters: B images, G targets of an image (padded), R rows (a level and a prior of its cells),
S cells around a target (centre, left, up, right, down), K = S x R x G candidates of an image,
most of which are none, M matches.

References: YOLOv7 (2022), section 4.2, with the sampling it inherits from YOLOR (2021) and Scaled-YOLOv4
(2021); Jocher, YOLOv5 release 6.1 (2022), where all candidates are positives.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.boxes import xyxy_to_cxcywh
from detloom.ops.iou import overlap
from detloom.structures import Assignment, PaddedTargets, Predictions, Priors, Targets

__all__ = ["AnchorRatioAssigner", "AnchorRatioCandidates", "anchor_ratio_candidates", "register_components"]

# A centre is known to a fraction of a pixel only: its box went through corners in float32. Rounded to
# this many parts of a pixel, centres on the edge of a cell stay there whatever was done to their boxes.
PARTS = 1024

# With this reach a target has all the neighbours that a grid gives it.
WIDEST_REACH = 1.0


class AnchorRatioAssigner(Assigner):
    """Every candidate by anchor ratio is a positive of the target that it was made for.

    The predictions play no part, but for the quality. A prior may serve several targets, or one
    twice; the matches of an image come in the published order, and the last one of a prior says what its
    objectness learns. A target that fits no prior has no positives, as published.

    Args:
        anchor_ratio: A prior fits a target when neither side of one is this many times that of the other.
        reach: How near to its cell's edge, in cells, a centre brings in the neighbouring cell.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    def __init__(self, *, anchor_ratio: float = 4.0, reach: float = 0.5, soft_labels: bool = False) -> None:
        if anchor_ratio <= 1:
            raise RecipeError(f"anchor_ratio must be above 1, got {anchor_ratio}; published is 4.0")
        if not 0 <= reach <= WIDEST_REACH:
            raise RecipeError(f"reach must lie in [0, {WIDEST_REACH:g}] cells, got {reach}; published is 0.5")
        self.anchor_ratio = anchor_ratio
        self.reach = reach
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, image after image, each in the published order."""
        with torch.autocast(targets.boxes_T4.device.type, enabled=False):
            found = anchor_ratio_candidates(
                predictions.priors, targets.padded(), ratio=self.anchor_ratio, reach=self.reach
            )
            image_M, column_M = found.is_candidate_BK.nonzero(as_tuple=True)
            prior_M, target_M = found.prior_BK[image_M, column_M], found.target_BK[image_M, column_M]
            quality_M = torch.ones_like(target_M, dtype=torch.float32)
            if self.soft_labels:
                boxes_M4 = predictions.boxes_BP4[image_M, prior_M].float()
                quality_M = overlap(boxes_M4, targets.boxes_T4[target_M]).clamp(0, 1)
        return Assignment(image_M, prior_M, target_M, quality_M)

    def relaxed(self) -> Assigner | None:
        """Return the same with a ``reach`` of 1: five cells for a target in place of three."""
        if self.reach == WIDEST_REACH:
            return None
        return AnchorRatioAssigner(anchor_ratio=self.anchor_ratio, reach=WIDEST_REACH, soft_labels=self.soft_labels)


@dataclass(frozen=True, slots=True)
class AnchorRatioCandidates:
    """Priors that a target may use, as a rectangle; a prior can occur several times in an image.

    Within an image they come in the published order: level by level; on a level the cells of the centres,
    then their neighbours to the left, above, to the right and below; of each by prior of the cell, then target.

    Attributes:
        prior_BK: Index into the priors; meaningless where there is no candidate.
        target_BK: Index into the flat targets of the target that it was made for.
        is_candidate_BK: Whether there is a candidate.
    """

    prior_BK: Tensor
    target_BK: Tensor
    is_candidate_BK: Tensor


@dataclass(frozen=True, slots=True)
class _Rows:
    """One row for each prior of a cell of each level; all columns ``[R, 1, 1]``, to meet ``[B, G]``."""

    size_R112: Tensor
    stride: Tensor
    width: Tensor
    height: Tensor
    per_cell: Tensor
    first: Tensor

    @classmethod
    def of(cls, priors: Priors) -> "_Rows":
        """Read the grids, asking nothing of the device."""
        device = priors.sizes_P2.device

        def column(values: list[float]) -> Tensor:
            counts = [grid.per_cell for grid in priors.grids]
            fills = [torch.full((n, 1, 1), v, device=device) for n, v in zip(counts, values, strict=True)]
            return torch.cat(fills)

        first = [torch.arange(g.start, g.start + g.per_cell, device=device) for g in priors.grids]
        sizes = [priors.sizes_P2[g.start : g.start + g.per_cell] for g in priors.grids]
        return cls(
            size_R112=torch.cat(sizes)[:, None, None, :],
            stride=column([float(grid.stride) for grid in priors.grids]),
            width=column([float(grid.width) for grid in priors.grids]),
            height=column([float(grid.height) for grid in priors.grids]),
            per_cell=column([float(grid.per_cell) for grid in priors.grids]).long(),
            first=torch.cat(first)[:, None, None],
        )


def anchor_ratio_candidates(
    priors: Priors, targets: PaddedTargets, *, ratio: float, reach: float
) -> AnchorRatioCandidates:
    """Return the candidates of all targets of a batch.

    Args:
        priors: On grids.
        targets: As a rectangle.
        ratio: A prior fits a target when neither side of one is this many times that of the other.
        reach: How far from the centre a neighbouring cell may begin, in cells; with 0.5 a target has
            at most two neighbours beside the cell of its centre, with 1.0 at most four.
    """
    rows = _Rows.of(priors)
    boxes_cxcywh_BG4 = xyxy_to_cxcywh(targets.boxes_BG4)
    center_BG2 = (boxes_cxcywh_BG4[..., :2] * PARTS).round() / PARTS
    quotient_RBG2 = boxes_cxcywh_BG4[..., 2:] / rows.size_R112
    fits_RBG = torch.maximum(quotient_RBG2, 1 / quotient_RBG2).amax(dim=-1) < ratio

    x_RBG, y_RBG = center_BG2[..., 0] / rows.stride, center_BG2[..., 1] / rows.stride
    from_right_RBG, from_bottom_RBG = rows.width - x_RBG, rows.height - y_RBG
    has_SRBG = torch.stack(
        (
            torch.ones_like(fits_RBG),
            _reaches_over(x_RBG, reach),
            _reaches_over(y_RBG, reach),
            _reaches_over(from_right_RBG, reach),
            _reaches_over(from_bottom_RBG, reach),
        )
    )
    column_SRBG = torch.stack((x_RBG, x_RBG - reach, x_RBG, x_RBG + reach, x_RBG))
    line_SRBG = torch.stack((y_RBG, y_RBG, y_RBG - reach, y_RBG, y_RBG + reach))
    # A centre on the right or lower border of the image belongs to the last cell.
    column_SRBG = torch.minimum(column_SRBG.trunc().clamp(min=0), rows.width - 1).long()
    line_SRBG = torch.minimum(line_SRBG.trunc().clamp(min=0), rows.height - 1).long()
    prior_SRBG = rows.first + (line_SRBG * rows.width.long() + column_SRBG) * rows.per_cell

    is_candidate_SRBG = has_SRBG & fits_RBG & targets.is_real_BG
    return AnchorRatioCandidates(
        prior_BK=_per_image(prior_SRBG, priors),
        target_BK=_per_image(targets.target_BG.expand_as(prior_SRBG), priors),
        is_candidate_BK=_per_image(is_candidate_SRBG, priors),
    )


def _reaches_over(distance_RBG: Tensor, reach: float) -> Tensor:
    """Return whether a centre lies near enough to the edge of its cell, and a cell beyond that exists."""
    return (distance_RBG.frac() < reach) & (distance_RBG > 1)


def _per_image(values_SRBG: Tensor, priors: Priors) -> Tensor:
    """Return ``[B, K]``: images first, then levels, then everything else in order."""
    levels = values_SRBG.split_with_sizes([grid.per_cell for grid in priors.grids], dim=1)
    return torch.cat([level.permute(2, 0, 1, 3).flatten(1) for level in levels], dim=1)


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the assigner of YOLOv5."""
    register("anchor-ratio", AnchorRatioAssigner)
