"""Dynamic-k assignment: each target takes as many of the cheapest candidates as its overlaps add up to.

Shape letters: B images, P priors, C classes, T targets of the batch, N candidates of an image (padded),
t targets of a block, Q ranks, M matches.

References: OTA (2021), section 3.3; YOLOX (2021), section 2, "SimOTA"; YOLOv7 (2022), section 4.2.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, ordered_key, position_of, smallest
from detloom.structures import Assignment, Predictions, Targets
from detloom_plugins.anchor_ratio import anchor_ratio_candidates

__all__ = [
    "CandidateTable",
    "Score",
    "Yolov7Assigner",
    "class_costs",
    "collect",
    "dynamic_k_matches",
    "match_cheapest",
    "no_matches",
    "register_components",
]

# Costs of this many pairs of target and candidate are held at once: 32 MiB a tensor of int64.
PAIRS_AT_ONCE = 1 << 22

# Probabilities stay this far from 0 and 1, so that their logarithms are finite.
CERTAINTY = 1e-7

# Given a range of targets, the cost of, and the overlap with, each candidate of their images, both
# ``[t, N]``. What stands in the columns past an image's candidates plays no part.
Score = Callable[[slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class CandidateTable:
    """The candidates of each image, side by side.

    Attributes:
        prior_BN: Index into the priors; 0 past an image's last candidate. A prior can occur several times.
        count_B: Number of candidates of each image.
    """

    prior_BN: Tensor
    count_B: Tensor


class Yolov7Assigner(Assigner):
    """Candidates by anchor ratio, then dynamic k with the predictions as they are.

    A prior that is a candidate of several targets counts several times, as published, and may be
    matched as often. A target whose candidates hold a NaN has matches of quality NaN: the losses
    become NaN, which the training stops at. The device is waited for twice in a batch: for the
    largest number of candidates of an image, and for the number of matches.

    Args:
        anchor_ratio: A prior fits a target when neither side of one is this many times that of the other.
        reach: How near to its cell's edge, in cells, a centre brings in the neighbouring cell.
        candidates: How many of the best overlaps of a target are added up to its number of matches.
        overlap_weight: Weight of the overlap against the class in the cost of a match.
        published_ties: On a CPU, take of several equal costs those that the published code takes there,
            which depend on the order of the targets and on the release of torch; slower, as it looks at
            targets one by one. Elsewhere, and always when false, the first are taken.
    """

    def __init__(
        self,
        *,
        anchor_ratio: float = 4.0,
        reach: float = 0.5,
        candidates: int = 10,
        overlap_weight: float = 3.0,
        published_ties: bool = False,
    ) -> None:
        if anchor_ratio <= 1:
            raise RecipeError(f"anchor_ratio must be above 1, got {anchor_ratio}; published is 4.0")
        if not 0 <= reach <= 1:
            raise RecipeError(f"reach must lie in [0, 1] cells, got {reach}; published is 0.5, for auxiliary heads 1.0")
        if candidates < 1:
            raise RecipeError(f"candidates must be at least 1, got {candidates}; published is 10")
        if overlap_weight < 0:
            raise RecipeError(f"overlap_weight must not be negative, got {overlap_weight}; published is 3.0")
        self.anchor_ratio = anchor_ratio
        self.reach = reach
        self.candidates = candidates
        self.overlap_weight = overlap_weight
        self.published_ties = published_ties

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, image after image."""
        if targets.most_per_image == 0:
            return no_matches(targets.boxes_T4.device)
        found = anchor_ratio_candidates(predictions.priors, targets.padded(), ratio=self.anchor_ratio, reach=self.reach)
        table = collect(found.prior_BK, found.is_candidate_BK)
        if table.prior_BN.shape[1] == 0:
            return no_matches(targets.boxes_T4.device)
        return match_cheapest(
            predictions,
            targets,
            table,
            candidates=self.candidates,
            overlap_weight=self.overlap_weight,
            published_ties=self.published_ties and table.prior_BN.device.type == "cpu",
        )

    def relaxed(self) -> "Yolov7Assigner | None":
        """Return the published coarse form: every neighbouring cell brings candidates, ``reach`` being 1 cell."""
        if self.reach == 1:
            return None
        relaxed = copy(self)
        relaxed.reach = 1.0
        return relaxed


