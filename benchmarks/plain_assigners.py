"""Assigners written straightforwardly, to be compared with: one image after the other, every pair in full.

The published maths and nothing else: no blocks, no windows, no thought of memory or of a GPU.

Shape letters: see ``detloom.structures``; N candidates of an image, G targets of an image, K pairs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from detloom.ops.boxes import xyxy_to_cxcywh
from detloom.ops.iou import overlap
from detloom.structures import Assignment, Predictions, Priors, Targets

__all__ = ["PLAIN", "Plain"]

Numbers = NDArray[Any]
Plain = Callable[[Predictions, Targets], Assignment]

# Given predictions and targets of one image: priors and targets (of the image) of the matches.
OfImage = Callable[[Predictions, int, Tensor, Tensor], tuple[Tensor, Tensor]]


def image_by_image(of_image: OfImage) -> Plain:
    """Return an assigner that asks a function for the matches of each image."""

    @torch.no_grad()
    def assign(predictions: Predictions, targets: Targets) -> Assignment:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for image in range(predictions.num_images):
            target_G = (targets.image_T == image).nonzero()[:, 0]
            if len(target_G) == 0:
                continue
            boxes_G4, labels_G = targets.boxes_T4[target_G], targets.labels_T[target_G]
            prior_M, row_M = of_image(predictions, image, boxes_G4, labels_G)
            found.append((torch.full_like(prior_M, image), prior_M, target_G[row_M]))
        image_M, prior_M, target_M = (torch.cat(column) for column in zip(*found, strict=True))
        return Assignment(image_M, prior_M, target_M, torch.ones(len(image_M)))

    return assign


def iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Return the overlaps of every ``a`` with every ``b``."""
    low_NM2 = torch.maximum(a_N4[:, None, :2], b_M4[:, :2])
    high_NM2 = torch.minimum(a_N4[:, None, 2:], b_M4[:, 2:])
    shared_NM = (high_NM2 - low_NM2).clamp(min=0).prod(dim=2)
    area_N, area_M = (a_N4[:, 2:] - a_N4[:, :2]).prod(dim=1), (b_M4[:, 2:] - b_M4[:, :2]).prod(dim=1)
    return shared_NM / (area_N[:, None] + area_M - shared_NM)


def scores(predictions: Predictions, image: int, prior_N: Tensor) -> Tensor:
    """Return the ``[N, C]`` probabilities of priors, objectness included."""
    score_NC = predictions.class_logits_BPC[image, prior_N].sigmoid()
    if predictions.objectness_BP is not None:
        score_NC = score_NC * predictions.objectness_BP[image, prior_N].sigmoid()[:, None]
    return score_NC


def class_cost(score_NC: Tensor, labels_G: Tensor) -> Tensor:
    """Return the ``[G, N]`` cross-entropies of the roots of scores with every target's class."""
    probability_GNC = score_NC.sqrt()[None].repeat(len(labels_G), 1, 1)
    wanted_GC = functional.one_hot(labels_G, score_NC.shape[1]).float()
    wanted_GNC = wanted_GC[:, None].repeat(1, len(score_NC), 1)
    logits_GNC = (probability_GNC / (1 - probability_GNC)).log()
    return functional.binary_cross_entropy_with_logits(logits_GNC, wanted_GNC, reduction="none").sum(dim=2)


def dynamic_k(cost_GN: Tensor, iou_GN: Tensor, best: int = 10) -> tuple[Tensor, Tensor]:
    """Return columns and rows of the matches."""
    k_G = iou_GN.topk(min(best, iou_GN.shape[1]), dim=1).values.sum(dim=1).int().clamp(min=1)
    taken_GN = torch.zeros_like(cost_GN)
    for row in range(len(cost_GN)):
        taken_GN[row, cost_GN[row].topk(int(k_G[row]), largest=False).indices] = 1
    contested_N = taken_GN.sum(dim=0) > 1
    if contested_N.any():
        cheapest = cost_GN[:, contested_N].argmin(dim=0)
        taken_GN[:, contested_N] = 0
        taken_GN[cheapest, contested_N.nonzero()[:, 0]] = 1
    column_M = (taken_GN.sum(dim=0) > 0).nonzero()[:, 0]
    return column_M, taken_GN[:, column_M].argmax(dim=0)


