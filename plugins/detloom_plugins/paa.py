"""Probabilistic anchor assignment: a mixture of two Gaussians tells positives from negatives.

Shape letters: B images, P priors, C classes, T targets, L levels, R priors of a cell of each level,
s windows of a block, N cells of a window, Q cheapest of a window, K candidates of a target (of all
levels), M matches; 2 components: positive, negative.

Reference: Kim and Lee, PAA (2020), sections 3.1 and 3.2, algorithm 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, ordered_key, smallest
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.overlap_windows import overlapping_pairs

__all__ = ["Mixture", "PaaAssigner", "fit_mixture", "is_positive", "register_components"]

# A fixed number, so that the device is not asked whether the fit has converged.
ITERATIONS = 30

# Added to each variance, for components that collapse onto one value.
LEAST_VARIANCE = 1e-6

# Logarithms of densities this near count as equal: two candidates of one component lie equally far
# from its mean, and rounding must not say, on each device otherwise, which of them is likelier.
EQUALLY_LIKELY = 1e-3

# Keeps the logarithm of an overlap of nothing finite.
NO_OVERLAP = 1e-8


class PaaAssigner(Assigner):
    """Positives are the better ones of a target's cheapest priors, as two Gaussians divide their costs.

    The score of a prior is ``p * IoU ** overlap_weight``, with the predicted probability of the target's
    class and the overlap of the predicted box (equations 1 to 3); its cost is the negative logarithm. An
    objectness is a factor of ``p``. The paper's further branch, which predicts the overlap, is the
    objectness of a head with criterion ``yolov7``, which learns just that.

    Points are compared by their nominal size. A prior that is positive for several targets goes to the
    one that it costs least, the first of equals. A target that no prior overlaps enough has no
    positives. One that finds NaN among its priors' costs has them all as matches of quality NaN: the
    losses become NaN, which the training stops at. The device is waited for twice in a batch: for the
    numbers of priors near the targets, and for the number of matches.

    Args:
        least_overlap: IoU of prior and target from which on a prior is looked at.
        candidates: How many of the cheapest priors of each level the mixture is fitted to.
        overlap_weight: Weight of the overlap against the class in the cost.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    def __init__(
        self,
        *,
        least_overlap: float = 0.1,
        candidates: int = 9,
        overlap_weight: float = 1.0,
        soft_labels: bool = False,
    ) -> None:
        if not 0 < least_overlap <= 1:
            raise RecipeError(f"least_overlap must lie in (0, 1], got {least_overlap}; published is 0.1")
        if candidates < 1:
            raise RecipeError(f"candidates must be at least 1, got {candidates}; published is 9")
        if overlap_weight < 0:
            raise RecipeError(f"overlap_weight must not be negative, got {overlap_weight}; published is 1.0")
        self.least_overlap = least_overlap
        self.candidates = candidates
        self.overlap_weight = overlap_weight
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target."""
        boxes_T4 = targets.boxes_T4
        with torch.autocast(boxes_T4.device.type, enabled=False):
            prior_TK, cost_TK, has_nan_T = self._candidates(predictions, targets)
            is_candidate_TK = cost_TK != torch.inf
            is_positive_TK = is_positive(cost_TK, is_candidate_TK) | (is_candidate_TK & has_nan_T[:, None])

            # Of the targets that want a prior, the one that it costs least has the smallest key.
            target_T1 = torch.arange(targets.num_targets, device=boxes_T4.device)[:, None]
            key_TK = ordered_key(cost_TK, target_T1).where(is_positive_TK, LAST_KEY)
            place_TK = targets.image_T[:, None] * predictions.priors.num_priors + prior_TK
            best_key = key_TK.new_full((predictions.num_images * predictions.priors.num_priors,), LAST_KEY)
            best_key.scatter_reduce_(0, place_TK.flatten(), key_TK.flatten(), "amin")
            is_match_TK = is_positive_TK & ((best_key[place_TK] == key_TK) | has_nan_T[:, None])
            target_M, column_M = is_match_TK.nonzero(as_tuple=True)

            image_M, prior_M = targets.image_T[target_M], prior_TK[target_M, column_M]
            quality_M = torch.ones_like(target_M, dtype=torch.float32)
            if self.soft_labels:
                quality_M = overlap(predictions.boxes_BP4[image_M, prior_M].float(), boxes_T4[target_M]).clamp(0, 1)
            quality_M = quality_M.masked_fill(has_nan_T[target_M], torch.nan)
        return Assignment(image_M, prior_M, target_M, quality_M)

    def relaxed(self) -> Assigner:
        """Return the same with twice the ``candidates`` a level."""
        return PaaAssigner(
            least_overlap=self.least_overlap,
            candidates=2 * self.candidates,
            overlap_weight=self.overlap_weight,
            soft_labels=self.soft_labels,
        )

    def _candidates(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``[T, K]`` priors and costs, infinite where there is none, and ``[T]`` whether NaN is among all."""
        priors, boxes_T4 = predictions.priors, targets.boxes_T4
        num_windows = targets.num_targets * sum(grid.per_cell for grid in priors.grids)
        prior_SQ = targets.image_T.new_zeros((num_windows, self.candidates))
        cost_SQ = boxes_T4.new_full((num_windows, self.candidates), torch.inf)
        has_nan_T = torch.zeros_like(targets.image_T)
        costs = _Costs.of(predictions, self.overlap_weight)
        for pairs in overlapping_pairs(priors, boxes_T4, self.least_overlap):
            cost_sN = costs.of_pairs(targets, pairs.target_s, pairs.prior_sN)
            is_nan_sN = cost_sN.isnan() & pairs.is_pair_sN
            has_nan_T.index_put_((pairs.target_s,), is_nan_sN.any(dim=1).long(), accumulate=True)
            # What is NaN comes first, so that its target does not go without.
            cost_sN = cost_sN.masked_fill(is_nan_sN, -torch.inf).masked_fill(~pairs.is_pair_sN, torch.inf)
            first_sQ = smallest(cost_sN, min(self.candidates, cost_sN.shape[1]))
            prior_SQ[pairs.window_s, : first_sQ.shape[1]] = pairs.prior_sN.gather(1, first_sQ)
            cost_SQ[pairs.window_s, : first_sQ.shape[1]] = cost_sN.gather(1, first_sQ)
        return *_cheapest_of_levels(priors, prior_SQ, cost_SQ, targets.num_targets, self.candidates), has_nan_T > 0


