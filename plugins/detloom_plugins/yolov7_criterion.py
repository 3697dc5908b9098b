"""The losses of YOLOv7: overlap of boxes, objectness that follows it, independent classes.

Shape letters: B images, P priors, C classes, L levels, M matches.

References: YOLOv7 (2022), section 5.1, and the loss it takes over from Scaled-YOLOv4 (2021) and YOLOR
(2021); CIoU: Zheng et al. (2020).
"""

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.iou import OverlapKind, overlap
from detloom.ops.losses import binary_cross_entropy, of_no_ignored, one_hot, smoothed_labels
from detloom.ops.reduce import mean_over_processes
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom_plugins.criterion_settings import check_sharpness, check_weights
from detloom_plugins.objectness import objection_without_objectness

__all__ = ["Yolov7Criterion", "last_match_of_each_prior", "register_components"]

THREE_LEVELS = (4.0, 1.0, 0.4)
MORE_LEVELS = (4.0, 1.0, 0.25, 0.06, 0.02)

# The published gains are for three levels, 80 classes and images of this side.
NOMINAL_SIDE = 640
NOMINAL_CLASSES = 80
NOMINAL_LEVELS = 3


class Yolov7Criterion(Criterion):
    """Means over the matches of each level, and objectness over all priors of each level.

    A matched prior's objectness learns the overlap of its predicted box, at most the quality of the
    match. Where a prior has several matches, the last one says. With one class there is no class loss.
    Ignored priors add nothing to the objectness, and count as priors of their level.

    Args:
        box: Gain of ``1 - overlap``.
        objectness: Gain of the objectness.
        classes: Gain of the classes.
        scale: Factor on everything; published are sums over nominal batches of 64 of these means.
        scale_gains: Fit the gains to number of levels, number of classes and size of the images.
        balance: Weight of each level's objectness, finest first; None takes the published ones.
        overlap: Measure of overlap of the boxes: iou, giou, diou, ciou or siou.
        label_smoothing: Certainty taken from the classes, in [0, 1].
        class_positive_weight: Factor on the positive part of the class loss.
        objectness_positive_weight: Factor on the positive part of the objectness loss.
        focal_gamma: How much easy cases of objectness and classes are neglected: 0 for not at all, or at least 1.
        soft_objectness: How far the objectness follows the overlap, in [0, 1]; with 0 it learns the
            quality of the match.
    """

    def __init__(
        self,
        *,
        box: float = 0.05,
        objectness: float = 1.0,
        classes: float = 0.5,
        scale: float = 64.0,
        scale_gains: bool = True,
        balance: Sequence[float] | None = None,
        overlap: OverlapKind = "ciou",
        label_smoothing: float = 0.0,
        class_positive_weight: float = 1.0,
        objectness_positive_weight: float = 1.0,
        focal_gamma: float = 0.0,
        soft_objectness: float = 1.0,
    ) -> None:
        if overlap not in get_args(OverlapKind):
            raise RecipeError(f"overlap must be one of {', '.join(get_args(OverlapKind))}, got {overlap!r}")
        for name, value in (("label_smoothing", label_smoothing), ("soft_objectness", soft_objectness)):
            if not 0 <= value <= 1:
                raise RecipeError(f"{name} must lie in [0, 1], got {value}")
        check_weights(
            {
                "box": box,
                "objectness": objectness,
                "classes": classes,
                "scale": scale,
                "class_positive_weight": class_positive_weight,
                "objectness_positive_weight": objectness_positive_weight,
            }
        )
        if balance is not None and min(balance, default=0) < 0:
            raise RecipeError(f"balance must have no negative weight, got {list(balance)}")
        check_sharpness("focal_gamma", focal_gamma, 0.0)
        self.box = box
        self.objectness = objectness
        self.classes = classes
        self.scale = scale
        self.scale_gains = scale_gains
        self.balance = balance
        self.overlap = overlap
        self.label_smoothing = label_smoothing
        self.class_positive_weight = class_positive_weight
        self.objectness_positive_weight = objectness_positive_weight
        self.focal_gamma = focal_gamma
        self.soft_objectness = soft_objectness

    def objection(self, head: HeadTraits) -> str | None:
        """Ask for an objectness, and for a weight of each level."""
        if objection := objection_without_objectness(head):
            return objection
        if self.balance is None:
            if head.levels > len(MORE_LEVELS):
                return (
                    f"balance is published for {len(MORE_LEVELS)} levels at most, this head has {head.levels}: set it"
                )
        elif len(self.balance) != head.levels:
            return f"balance has {len(self.balance)} weights, this head has {head.levels} levels: give one for each"
        return None

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Return ``box``, ``objectness`` and ``class``."""
        with torch.autocast(predictions.boxes_BP4.device.type, enabled=False):
            return self._losses(predictions, assignment, targets)

    def _losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        priors = predictions.priors
        image_M, prior_M, target_M = assignment.image_M, assignment.prior_M, assignment.target_M
        boxes_M4 = predictions.boxes_BP4[image_M, prior_M].float()
        overlap_M = overlap(boxes_M4, targets.boxes_T4[target_M], self.overlap)
        weight_M, num_images = _weights(priors, prior_M, targets)

        class_logits_MC = predictions.class_logits_BPC[image_M, prior_M].float()
        class_M = self._class_losses(class_logits_MC, targets.labels_T[target_M])

        learned_M = (1 - self.soft_objectness) + self.soft_objectness * overlap_M.detach().clamp(min=0)
        learned_M = torch.minimum(learned_M, assignment.quality_M)
        gain_box, gain_objectness, gain_class = self._gains(
            predictions.num_classes, targets.image_size, priors.num_levels
        )
        objectness = self._objectness_loss(predictions, assignment, learned_M) / num_images
        return {
            "box": gain_box * (weight_M * (1 - overlap_M)).sum(),
            "objectness": gain_objectness * objectness,
            "class": gain_class * (weight_M * class_M).sum(),
        }

    def _gains(self, num_classes: int, image_size: tuple[int, int], levels: int) -> tuple[float, float, float]:
        """Return the gains of box, objectness and classes in force."""
        per_level = NOMINAL_LEVELS / levels if self.scale_gains else 1.0
        per_pixel = image_size[0] * image_size[1] / NOMINAL_SIDE**2 if self.scale_gains else 1.0
        per_class = num_classes / NOMINAL_CLASSES if self.scale_gains else 1.0
        factor = self.scale * per_level
        return self.box * factor, self.objectness * factor * per_pixel, self.classes * factor * per_class

    def _class_losses(self, class_logits_MC: Tensor, labels_M: Tensor) -> Tensor:
        """Return the mean over the classes of each match."""
        num_classes = class_logits_MC.shape[1]
        if num_classes == 1:
            # Objectness says it all; the logits stay in the graph, so that their parameters have a gradient.
            return 0 * class_logits_MC.sum(dim=1)
        positive, negative = smoothed_labels(self.label_smoothing)
        return binary_cross_entropy(
            class_logits_MC,
            one_hot(labels_M, num_classes, positive=positive, negative=negative),
            positive_weight=self.class_positive_weight,
            focal_gamma=self.focal_gamma,
        ).mean(dim=1)

    def _objectness_loss(self, predictions: Predictions, assignment: Assignment, learned_M: Tensor) -> Tensor:
        """Return the sum over images and levels of the weighted means over the priors of a level."""
        if predictions.objectness_BP is None:
            raise RecipeError("criterion 'yolov7' learns an objectness, which this head does not predict")
        priors = predictions.priors
        logits_BP = predictions.objectness_BP.float()
        is_last_M = last_match_of_each_prior(assignment, predictions.num_images, priors.num_priors)
        # One place too many, for the matches that do not say.
        place_M = torch.where(is_last_M, assignment.image_M * priors.num_priors + assignment.prior_M, logits_BP.numel())
        learned_BP = logits_BP.new_zeros(logits_BP.numel() + 1).scatter(0, place_M, learned_M)[:-1].view_as(logits_BP)
        loss_BP = binary_cross_entropy(
            logits_BP, learned_BP, positive_weight=self.objectness_positive_weight, focal_gamma=self.focal_gamma
        )
        loss_BP = of_no_ignored(loss_BP, assignment)
        balance = self._balance(priors.num_levels)
        sums = [balance[g.level] / g.num_priors * loss_BP[:, g.span].sum() for g in priors.grids]
        return torch.stack(sums).sum()

    def _balance(self, levels: int) -> Sequence[float]:
        if self.balance is not None:
            return self.balance
        return THREE_LEVELS if levels == len(THREE_LEVELS) else MORE_LEVELS[:levels]


def last_match_of_each_prior(assignment: Assignment, num_images: int, num_priors: int) -> Tensor:
    """Return for each match whether it is the last one of its prior: the same on every device."""
    place_M = assignment.image_M * num_priors + assignment.prior_M
    row_M = torch.arange(assignment.num_matches, device=place_M.device)
    last = row_M.new_full((num_images * num_priors,), -1).scatter_reduce(0, place_M, row_M, "amax")
    return last[place_M] == row_M


def _weights(priors: Priors, prior_M: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return one over the matches of each match's level, and the number of images, as means over processes."""
    level_M = priors.level_P[prior_M]
    levels_L = torch.arange(priors.num_levels, device=level_M.device)
    count_L = (level_M[:, None] == levels_L).sum(dim=0)
    counts = mean_over_processes(torch.cat((count_L, count_L.new_full((1,), targets.num_images))))
    # A level without any match, here or elsewhere, is asked for by no match.
    return 1 / counts[level_M], counts[-1]


@hookimpl
def register_components(register: Callable[[str, type[Criterion]], None]) -> None:
    """Offer the criterion of YOLOv7."""
    register("yolov7", Yolov7Criterion)
