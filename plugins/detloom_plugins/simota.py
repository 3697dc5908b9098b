"""SimOTA: dynamic-k assignment among the priors around the targets' centres.

Shape letters: B images, P priors, T targets of the batch, L levels, N candidates of an image (padded),
t targets of a block, S priors of a window, the largest.

References: Ge et al., YOLOX (2021), section 2.1, "SimOTA"; Ge et al., OTA (2021), section 3.3.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.windows import Windows, center_squares, pair_blocks, windows_inside
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.dynamic_k import CandidateTable, collect, match_cheapest, no_matches

__all__ = ["Region", "SimotaAssigner", "register_components"]

Region = Literal["square", "square-or-box"]

# So much that a target takes such a prior only when it has too few others.
PENALTY = {"square": 1e6, "square-or-box": 1e5}

# Pairs of target and prior inside it that are held at once: 8 MiB a tensor of int64.
PAIRS_AT_ONCE = 1 << 20


class SimotaAssigner(Assigner):
    """Dynamic k among the priors near the centre of any target of the image.

    A target takes as many of the cheapest candidates as its best overlaps add up to; a candidate that
    several take goes to the one it costs least. Candidates away from a target's own centre cost it a
    penalty. A target whose candidates hold a NaN has matches of quality NaN: the losses become NaN,
    which the training stops at. The device is waited for twice in a batch: for the largest number of
    candidates of an image, and for the number of matches; with boxes as regions once more.

    Args:
        radius: Half the side of the square around a target's centre whose priors are candidates, in
            strides of their level.
        candidates: How many of the best overlaps of a target are added up to its number of matches.
        overlap_weight: Weight of the overlap against the class in the cost of a match.
        region: ``square``: candidates lie in the square. ``square-or-box``: in the square or the target,
            without penalty in both; with ``radius`` 2.5 the form of the paper.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    def __init__(
        self,
        *,
        radius: float = 1.5,
        candidates: int = 10,
        overlap_weight: float = 3.0,
        region: Region = "square",
        soft_labels: bool = False,
    ) -> None:
        if not 0 < radius < math.inf:
            raise RecipeError(f"radius must be above 0 strides, got {radius}; published is 1.5, in the paper 2.5")
        if candidates < 1:
            raise RecipeError(f"candidates must be at least 1, got {candidates}; published is 10")
        if overlap_weight < 0:
            raise RecipeError(f"overlap_weight must not be negative, got {overlap_weight}; published is 3.0")
        if region not in PENALTY:
            raise RecipeError(f"region must be {' or '.join(PENALTY)}, got {region}; published is square")
        self.radius = radius
        self.candidates = candidates
        self.overlap_weight = overlap_weight
        self.region = region
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, image after image."""
        boxes_T4 = targets.boxes_T4
        if targets.most_per_image == 0:
            return no_matches(boxes_T4.device)
        priors = predictions.priors
        is_candidate_BP = self._candidates(priors, targets)
        prior_P = torch.arange(priors.num_priors, device=boxes_T4.device)
        table = collect(prior_P.expand_as(is_candidate_BP), is_candidate_BP)
        if table.prior_BN.shape[1] == 0:
            return no_matches(boxes_T4.device)
        matches = match_cheapest(
            predictions,
            targets,
            table,
            candidates=self.candidates,
            overlap_weight=self.overlap_weight,
            penalty=self._penalty(priors, targets, table),
        )
        if not self.soft_labels:
            return matches
        overlap_M = overlap(predictions.boxes_BP4[matches.image_M, matches.prior_M].float(), boxes_T4[matches.target_M])
        return replace(matches, quality_M=matches.quality_M * overlap_M.clamp(0, 1))

    def relaxed(self) -> "SimotaAssigner":
        """Return the same with a ``radius`` larger by one stride and twice the ``candidates``."""
        return SimotaAssigner(
            radius=self.radius + 1,
            candidates=2 * self.candidates,
            overlap_weight=self.overlap_weight,
            region=self.region,
            soft_labels=self.soft_labels,
        )

    def _candidates(self, priors: Priors, targets: Targets) -> Tensor:
        """Return ``[B, P]``, whether a prior is a candidate of its image; of each once, whoever wants it."""
        windows = windows_inside(priors.grids, center_squares(priors.grids, targets.boxes_T4, self.radius))
        per_cell = max(grid.per_cell for grid in priors.grids)
        longest = max(max(grid.height, grid.width) for grid in priors.grids)
        prior_TLS, is_real_TLS = _written_out(windows, min(math.ceil(2 * self.radius), longest), per_cell)
        # What is in no window goes to one column too many.
        column_TLS = torch.where(is_real_TLS, prior_TLS, priors.num_priors)
        shape = (targets.num_images, priors.num_priors + 1)
        is_candidate_BP = torch.zeros(shape, dtype=torch.bool, device=column_TLS.device)
        is_candidate_BP[targets.image_T[:, None, None], column_TLS] = True
        if self.region == "square-or-box":
            inside = windows_inside(priors.grids, targets.boxes_T4[:, None])
            for pairs in pair_blocks(inside, PAIRS_AT_ONCE):
                is_candidate_BP[targets.image_T[pairs.box_K], pairs.prior_K] = True
        return is_candidate_BP[:, : priors.num_priors]

    def _penalty(self, priors: Priors, targets: Targets, table: CandidateTable) -> Callable[[slice], Tensor]:
        """Return the function of what targets pay for candidates outside their own region, ``[t, N]``."""
        x_BN, y_BN = (plane_P[table.prior_BN] for plane_P in priors.centers_P2.unbind(1))
        reach_BN = self.radius * priors.strides_P[table.prior_BN]
        center_T2 = (targets.boxes_T4[:, :2] + targets.boxes_T4[:, 2:]) / 2

        def penalty(block: slice) -> Tensor:
            image_t = targets.image_T[block]
            x_tN, y_tN, reach_tN = x_BN[image_t], y_BN[image_t], reach_BN[image_t]
            center_x_t1, center_y_t1 = center_T2[block, :, None].unbind(1)
            # Written as the windows have it, so that no rounding comes between them.
            is_within_tN = (x_tN > center_x_t1 - reach_tN) & (x_tN < center_x_t1 + reach_tN)
            is_within_tN &= (y_tN > center_y_t1 - reach_tN) & (y_tN < center_y_t1 + reach_tN)
            if self.region == "square-or-box":
                x1_t1, y1_t1, x2_t1, y2_t1 = targets.boxes_T4[block, :, None].unbind(1)
                is_within_tN &= (x_tN > x1_t1) & (x_tN < x2_t1) & (y_tN > y1_t1) & (y_tN < y2_t1)
            return PENALTY[self.region] * (~is_within_tN).float()

        return penalty


def _written_out(windows: Windows, side: int, per_cell: int) -> tuple[Tensor, Tensor]:
    """Return the priors of windows as a rectangle, ``[T, L, S]``, and which of them are real.

    No window may have more than ``side`` rows or columns of cells.
    """
    width = side * per_cell
    place_S = torch.arange(side * width, device=windows.first_TL.device)
    row_S, column_S = place_S // width, place_S % width
    prior_TLS = windows.first_TL[..., None] + row_S * windows.step_TL[..., None] + column_S
    return prior_TLS, (row_S < windows.rows_TL[..., None]) & (column_S < windows.width_TL[..., None])


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer SimOTA."""
    register("simota", SimotaAssigner)