def ratio_candidates(priors: Priors, boxes_G4: Tensor) -> tuple[Tensor, Tensor]:
    """Return prior and target of each candidate by anchor ratio, one level after the other."""
    rows, chosen = [], []
    for grid in priors.grids:
        size_A2 = priors.sizes_P2[grid.start : grid.start + grid.per_cell]
        center_G2, extent_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2 / grid.stride, boxes_G4[:, 2:] - boxes_G4[:, :2]
        ratio_AG2 = extent_G2 / size_A2[:, None]
        anchor_K, target_K = (torch.maximum(ratio_AG2, 1 / ratio_AG2).amax(dim=2) < 4).nonzero(as_tuple=True)
        center_K2 = center_G2[target_K]
        limit_2 = torch.tensor([grid.width, grid.height])
        opposite_K2 = limit_2 - center_K2
        near_K2 = (center_K2 % 1 < 0.5) & (center_K2 > 1)
        far_K2 = (opposite_K2 % 1 < 0.5) & (opposite_K2 > 1)
        steps = [(torch.ones_like(near_K2[:, 0]), (0.0, 0.0)), (near_K2[:, 0], (-0.5, 0.0))]
        steps += [(near_K2[:, 1], (0.0, -0.5)), (far_K2[:, 0], (0.5, 0.0)), (far_K2[:, 1], (0.0, 0.5))]
        for keep_K, step in steps:
            cell_K2 = (center_K2[keep_K] + torch.tensor(step)).long()
            cell_K2 = torch.minimum(cell_K2.clamp(min=0), limit_2 - 1)
            cell_K = cell_K2[:, 1] * grid.width + cell_K2[:, 0]
            chosen.append(grid.start + cell_K * grid.per_cell + anchor_K[keep_K])
            rows.append(target_K[keep_K])
    return torch.cat(chosen), torch.cat(rows)


@image_by_image
def plain_anchor_ratio(
    predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor
) -> tuple[Tensor, Tensor]:
    """Every candidate learns the target that it was made for."""
    del image, labels_G
    return ratio_candidates(predictions.priors, boxes_G4)