@torch.no_grad()
def match_cheapest(
    predictions: Predictions,
    targets: Targets,
    table: CandidateTable,
    *,
    candidates: int,
    overlap_weight: float,
    penalty: Callable[[slice], Tensor] | None = None,
    published_ties: bool = False,
) -> Assignment:
    """Return the dynamic-k matches among given candidates, image after image.

    A match has a quality of 1, or NaN where a cost of its target is NaN. The device is asked once, for the
    number of matches. ``penalty`` gives what a range of targets pays, beside, for each candidate of their
    images, ``[t, N]``; the other settings are those of ``Yolov7Assigner``.
    """
    with torch.autocast(targets.boxes_T4.device.type, enabled=False):
        score, is_sound_T = _score(predictions, targets, table, overlap_weight, penalty)
        width = table.prior_BN.shape[1]
        target_BN = dynamic_k_matches(
            score, targets.image_T, table.count_B, width, candidates=candidates, published_ties=published_ties
        )
    image_M, column_M = (target_BN >= 0).nonzero(as_tuple=True)
    target_M = target_BN[image_M, column_M]
    return Assignment(image_M, table.prior_BN[image_M, column_M], target_M, is_sound_T[target_M])


def _score(
    predictions: Predictions,
    targets: Targets,
    table: CandidateTable,
    overlap_weight: float,
    penalty: Callable[[slice], Tensor] | None,
) -> tuple[Score, Tensor]:
    """Return the function of costs, and a quality of 1, or NaN, for each target that fills as it is used."""
    images_B1 = torch.arange(predictions.num_images, device=table.prior_BN.device)[:, None]
    # One plane a coordinate, so that what follows runs over adjacent numbers.
    box_4BN = predictions.boxes_BP4[images_B1, table.prior_BN].float().movedim(-1, 0).contiguous()
    objectness_BP = predictions.objectness_BP
    class_cost = class_costs(
        predictions.class_logits_BPC[images_B1, table.prior_BN],
        None if objectness_BP is None else objectness_BP[images_B1, table.prior_BN],
    )
    columns_N = torch.arange(table.prior_BN.shape[1], device=table.prior_BN.device)
    is_sound_T = torch.ones(targets.num_targets, device=table.prior_BN.device)

    def score(block: slice) -> tuple[Tensor, Tensor]:
        image_t = targets.image_T[block]
        overlap_tN = overlap(targets.boxes_T4[block, None], box_4BN[:, image_t].movedim(0, -1))
        cost_tN = class_cost(image_t, targets.labels_T[block])
        cost_tN = cost_tN - overlap_weight * (overlap_tN + 1e-8).log()
        if penalty is not None:
            cost_tN = cost_tN + penalty(block)
        is_real_tN = columns_N < table.count_B[image_t, None]
        has_nan_t = (cost_tN.isnan() & is_real_tN).any(dim=1)
        is_sound_T[block] = torch.where(has_nan_t, torch.nan, 1.0)
        return cost_tN, overlap_tN

    return score, is_sound_T


def collect(prior_BK: Tensor, is_candidate_BK: Tensor) -> CandidateTable:
    """Bring the candidates of each image together, in their order; the device is asked once, for the width."""
    count_B = is_candidate_BK.sum(dim=1)
    width = int(count_B.max())
    column_BK = is_candidate_BK.cumsum(dim=1) - 1
    # What is no candidate goes to one column too many.
    column_BK = torch.where(is_candidate_BK, column_BK, width)
    prior_BN = prior_BK.new_zeros((len(count_B), width + 1)).scatter(1, column_BK, prior_BK)
    return CandidateTable(prior_BN[:, :width], count_B)


