"""Optimal one-to-one assignment: each target has one prior, so that the sum of all costs is least.

Shape letters: B images, P priors, C classes, T targets, t targets of a block, K cheapest priors of a
target, J chunks of the priors, E edges of the graph, M matches.

References: Carion et al., DETR (2020), section 3.1, weights from appendix A.4; solved with the sparse
form of the algorithm of Jonker and Volgenant (1987), from scipy.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor
from torch.nn import functional

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.boxes import xyxy_to_cxcywh
from detloom.ops.iou import overlap
from detloom.ops.ranking import ordered_key, position_of, smallest
from detloom.structures import Assignment, Predictions, Targets

__all__ = ["HungarianAssigner", "cheapest", "cheapest_matching", "register_components"]

# Costs of this many pairs of target and prior are held at once: 8 MiB a tensor of float32. On a CPU
# boxes are compared in smaller parts, which its cache holds.
PAIRS_AT_ONCE = 1 << 21
PAIRS_IN_CACHE = 1 << 17

# How often edges of the graph are looked through for such as can be left out; some may stay.
PASSES = 4

# Priors are looked through in chunks of this many.
CHUNK = 64


class HungarianAssigner(Assigner):
    """Each target has the prior that makes the sum of costs of its image least, and no two the same.

    The cost is DETR's: the predicted probability of the target's class, taken negative, the distance of
    the boxes, and their GIoU, taken negative. The probability is that of independent classes,
    times the objectness where there is one.

    The matching is exact. With ``n`` objects in an image only the ``n`` cheapest priors of each can
    matter: were a target matched to another, one of these would be free, and no dearer. So a sparse
    graph of the whole batch is solved at once. That happens on the host: the device is waited for once in a
    batch, for the costs of these priors, and gets the matches back. A target whose costs hold a NaN has a
    match of quality NaN: the losses become NaN, which the training stops at.

    There is no relaxed form, as that would not be one-to-one.

    Args:
        class_weight: Weight of the probability.
        distance_weight: Weight of the sum of the differences of centres and sizes, as parts of the image's
            width and height.
        overlap_weight: Weight of the GIoU.
        inside: Take only priors whose centre lies inside the target, as is of use for convolutional
            heads; a target may be left without. DETR has no such condition.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    one_to_one = True

    def __init__(
        self,
        *,
        class_weight: float = 1.0,
        distance_weight: float = 5.0,
        overlap_weight: float = 2.0,
        inside: bool = False,
        soft_labels: bool = False,
    ) -> None:
        for name, value, published in (
            ("class_weight", class_weight, 1.0),
            ("distance_weight", distance_weight, 5.0),
            ("overlap_weight", overlap_weight, 2.0),
        ):
            if value < 0:
                raise RecipeError(f"{name} must not be negative, got {value}; published is {published}")
        self.class_weight = class_weight
        self.distance_weight = distance_weight
        self.overlap_weight = overlap_weight
        self.inside = inside
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target."""
        boxes_T4, image_T = targets.boxes_T4, targets.image_T
        if targets.most_per_image == 0:
            none = torch.zeros_like(image_T)
            return Assignment(none, none, none, none.float())
        num_priors = predictions.priors.num_priors
        with torch.autocast(boxes_T4.device.type, enabled=False):
            cost_TK, prior_TK = self._cheapest_priors(predictions, targets)
            place_TK = image_T[:, None] * num_priors + prior_TK
            # Both in one tensor, so that the device is waited for once.
            pairs_2TK = torch.stack((cost_TK.view(torch.int32).long(), place_TK)).cpu().numpy()
            place_T = cheapest_matching(pairs_2TK[0].astype(np.int32).view(np.float32), pairs_2TK[1])
            target = (place_T >= 0).nonzero()[0]
            found = np.stack((place_T[target] // num_priors, place_T[target] % num_priors, target))
            image_M, prior_M, target_M = torch.from_numpy(found).to(boxes_T4.device).unbind()

            quality_M = torch.ones_like(target_M, dtype=torch.float32)
            if self.soft_labels:
                quality_M = overlap(predictions.boxes_BP4[image_M, prior_M].float(), boxes_T4[target_M]).clamp(0, 1)
            quality_M = quality_M.masked_fill(cost_TK[target_M, 0].isnan(), torch.nan)
        return Assignment(image_M, prior_M, target_M, quality_M)

    def _cheapest_priors(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return ``[T, K]`` costs and priors, cheapest first; all costs NaN where one was, infinite where unneeded."""
        image_T, most = targets.image_T, targets.most_per_image
        num_priors, device = predictions.priors.num_priors, image_T.device
        count = min(most, num_priors)
        cost_TK = torch.zeros((targets.num_targets, count), device=device)
        prior_TK = image_T.new_zeros(cost_TK.shape)
        class_costs, box_costs = self._class_costs(predictions, targets), self._box_costs(predictions, targets)
        step = max(1, PAIRS_AT_ONCE // num_priors)
        part = max(1, PAIRS_IN_CACHE // num_priors) if device.type == "cpu" else step
        for start in range(0, targets.num_targets, step):
            block = slice(start, min(start + step, targets.num_targets))
            cost_tP = class_costs(block)
            for first in range(block.start, block.stop, part):
                rows = slice(first, min(first + part, block.stop))
                cost_tP[first - start : rows.stop - start] += box_costs(rows)
            prior_TK[block] = cheapest(cost_tP, count)
            has_nan_t1 = cost_tP.amin(dim=1, keepdim=True).isnan()
            cost_TK[block] = cost_tP.gather(1, prior_TK[block]).masked_fill(has_nan_t1, torch.nan)

        ones_T = torch.ones_like(image_T)
        objects_B = image_T.new_zeros(targets.num_images).scatter_add(0, image_T, ones_T)
        is_unneeded_TK = torch.arange(count, device=device) >= objects_B[image_T, None]
        return cost_TK.masked_fill(is_unneeded_TK, torch.inf), prior_TK

    def _class_costs(self, predictions: Predictions, targets: Targets) -> Callable[[slice], Tensor]:
        """Return a function of a range of targets to the ``[t, P]`` costs of their class."""
        objectness_BP = None if predictions.objectness_BP is None else predictions.objectness_BP.float().sigmoid()

        def costs(block: slice) -> Tensor:
            image_t, label_t = targets.image_T[block], targets.labels_T[block]
            probability_tP = predictions.class_logits_BPC[image_t, :, label_t].float().sigmoid_()
            if objectness_BP is not None:
                probability_tP *= objectness_BP[image_t]
            return probability_tP.mul_(-self.class_weight)

        return costs

    def _box_costs(self, predictions: Predictions, targets: Targets) -> Callable[[slice], Tensor]:
        """Return a function of a range of targets to the ``[t, P]`` costs of their boxes, infinite if not allowed."""
        height, width = targets.image_size
        weights = [self.distance_weight / side for side in (width, height, width, height)]
        # One plane a coordinate, so that what follows runs over adjacent numbers.
        box_4BP = predictions.boxes_BP4.float().movedim(-1, 0).contiguous()
        box_cxcywh_4BP = xyxy_to_cxcywh(predictions.boxes_BP4.float()).movedim(-1, 0).contiguous()
        target_cxcywh_T4 = xyxy_to_cxcywh(targets.boxes_T4)
        x_P, y_P = predictions.priors.centers_P2.T.contiguous()

        def costs(block: slice) -> Tensor:
            image_t, target_t4 = targets.image_T[block], targets.boxes_T4[block]
            cost_tP = overlap(box_4BP[:, image_t].movedim(0, -1), target_t4[:, None], "giou").mul_(-self.overlap_weight)
            for side_BP, side_T, weight in zip(box_cxcywh_4BP, target_cxcywh_T4.unbind(1), weights, strict=True):
                cost_tP.add_((side_BP[image_t] - side_T[block, None]).abs_(), alpha=weight)
            if self.inside:
                x1_t1, y1_t1, x2_t1, y2_t1 = target_t4[..., None].unbind(1)
                is_inside_tP = (x_P > x1_t1) & (x_P < x2_t1) & (y_P > y1_t1) & (y_P < y2_t1)
                cost_tP = cost_tP.masked_fill(~is_inside_tP, torch.inf)
            return cost_tP

        return costs


def cheapest(cost_tP: Tensor, count: int) -> Tensor:
    """Return the ``[t, count]`` positions of the smallest values, smallest first, the first of equals first.

    The same as ``smallest``, for few of many: a value among the ``count`` smallest lies in one of the
    ``count`` chunks whose own smallest are smallest, so that only these chunks are ranked.
    """
    num_rows, num_priors = cost_tP.shape
    if num_priors <= CHUNK * count:
        return smallest(cost_tP, count)
    padded_tP = functional.pad(cost_tP, (0, -num_priors % CHUNK), value=torch.inf)
    padded_tJP = padded_tP.view(num_rows, -1, CHUNK)
    chunk_tK = smallest(padded_tJP.amin(dim=2), count)
    position_tP = (chunk_tK[..., None] * CHUNK + torch.arange(CHUNK, device=cost_tP.device)).flatten(1)
    key_tP = ordered_key(padded_tP.gather(1, position_tP), position_tP)
    return position_of(key_tP.topk(count, dim=1, largest=False, sorted=True).values)


def cheapest_matching(cost_TK: NDArray[np.float32], place_TK: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each target, no two the same, with the least sum of costs; -1 where it has none.

    As many targets as possible have a place, whatever it costs.

    Args:
        cost_TK: Costs, rising in each row; infinite where a place may not be taken. A row of NaN has the
            first of its places, and takes it from nobody.
        place_TK: Any numbers from 0, different in each row.
    """
    is_edge_TK = _needed(np.isfinite(cost_TK), place_TK)
    row_E, rank_E = is_edge_TK.nonzero()
    place_U, column_E = np.unique(place_TK[row_E, rank_E], return_inverse=True)
    cost_E = cost_TK[row_E, rank_E].astype(np.float64)
    if cost_E.size:
        cost_E -= cost_E.min() - 1
    # A target for which no place is left has one of its own, dearer than all others together can be.
    num_targets, most = cost_TK.shape
    dear_T = np.full(num_targets, (most + 1) * cost_E.max(initial=1.0))
    target_T = np.arange(num_targets)
    graph: Any = csr_array(
        (
            np.concatenate((cost_E, dear_T)),
            (np.concatenate((row_E, target_T)), np.concatenate((column_E, len(place_U) + target_T))),
        ),
        shape=(num_targets, len(place_U) + num_targets),
    )
    _, column_T = min_weight_full_bipartite_matching(graph)
    places = np.concatenate((place_U, np.full(num_targets, -1)))
    found_T: NDArray[np.int64] = np.where(np.isnan(cost_TK[:, 0]), place_TK[:, 0], places[column_T])
    return found_T


def _needed(is_edge_TK: NDArray[np.bool_], place_TK: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which edges a cheapest matching can need.

    A target never takes a dearer place than the cheapest of those that nobody else can take. Each
    edge left out may make a place such a one for another target.
    """
    num_places = int(place_TK.max(initial=-1)) + 1
    for _ in range(PASSES):
        takers = np.bincount(place_TK[is_edge_TK], minlength=num_places)
        is_own_TK = is_edge_TK & (takers[place_TK] == 1)
        owned_before_TK = np.cumsum(is_own_TK, axis=1) - is_own_TK
        is_edge_TK = is_edge_TK & (owned_before_TK == 0)
    return is_edge_TK


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the optimal one-to-one assignment."""
    register("hungarian", HungarianAssigner)