@dataclass(frozen=True, slots=True)
class _Costs:
    """Predictions by coordinate, so that what is looked up lies together."""

    box_4_BP: Tensor
    class_logits_BPC: Tensor
    objectness_BP: Tensor | None
    overlap_weight: float

    @classmethod
    def of(cls, predictions: Predictions, overlap_weight: float) -> "_Costs":
        """Take predictions as they are; the cost of the objectness does not depend on the target."""
        objectness_BP = predictions.objectness_BP
        return cls(
            predictions.boxes_BP4.float().flatten(0, 1).T.contiguous(),
            predictions.class_logits_BPC,
            None if objectness_BP is None else -functional.logsigmoid(objectness_BP.float()).flatten(),
            overlap_weight,
        )

    def of_pairs(self, targets: Targets, target_s: Tensor, prior_sN: Tensor) -> Tensor:
        """Return the cost of each prior for the target of its row."""
        _, num_priors, num_classes = self.class_logits_BPC.shape
        place_sN = targets.image_T[target_s, None] * num_priors + prior_sN
        own_sN = self.class_logits_BPC.flatten()[place_sN * num_classes + targets.labels_T[target_s, None]]
        box_sN4 = torch.stack([side[place_sN] for side in self.box_4_BP], dim=-1)
        overlap_sN = overlap(box_sN4, targets.boxes_T4[target_s, None])
        cost_sN = -functional.logsigmoid(own_sN.float()) - self.overlap_weight * (overlap_sN + NO_OVERLAP).log()
        return cost_sN if self.objectness_BP is None else cost_sN + self.objectness_BP[place_sN]


def _cheapest_of_levels(
    priors: Priors, prior_SQ: Tensor, cost_SQ: Tensor, num_targets: int, candidates: int
) -> tuple[Tensor, Tensor]:
    """Return ``[T, K]`` priors and costs: the cheapest of each level, of the cheapest of each size on it."""
    per_cell = [grid.per_cell for grid in priors.grids]
    shape = (num_targets, sum(per_cell), candidates)
    found = []
    for prior_TAQ, cost_TAQ in zip(
        prior_SQ.view(shape).split_with_sizes(per_cell, dim=1),
        cost_SQ.view(shape).split_with_sizes(per_cell, dim=1),
        strict=True,
    ):
        first_TQ = smallest(cost_TAQ.flatten(1), candidates)
        found.append((prior_TAQ.flatten(1).gather(1, first_TQ), cost_TAQ.flatten(1).gather(1, first_TQ)))
    prior_TK, cost_TK = (torch.cat(columns, dim=1) for columns in zip(*found, strict=True))
    return prior_TK, cost_TK