def class_costs(class_logits_BNC: Tensor, objectness_BN: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of images and labels of targets to the ``[t, N]`` class costs of their candidates.

    The cost is the cross-entropy of all classes with the target's, where the probability of a class is
    the geometric mean of its own and the objectness. The part that all targets share, that of no class
    being present, is summed once a candidate; for its own class a target adds what differs.
    """
    probability_BNC = class_logits_BNC.float().sigmoid()
    if objectness_BN is not None:
        probability_BNC = (probability_BNC * objectness_BN.float().sigmoid()[..., None]).sqrt()
    probability_BNC = probability_BNC.clamp(CERTAINTY, 1 - CERTAINTY)
    absent_BN = torch.log1p(-probability_BNC).sum(dim=-1)
    probability_BCN = probability_BNC.transpose(1, 2)

    def cost(image_t: Tensor, label_t: Tensor) -> Tensor:
        own_tN = probability_BCN[image_t, label_t]
        return torch.log1p(-own_tN) - own_tN.log() - absent_BN[image_t]

    return cost


def dynamic_k_matches(
    score: Score, image_T: Tensor, count_B: Tensor, width: int, *, candidates: int, published_ties: bool = False
) -> Tensor:
    """Return the ``[B, N]`` target that each candidate is matched to, or -1.

    A target takes its ``k`` cheapest candidates, ``k`` being the sum of its best overlaps, rounded
    down, and at least 1. A candidate that several targets take goes to the one, of all targets of
    the image, that it costs least. Of equal costs the first candidate, or the first target, wins.

    Args:
        score: Costs and overlaps of a range of targets; asked in blocks, so that memory is bounded.
        image_T: Image of each target, ascending.
        count_B: Number of candidates of each image.
        width: ``N``, the largest of these.
        candidates: How many of the best overlaps are added up.
        published_ties: Take of equal costs those that ``torch.topk`` takes; asks the device about each target.
    """
    num_targets = len(image_T)
    shape = (len(count_B), width)
    columns_N = torch.arange(width, device=image_T.device)
    best_key_BN = image_T.new_full(shape, LAST_KEY)
    times_taken_BN = image_T.new_zeros(shape)
    last_taker_BN = image_T.new_full(shape, -1)

    step = max(1, PAIRS_AT_ONCE // width)
    for start in range(0, num_targets, step):
        block = slice(start, min(start + step, num_targets))
        image_t = image_T[block]
        target_t1 = torch.arange(block.start, block.stop, device=image_T.device)[:, None]
        cost_tN, overlap_tN = score(block)
        is_real_tN = columns_N < count_B[image_t, None]
        cost_tN = torch.where(is_real_tN, cost_tN, torch.inf)
        best_key_BN.scatter_reduce_(0, image_t[:, None].expand_as(cost_tN), ordered_key(cost_tN, target_t1), "amin")

        k_t1 = _numbers_of_matches(torch.where(is_real_tN, overlap_tN, 0.0), candidates)
        # Overlaps are at most 1, so that no target takes more than ``candidates``; one more shows ties.
        column_tQ = smallest(cost_tN, min(candidates + 1, width))
        if published_ties:
            _break_ties_as_topk_(column_tQ, cost_tN, count_B[image_t], k_t1)
        is_taken_tQ = (torch.arange(column_tQ.shape[1], device=image_T.device) < k_t1) & is_real_tN.gather(1, column_tQ)
        where = (image_t[:, None].expand_as(column_tQ), column_tQ)
        times_taken_BN.index_put_(where, is_taken_tQ.long(), accumulate=True)
        taker_tQ = torch.where(is_taken_tQ, target_t1, -1)
        flat_tQ = where[0] * width + column_tQ
        last_taker_BN.view(-1).scatter_reduce_(0, flat_tQ.flatten(), taker_tQ.flatten(), "amax")
    return torch.where(times_taken_BN > 1, position_of(best_key_BN), last_taker_BN)


def _numbers_of_matches(overlap_tN: Tensor, candidates: int) -> Tensor:
    """Return ``[t, 1]`` sums of the best overlaps, rounded down, at least 1."""
    best_tQ = overlap_tN.topk(min(candidates, overlap_tN.shape[1]), dim=1).values
    # NaN counts as nothing here; it is reported by the quality of the matches.
    return best_tQ.nan_to_num(0.0).sum(dim=1, keepdim=True).floor().clamp(min=1)


def _break_ties_as_topk_(column_tQ: Tensor, cost_tN: Tensor, count_t: Tensor, k_t1: Tensor) -> None:
    """Replace, in place, the choice of the targets for which the last taken cost equals the first not taken.

    Such ties come from a prior that is a candidate of several targets. Which of them ``torch.topk``
    takes is no rule that could be stated, but published results rest on it.
    """
    if column_tQ.shape[1] < 2:
        return
    cost_tQ = cost_tN.gather(1, column_tQ)
    last_t1 = (k_t1.long() - 1).clamp(max=column_tQ.shape[1] - 2)
    is_tied_t = (cost_tQ.gather(1, last_t1) == cost_tQ.gather(1, last_t1 + 1)).flatten() & (k_t1.flatten() < count_t)
    for row in is_tied_t.nonzero().flatten().tolist():
        k, count = int(k_t1[row]), int(count_t[row])
        column_tQ[row, :k] = cost_tN[row, :count].topk(k, largest=False).indices


def no_matches(device: torch.device) -> Assignment:
    """Return an assignment without matches."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Assignment(none, none, none, none.float())


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the assigner of YOLOv7."""
    register("yolov7", Yolov7Assigner)
