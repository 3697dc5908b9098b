"""Adaptive training sample selection: the nearest priors of each level, cut at a threshold of their own.

Shape letters: B images, P priors, T targets, L levels, W cells of a window, N cells taken of it,
A priors of a cell, K = L x N x A candidates of a target, M matches.

Reference: Zhang et al., ATSS (2020), section 4.1 and algorithm 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, is_least, ordered_key, smallest
from detloom.structures import Assignment, Grid, Predictions, Priors, Targets

__all__ = ["AtssAssigner", "nearest_priors", "register_components"]


class AtssAssigner(Assigner):
    """Positives overlap their target by more than the mean plus the deviation of its nearest priors.

    The predictions play no part, but for the quality. Points are compared by their nominal size. A
    prior has one target at most: the one it overlaps most, the first of equals.

    Args:
        candidates: Cells taken on each level, the nearest to the target's centre; all priors of a
            cell are candidates, as in the original with several anchors a place.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    def __init__(self, *, candidates: int = 9, soft_labels: bool = False) -> None:
        if candidates < 1:
            raise RecipeError(f"candidates must be at least 1, got {candidates}; published is 9")
        self.candidates = candidates
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target."""
        priors = predictions.priors
        boxes_T4 = targets.boxes_T4
        with torch.autocast(boxes_T4.device.type, enabled=False):
            prior_TK = nearest_priors(priors, (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2, self.candidates)
            overlap_TK = overlap(priors.boxes_P4[prior_TK], boxes_T4[:, None])
            center_TK2 = priors.centers_P2[prior_TK]
            is_inside_TK = ((center_TK2 > boxes_T4[:, None, :2]) & (center_TK2 < boxes_T4[:, None, 2:])).all(dim=-1)
            is_positive_TK = (overlap_TK >= _threshold(overlap_TK)) & is_inside_TK

            # Of the targets that want a prior, the one with the largest overlap has the smallest key.
            target_T1 = torch.arange(targets.num_targets, device=boxes_T4.device)[:, None]
            key_TK = ordered_key(-overlap_TK, target_T1).where(is_positive_TK, LAST_KEY)
            place_TK = targets.image_T[:, None] * priors.num_priors + prior_TK
            is_match_TK = is_least(key_TK, place_TK, predictions.num_images * priors.num_priors)
            target_M, column_M = is_match_TK.nonzero(as_tuple=True)

            image_M, prior_M = targets.image_T[target_M], prior_TK[target_M, column_M]
            quality_M = torch.ones_like(target_M, dtype=torch.float32)
            if self.soft_labels:
                quality_M = overlap(predictions.boxes_BP4[image_M, prior_M].float(), boxes_T4[target_M]).clamp(0, 1)
        return Assignment(image_M, prior_M, target_M, quality_M)

    def relaxed(self) -> "AtssAssigner":
        """Return the same with twice the candidates: farther cells lower the threshold, and may pass it."""
        return AtssAssigner(candidates=2 * self.candidates, soft_labels=self.soft_labels)


def nearest_priors(priors: Priors, center_T2: Tensor, cells: int) -> Tensor:
    """Return ``[T, K]`` indices of the priors in the nearest cells of each level, finest level first.

    Of equally distant cells the first by row, then by column, is taken. A level with fewer cells gives all.
    """
    return torch.cat([_nearest_on(grid, center_T2, cells) for grid in priors.grids], dim=1)


def _nearest_on(grid: Grid, center_T2: Tensor, cells: int) -> Tensor:
    """Return ``[T, N * A]`` indices of one level; looks at a window alone, not at the whole grid."""
    # On a large enough grid, a block of cells of side ``block`` near a place inside the image holds
    # ``cells`` of them, none farther than (block - 1/2) sqrt(2) along the diagonal, as for a place in a
    # corner of the image. A window of this reach about the place's own cell leaves out none that is nearer.
    block = math.ceil(math.sqrt(cells))
    reach = math.ceil((block - 0.5) * math.sqrt(2) - 0.5)
    device = center_T2.device
    # On a grid narrower than the block, the block is longer than it is wide: all cells are looked at.
    is_narrow = min(grid.width, grid.height) < block
    side_x = grid.width if is_narrow else min(2 * reach + 1, grid.width)
    side_y = grid.height if is_narrow else min(2 * reach + 1, grid.height)
    cell_T2 = center_T2 / grid.stride
    first_x_T1 = (cell_T2[:, :1].floor() - reach).clamp(0, grid.width - side_x)
    first_y_T1 = (cell_T2[:, 1:].floor() - reach).clamp(0, grid.height - side_y)
    window_W = torch.arange(side_x * side_y, device=device)
    x_TW = first_x_T1 + window_W % side_x
    y_TW = first_y_T1 + window_W // side_x
    distance_TW = (x_TW + 0.5 - cell_T2[:, :1]).square() + (y_TW + 0.5 - cell_T2[:, 1:]).square()
    nearest_TN = smallest(distance_TW, min(cells, side_x * side_y))
    cell_TN = (y_TW * grid.width + x_TW).long().gather(1, nearest_TN)
    prior_TNA = grid.start + cell_TN[..., None] * grid.per_cell + torch.arange(grid.per_cell, device=device)
    return prior_TNA.flatten(1)


def _threshold(overlap_TK: Tensor) -> Tensor:
    """Return ``[T, 1]`` means plus unbiased standard deviations; a single candidate deviates by nothing."""
    mean_T1 = overlap_TK.mean(dim=1, keepdim=True)
    freedom = max(1, overlap_TK.shape[1] - 1)
    return mean_T1 + ((overlap_TK - mean_T1).square().sum(dim=1, keepdim=True) / freedom).sqrt()


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer ATSS."""
    register("atss", AtssAssigner)