@dataclass(frozen=True, slots=True)
class Mixture:
    """Two Gaussians for each row, the first of them fitted from the smallest value, the second from the largest.

    Attributes:
        mean_2T1: Means.
        variance_2T1: Variances.
        weight_2T1: Shares, adding up to 1.
    """

    mean_2T1: Tensor
    variance_2T1: Tensor
    weight_2T1: Tensor

    def log_likelihood(self, values_TK: Tensor) -> Tensor:
        """Return ``[2, T, K]`` logarithms of the weighted density of each component."""
        scale_2T1 = self.weight_2T1.log() - 0.5 * (2 * math.pi * self.variance_2T1).log()
        return scale_2T1 - (values_TK - self.mean_2T1).square() * (0.5 / self.variance_2T1)


def fit_mixture(values_TK: Tensor, is_real_TK: Tensor, iterations: int = ITERATIONS) -> Mixture:
    """Fit a mixture to each row by expectation and maximisation.

    As published, the means begin as the smallest and the largest value, the variances as 1, the weights as 1/2.

    Args:
        values_TK: Finite.
        is_real_TK: Which of them count; a row without any has a mixture that means nothing.
        iterations: How often each step is taken.
    """
    low_T1 = values_TK.masked_fill(~is_real_TK, torch.inf).amin(dim=1, keepdim=True)
    high_T1 = values_TK.masked_fill(~is_real_TK, -torch.inf).amax(dim=1, keepdim=True)
    mean_2T1 = torch.stack((low_T1, high_T1)).masked_fill(~is_real_TK.any(dim=1, keepdim=True), 0.0)
    mixture = Mixture(mean_2T1, torch.ones_like(mean_2T1), torch.full_like(mean_2T1, 0.5))
    real_TK = is_real_TK.float()
    for _ in range(iterations):
        first_TK, second_TK = mixture.log_likelihood(values_TK)
        odds_TK = first_TK - second_TK
        share_2TK = torch.stack((odds_TK, -odds_TK)).sigmoid() * real_TK
        # A component that lost all its values keeps a trace of weight, and no logarithm is that of 0.
        count_2T1 = share_2TK.sum(dim=2, keepdim=True) + torch.finfo(torch.float32).eps
        mean_2T1 = (share_2TK * values_TK).sum(dim=2, keepdim=True) / count_2T1
        spread_2TK = share_2TK * (values_TK - mean_2T1).square()
        variance_2T1 = spread_2TK.sum(dim=2, keepdim=True) / count_2T1 + LEAST_VARIANCE
        mixture = Mixture(mean_2T1, variance_2T1, count_2T1 / count_2T1.sum(dim=0))
    return mixture


def is_positive(cost_TK: Tensor, is_candidate_TK: Tensor) -> Tensor:
    """Return ``[T, K]`` which candidates are positive.

    They belong to the first component, and cost no more than the one of these that is likeliest in
    the mixture, the cheapest of equally likely ones: scheme (c) of the paper's figure 3. A
    single candidate is positive.
    """
    cost_TK = torch.where(is_candidate_TK & cost_TK.isfinite(), cost_TK, 0.0)
    first_TK, second_TK = fit_mixture(cost_TK, is_candidate_TK).log_likelihood(cost_TK)
    is_first_TK = is_candidate_TK & (first_TK >= second_TK)

    likely_TK = torch.logaddexp(first_TK, second_TK).masked_fill(~is_first_TK, -torch.inf)
    is_peak_TK = is_first_TK & (likely_TK >= likely_TK.amax(dim=1, keepdim=True) - EQUALLY_LIKELY)
    limit_T1 = cost_TK.masked_fill(~is_peak_TK, torch.inf).amin(dim=1, keepdim=True)
    is_alone_T1 = is_candidate_TK.sum(dim=1, keepdim=True) == 1
    return torch.where(is_alone_T1, is_candidate_TK, is_first_TK & (cost_TK <= limit_T1))


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer PAA."""
    register("paa", PaaAssigner)