@image_by_image
def plain_yolov7(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates by anchor ratio, then dynamic k."""
    prior_N, _ = ratio_candidates(predictions.priors, boxes_G4)
    if len(prior_N) == 0:
        return prior_N, prior_N
    iou_GN = iou(boxes_G4, predictions.boxes_BP4[image, prior_N])
    cost_GN = class_cost(scores(predictions, image, prior_N), labels_G) - 3 * (iou_GN + 1e-8).log()
    column_M, row_M = dynamic_k(cost_GN, iou_GN)
    return prior_N[column_M], row_M


@image_by_image
def plain_simota(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates near the centres, then dynamic k."""
    priors = predictions.priors
    offset_GP2 = (priors.centers_P2 - ((boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2)[:, None]).abs()
    is_near_GP = (offset_GP2 < 1.5 * priors.strides_P[:, None]).all(dim=2)
    prior_N = is_near_GP.any(dim=0).nonzero()[:, 0]
    iou_GN = iou(boxes_G4, predictions.boxes_BP4[image, prior_N])
    cost_GN = class_cost(scores(predictions, image, prior_N), labels_G) - 3 * (iou_GN + 1e-8).log()
    column_M, row_M = dynamic_k(cost_GN + 1e6 * ~is_near_GP[:, prior_N], iou_GN)
    return prior_N[column_M], row_M


@image_by_image
def plain_atss(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest priors of each level, cut at a threshold; distances to all priors."""
    del image, labels_G
    priors = predictions.priors
    iou_PG = iou(priors.boxes_P4, boxes_G4)
    distance_PG = (priors.centers_P2[:, None] - (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2).square().sum(dim=2).sqrt()
    nearest = [
        grid.start + distance_PG[grid.span].topk(9 * grid.per_cell, dim=0, largest=False).indices
        for grid in priors.grids
    ]
    prior_KG = torch.cat(nearest)
    iou_KG = iou_PG.gather(0, prior_KG)
    center_KG2 = priors.centers_P2[prior_KG]
    is_inside_KG = ((center_KG2 > boxes_G4[:, :2]) & (center_KG2 < boxes_G4[:, 2:])).all(dim=2)
    is_positive_KG = (iou_KG >= iou_KG.mean(dim=0) + iou_KG.std(dim=0)) & is_inside_KG
    best_PG = torch.full_like(iou_PG, -1.0).scatter(0, prior_KG, torch.where(is_positive_KG, iou_KG, -1.0))
    best_P, row_P = best_PG.max(dim=1)
    prior_M = (best_P >= 0).nonzero()[:, 0]
    return prior_M, row_P[prior_M]


@image_by_image
def plain_task_aligned(
    predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor
) -> tuple[Tensor, Tensor]:
    """The points inside that score and overlap best."""
    priors = predictions.priors
    every_P = torch.arange(priors.num_priors)
    is_inside_GP = inside(priors, boxes_G4)
    iou_GP = iou(boxes_G4, predictions.boxes_BP4[image])
    metric_GP = scores(predictions, image, every_P)[:, labels_G].T * iou_GP.pow(6) * is_inside_GP
    taken_GP = torch.zeros_like(is_inside_GP).scatter(1, metric_GP.topk(13, dim=1).indices, value=True) & is_inside_GP
    row_P = torch.where(taken_GP, iou_GP, -1.0).argmax(dim=0)
    prior_M = taken_GP.any(dim=0).nonzero()[:, 0]
    return prior_M, row_P[prior_M]


@image_by_image
def plain_fcos(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """The points near the centre on the level of the target's scale; the smaller target wins."""
    del image, labels_G
    priors = predictions.priors
    center_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    is_near_GP = ((priors.centers_P2 - center_G2[:, None]).abs() < 1.5 * priors.strides_P[:, None]).all(dim=2)
    low_GP2, high_GP2 = priors.centers_P2 - boxes_G4[:, None, :2], boxes_G4[:, None, 2:] - priors.centers_P2
    farthest_GP = torch.cat((low_GP2, high_GP2), dim=2).amax(dim=2)
    strides = [float(grid.stride) for grid in priors.grids]
    least_L = torch.tensor([0.0, *(8 * stride for stride in strides[:-1])])
    most_L = torch.tensor([*(8 * stride for stride in strides[:-1]), torch.inf])
    is_of_level_GP = (farthest_GP >= least_L[priors.level_P]) & (farthest_GP <= most_L[priors.level_P])
    is_positive_GP = is_near_GP & inside(priors, boxes_G4) & is_of_level_GP
    area_G1 = (boxes_G4[:, 2:] - boxes_G4[:, :2]).prod(dim=1, keepdim=True)
    row_P = torch.where(is_positive_GP, area_G1, torch.inf).argmin(dim=0)
    prior_M = is_positive_GP.any(dim=0).nonzero()[:, 0]
    return prior_M, row_P[prior_M]


def inside(priors: Priors, boxes_G4: Tensor) -> Tensor:
    """Return ``[G, P]``: whether a prior's centre lies inside a box."""
    center_P2 = priors.centers_P2
    return ((center_P2 > boxes_G4[:, None, :2]) & (center_P2 < boxes_G4[:, None, 2:])).all(dim=2)


@image_by_image
def plain_max_iou(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """The priors that overlap a target by a half, and the best of each target."""
    del image, labels_G
    iou_PG = iou(predictions.priors.boxes_P4, boxes_G4)
    best_P, row_P = iou_PG.max(dim=1)
    is_positive_P = best_P >= 0.5
    best_G = iou_PG.amax(dim=0)
    # Large priors overlap a target that lies within them equally: the nearest of them counts.
    middle_G2 = (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2
    away_PG = torch.cdist(predictions.priors.centers_P2, middle_G2, compute_mode="donot_use_mm_for_euclid_dist")
    prior_G = away_PG.where((iou_PG - best_G).abs() < 1e-6, torch.inf).argmin(dim=0)
    for row in best_G.argsort().tolist():
        if best_G[row] > 0:
            row_P[prior_G[row]] = row
            is_positive_P[prior_G[row]] = True
    prior_M = is_positive_P.nonzero()[:, 0]
    return prior_M, row_P[prior_M]


@image_by_image
def plain_paa(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """The likelier of two Gaussians over each target's losses."""
    priors = predictions.priors
    every_P = torch.arange(priors.num_priors)
    iou_GP = iou(boxes_G4, priors.boxes_P4)
    own_GP = scores(predictions, image, every_P)[:, labels_G].T
    predicted_GP = iou(boxes_G4, predictions.boxes_BP4[image])
    loss_GP = -(own_GP + 1e-7).log() - (predicted_GP + 1e-8).log()
    best_P = torch.full((priors.num_priors,), torch.inf)
    row_P = torch.zeros(priors.num_priors, dtype=torch.int64)
    for row in range(len(boxes_G4)):
        chosen = []
        for grid in priors.grids:
            loss = torch.where(iou_GP[row, grid.span] >= 0.1, loss_GP[row, grid.span], torch.inf)
            nearest = loss.topk(min(9, len(loss)), largest=False)
            chosen.append(grid.start + nearest.indices[nearest.values < torch.inf])
        prior_K = torch.cat(chosen)
        keep_K = torch.from_numpy(low_component(loss_GP[row, prior_K].double().numpy()))
        prior_K = prior_K[keep_K]
        is_better_K = loss_GP[row, prior_K] < best_P[prior_K]
        best_P[prior_K[is_better_K]] = loss_GP[row, prior_K[is_better_K]]
        row_P[prior_K[is_better_K]] = row
    prior_M = (best_P < torch.inf).nonzero()[:, 0]
    return prior_M, row_P[prior_M]


def low_component(loss_K: Numbers, rounds: int = 30) -> Numbers:
    """Return which of the losses of a target belong to the lower Gaussian, up to its likeliest."""
    if len(loss_K) < 2:
        return np.ones(len(loss_K), bool)
    mean_2, weight_2, variance_2 = np.array([loss_K.min(), loss_K.max()]), np.full(2, 0.5), np.ones(2)
    for _ in range(rounds):
        log_2K = log_density(loss_K, mean_2, weight_2, variance_2)
        share_2K = np.exp(log_2K - np.logaddexp(*log_2K))
        count_2 = share_2K.sum(1) + 1e-15
        weight_2 = count_2 / len(loss_K)
        mean_2 = share_2K @ loss_K / count_2
        variance_2 = (share_2K * np.square(loss_K - mean_2[:, None])).sum(1) / count_2 + 1e-6
    log_2K = log_density(loss_K, mean_2, weight_2, variance_2)
    is_low_K: Numbers = log_2K[0] >= log_2K[1]
    if not is_low_K.any():
        return np.zeros(len(loss_K), bool)
    likelihood_K = np.where(is_low_K, np.logaddexp(*log_2K), -np.inf)
    # Losses equally far from the mean are equally likely, but for rounding; the least of them is the limit.
    limit = loss_K[likelihood_K >= likelihood_K.max() - 1e-3].min()
    return np.asarray(is_low_K & (loss_K <= limit))


def log_density(loss_K: Numbers, mean_2: Numbers, weight_2: Numbers, variance_2: Numbers) -> Numbers:
    """Return the ``[2, K]`` logarithms of the weighted densities."""
    square_2K = np.square(loss_K - mean_2[:, None]) / variance_2[:, None]
    return np.asarray(np.log(weight_2)[:, None] - 0.5 * (np.log(2 * np.pi * variance_2)[:, None] + square_2K))


@image_by_image
def plain_hungarian(predictions: Predictions, image: int, boxes_G4: Tensor, labels_G: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one matching of least cost among all priors; a square image."""
    priors = predictions.priors
    side = max(grid.width * grid.stride for grid in priors.grids)
    boxes_P4 = predictions.boxes_BP4[image]
    own_GP = scores(predictions, image, torch.arange(priors.num_priors))[:, labels_G].T
    distance_GP = (xyxy_to_cxcywh(boxes_G4)[:, None] - xyxy_to_cxcywh(boxes_P4)).abs().sum(dim=2) / side
    cost_GP = 5 * distance_GP - own_GP - 2 * overlap(boxes_G4[:, None], boxes_P4, "giou")
    row_M, prior_M = linear_sum_assignment(cost_GP.double().numpy())
    return torch.from_numpy(prior_M), torch.from_numpy(row_M)


PLAIN: dict[str, Plain] = {
    "anchor-ratio": plain_anchor_ratio,
    "atss": plain_atss,
    "fcos": plain_fcos,
    "hungarian": plain_hungarian,
    "max-iou": plain_max_iou,
    "paa": plain_paa,
    "simota": plain_simota,
    "task-aligned": plain_task_aligned,
    "yolov7": plain_yolov7,
}
