"""What criteria share: cross-entropy of independent classes, soft and focal, and of distributions of distances.

Shape letters: X any shape, B images, P priors, M matches or other rows, C classes, R bins.

References:
    Focal loss: Lin et al. (2017), equations 4-5. Label smoothing: Szegedy et al. (2016), section 7.
    Distribution focal loss: Li et al. (2020), Generalized focal loss, section 3.2.
"""

import torch
from torch import Tensor
from torch.nn import functional

from detloom.structures import Assignment

__all__ = [
    "binary_cross_entropy",
    "distribution_focal",
    "focal_of_absence",
    "of_no_ignored",
    "one_hot",
    "smoothed_labels",
]


def smoothed_labels(smoothing: float) -> tuple[float, float]:
    """Return what a true class and a false class should learn: ``1 - s/2`` and ``s/2``."""
    return 1 - smoothing / 2, smoothing / 2


def one_hot(labels_M: Tensor, num_classes: int, *, positive: Tensor | float = 1.0, negative: float = 0.0) -> Tensor:
    """Return ``[M, C]`` float32 rows with ``positive`` (a number, or one a row) at the label."""
    classes_C = torch.arange(num_classes, device=labels_M.device)
    is_label_MC = labels_M[:, None] == classes_C
    value_M1 = positive[:, None] if isinstance(positive, Tensor) else positive
    return torch.where(is_label_MC, value_M1, negative).float()


def of_no_ignored(loss_BP: Tensor, assignment: Assignment) -> Tensor:
    """Return losses of all priors with nothing where a prior is ignored and has no match."""
    if assignment.ignored_BP is None:
        return loss_BP
    place_M = assignment.image_M * loss_BP.shape[1] + assignment.prior_M
    # Equal values are written, so that their order means nothing.
    ignored_BP = assignment.ignored_BP.flatten().scatter(0, place_M, 0).view_as(loss_BP)
    return loss_BP.masked_fill(ignored_BP, 0.0)


def binary_cross_entropy(
    logits_X: Tensor,
    targets_X: Tensor,
    *,
    positive_weight: float = 1.0,
    focal_gamma: float = 0.0,
    focal_alpha: float = 0.25,
) -> Tensor:
    """Return the cross-entropy of each logit with its target in [0, 1], not summed.

    Args:
        logits_X: Before the sigmoid.
        targets_X: Probabilities to learn.
        positive_weight: Factor on the positive part.
        focal_gamma: How much easy cases are neglected; 0 leaves the focal factors out altogether.
        focal_alpha: Weight of positives under a focal gamma; negatives weigh ``1 - focal_alpha``.
    """
    weight = None if positive_weight == 1 else logits_X.new_full((), positive_weight)
    loss_X = functional.binary_cross_entropy_with_logits(logits_X, targets_X, pos_weight=weight, reduction="none")
    if focal_gamma == 0:
        return loss_X
    probability_X = logits_X.sigmoid()
    # 1 - p_t, written so that it does not cancel for confident logits.
    miss_X = targets_X * (1 - probability_X) + (1 - targets_X) * probability_X
    balance_X = targets_X * focal_alpha + (1 - targets_X) * (1 - focal_alpha)
    return loss_X * balance_X * miss_X.pow(focal_gamma)


def focal_of_absence(logits_X: Tensor, gamma: float) -> Tensor:
    """Return what each logit costs where nothing is to be found: ``-p^gamma log(1 - p)``.

    Args:
        logits_X: Before the sigmoid.
        gamma: How much easy cases are neglected: 0, or at least 1, as gradients are infinite at 0 in between.
    """
    loss_X = functional.softplus(logits_X)
    return loss_X if gamma == 0 else logits_X.sigmoid().pow(gamma) * loss_X


def distribution_focal(logits_M4R: Tensor, distances_M4: Tensor) -> Tensor:
    """Return the ``[M, 4]`` cross-entropies of distributions with the two bins beside each distance.

    The nearer bin counts as much more as it is nearer.

    Args:
        logits_M4R: Of the distances 0, 1, ..., ``R - 1``.
        distances_M4: To learn; what lies outside of the bins is learned as the first or last of them.
    """
    last = logits_M4R.shape[-1] - 1
    distances_M4 = distances_M4.clamp(0, last)
    # The last bin is the one after the last but one. A NaN has no bin, and its weights are NaN.
    lower_M4 = distances_M4.nan_to_num().floor().clamp(max=last - 1)
    upper_weight_M4 = distances_M4 - lower_M4
    bins_M42 = torch.stack((lower_M4, lower_M4 + 1), dim=-1).long()
    lower_M4, upper_M4 = logits_M4R.log_softmax(dim=-1).gather(-1, bins_M42).unbind(-1)
    return -(1 - upper_weight_M4) * lower_M4 - upper_weight_M4 * upper_M4
