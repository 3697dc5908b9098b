"""Task-aligned assignment: each target takes the points that predict both its class and its box best.

Shape letters: B images, P priors, T targets of the batch, K pairs of a target and a prior inside it,
t targets of a block, Q best of a target, M matches.

References: Feng et al., TOOD (2021), section 3.2; constants of Li et al., YOLOv6 (2022), section 2.2, are the same;
Wang et al., YOLOv10 (2024), section 3.1, for a single candidate.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, is_least, order_within, ordered_key
from detloom.ops.windows import Pairs, pair_blocks, windows_inside
from detloom.structures import Assignment, Predictions, Targets

__all__ = ["TaskAlignedAssigner", "register_components"]

# Pairs of target and prior inside it that are held at once: 4 MiB a tensor of float32.
PAIRS_AT_ONCE = 1 << 20

# Keeps the quotient of two alignments finite, as published.
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class _Best:
    """The best priors of each target, best first; zeros where it has fewer.

    Attributes:
        prior_TQ: Index into the priors.
        alignment_TQ: How well class and box are predicted together.
        overlap_TQ: IoU of the predicted box and the target.
        is_real_TQ: Whether there is a prior.
    """

    prior_TQ: Tensor
    alignment_TQ: Tensor
    overlap_TQ: Tensor
    is_real_TQ: Tensor


class TaskAlignedAssigner(Assigner):
    """The best by alignment, probability of the class x IoU to powers, among priors inside the target.

    Centres of priors lie strictly inside the target; one that has none has no matches. The
    probability includes the objectness of heads that have one. A prior that several targets take goes
    to the one that its predicted box overlaps most, the first of equals. A prior whose alignment is
    NaN ranks first, and all matches of its target have a quality of NaN: the losses become NaN, which
    the training stops at. The device is waited for twice in a batch: for the numbers of priors inside
    the targets, and for the number of matches.

    Args:
        candidates: Priors that a target takes; with 1 the assignment is one-to-one, as YOLOv10 trains a head without
            suppression.
        class_power: Power of the probability of the class, alpha.
        overlap_power: Power of the IoU, beta.
        soft_labels: Set the quality to the alignment, scaled so that the largest of a target is the largest
            IoU among its matches; else to 1.
    """

    def __init__(
        self,
        *,
        candidates: int = 13,
        class_power: float = 1.0,
        overlap_power: float = 6.0,
        soft_labels: bool = True,
    ) -> None:
        if candidates < 1:
            raise RecipeError(f"candidates must be at least 1, got {candidates}; published is 13")
        if class_power < 0:
            raise RecipeError(f"class_power must not be negative, got {class_power}; published is 1.0")
        if overlap_power <= 0:
            raise RecipeError(f"overlap_power must be above 0, got {overlap_power}; published is 6.0")
        self.candidates = candidates
        self.one_to_one = candidates == 1
        self.class_power = class_power
        self.overlap_power = overlap_power
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target, each with its best first."""
        num_priors = predictions.priors.num_priors
        with torch.autocast(targets.boxes_T4.device.type, enabled=False):
            best = self._best(predictions, targets)
            target_T1 = torch.arange(targets.num_targets, device=best.prior_TQ.device)[:, None]
            # A NaN wins, so that it is not lost with the prior.
            rank_TQ = torch.where(best.alignment_TQ.isnan(), -torch.inf, -best.overlap_TQ)
            key_TQ = ordered_key(rank_TQ, target_T1).where(best.is_real_TQ, LAST_KEY)
            place_TQ = targets.image_T[:, None] * num_priors + best.prior_TQ
            is_match_TQ = is_least(key_TQ, place_TQ, predictions.num_images * num_priors)
            quality_TQ = self._quality(best, is_match_TQ)
        target_M, column_M = is_match_TQ.nonzero(as_tuple=True)
        return Assignment(
            targets.image_T[target_M],
            best.prior_TQ[target_M, column_M],
            target_M,
            quality_TQ[target_M, column_M],
        )

    def relaxed(self) -> "TaskAlignedAssigner":
        """Return the same with twice the ``candidates``."""
        return TaskAlignedAssigner(
            candidates=2 * self.candidates,
            class_power=self.class_power,
            overlap_power=self.overlap_power,
            soft_labels=self.soft_labels,
        )

    def _best(self, predictions: Predictions, targets: Targets) -> _Best:
        """Return the best priors of each target, found in blocks of targets."""
        boxes_T4 = targets.boxes_T4
        shape = (targets.num_targets, self.candidates)
        best = _Best(
            prior_TQ=targets.image_T.new_zeros(shape),
            alignment_TQ=boxes_T4.new_zeros(shape),
            overlap_TQ=boxes_T4.new_zeros(shape),
            is_real_TQ=torch.zeros(shape, dtype=torch.bool, device=boxes_T4.device),
        )
        rank_Q = torch.arange(self.candidates, device=boxes_T4.device)
        for pairs in pair_blocks(windows_inside(predictions.priors.grids, boxes_T4[:, None]), PAIRS_AT_ONCE):
            alignment_K, overlap_K = self._alignment(predictions, targets, pairs)
            rank_K = torch.where(alignment_K.isnan(), -torch.inf, -alignment_K)
            order_K = order_within(pairs.box_K - pairs.boxes.start, rank_K)
            # The pairs of a target stay together, so that its best are where its pairs begin.
            place_tQ = (pairs.first_t[:, None] + rank_Q).clamp(max=len(order_K) - 1)
            chosen_tQ = order_K[place_tQ]
            is_real_tQ = rank_Q < pairs.count_t[:, None]
            best.is_real_TQ[pairs.boxes] = is_real_tQ
            best.prior_TQ[pairs.boxes] = torch.where(is_real_tQ, pairs.prior_K[chosen_tQ], 0)
            best.alignment_TQ[pairs.boxes] = torch.where(is_real_tQ, alignment_K[chosen_tQ], 0.0)
            best.overlap_TQ[pairs.boxes] = torch.where(is_real_tQ, overlap_K[chosen_tQ], 0.0)
        return best

    def _alignment(self, predictions: Predictions, targets: Targets, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the alignment, and the IoU of predicted box and target, of each pair."""
        num_priors = predictions.priors.num_priors
        place_K = targets.image_T[pairs.box_K] * num_priors + pairs.prior_K
        overlap_K = overlap(
            predictions.boxes_BP4.flatten(0, 1).index_select(0, place_K).float(),
            targets.boxes_T4.index_select(0, pairs.box_K),
        )
        logit_of_class_K = place_K * predictions.num_classes + targets.labels_T[pairs.box_K]
        score_K = predictions.class_logits_BPC.flatten()[logit_of_class_K].float().sigmoid()
        if predictions.objectness_BP is not None:
            score_K = score_K * predictions.objectness_BP.flatten()[place_K].float().sigmoid()
        return score_K.pow(self.class_power) * overlap_K.pow(self.overlap_power), overlap_K

    def _quality(self, best: _Best, is_match_TQ: Tensor) -> Tensor:
        """Return the qualities of matches ``[T, Q]``; NaN for the whole target where one of its best is NaN."""
        if not self.soft_labels:
            has_nan_T1 = best.alignment_TQ.isnan().any(dim=1, keepdim=True)
            return torch.where(has_nan_T1, torch.nan, 1.0).expand_as(best.alignment_TQ)
        alignment_TQ = best.alignment_TQ.where(is_match_TQ, 0.0)
        most_T1 = best.overlap_TQ.where(is_match_TQ, 0.0).amax(dim=1, keepdim=True)
        # A NaN that was lost to another target counts here too.
        nan_T1 = best.alignment_TQ.amax(dim=1, keepdim=True) * 0
        scale_T1 = most_T1 / (alignment_TQ.amax(dim=1, keepdim=True) + EPSILON)
        return (alignment_TQ * scale_T1 + nan_T1).clamp(0, 1)


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer task-aligned assignment."""
    register("task-aligned", TaskAlignedAssigner)
