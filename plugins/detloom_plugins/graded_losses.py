"""What criteria without objectness share: classes that learn how good a match is, and boxes that weigh as much.

Shape letters: B images, P priors, C classes, M matches, X any shape.

References: Lin et al., Focal loss (2017); Li et al., Generalized focal loss (2020), section 3; Zhang et al.,
VarifocalNet (2021), section 3; Feng et al., TOOD (2021), section 3.2, and Li et al., YOLOv6 (2022), section 2.3, for
labels that an assigner grades.
"""

from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.interfaces import Criterion
from detloom.ops.iou import OverlapKind, overlap
from detloom.ops.losses import distribution_focal, of_no_ignored
from detloom.ops.reduce import mean_over_processes
from detloom.structures import Assignment, HeadTraits, Predictions, Targets
from detloom_plugins.criterion_settings import check_weights
from detloom_plugins.objectness import objection_to_objectness

__all__ = [
    "GradedCriterion",
    "Labels",
    "learned_labels",
]

Labels = Literal["either", "overlap", "quality"]
"""What the class of a matched prior learns.

``quality``: the quality of the match, as the assigner says. ``overlap``: the IoU of the predicted box, at most the
quality. ``either``: the quality where the assigner grades its matches; where it does not, so that the quality is 1, the
IoU of the predicted box.
"""


class GradedCriterion(Criterion):
    """The losses of classes, boxes and distributions of boxes, each divided by the sum of the matches' qualities.

    That sum, at least 1 and a mean over processes, is the number of matches where labels are hard, by which Li et
    al. (2020) and Zhang et al. (2021) divide, and the sum of the alignments where an assigner grades its matches, by
    which Feng et al. (2021) and Li et al. (2022) divide. Boxes and distributions are weighed by what the classes learn.

    A kind of it says what classes cost, by ``absent`` and ``present``.

    Args:
        labels: What the class of a matched prior learns.
        overlap: Measure of overlap of the boxes.
        classes: Gain of the classes.
        box: Gain of ``1 - overlap``.
        distribution: Gain of the distributions, as means over the four sides.
    """

    def __init__(
        self, *, labels: Labels, overlap: OverlapKind, classes: float, box: float, distribution: float
    ) -> None:
        if overlap not in get_args(OverlapKind):
            raise RecipeError(f"overlap must be one of {', '.join(get_args(OverlapKind))}, got {overlap!r}")
        check_weights({"classes": classes, "box": box, "distribution": distribution})
        if labels not in get_args(Labels):
            raise RecipeError(f"labels must be one of {', '.join(get_args(Labels))}, got {labels!r}")
        self.labels: Labels = labels
        self.overlap: OverlapKind = overlap
        self.classes = classes
        self.box = box
        self.distribution = distribution

    @abstractmethod
    def absent(self, logits_X: Tensor) -> Tensor:
        """Return the cost of each logit, of any shape, where nothing is to be found."""

    @abstractmethod
    def present(self, logits_M: Tensor, label_M: Tensor) -> Tensor:
        """Return the cost of each logit with its label, in [0, 1]."""

    def objection(self, head: HeadTraits) -> str | None:
        """Ask for a head without objectness."""
        return objection_to_objectness(head)

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Return ``box`` and ``class``, and ``distribution`` where it is predicted; in float32."""
        with torch.autocast(predictions.boxes_BP4.device.type, enabled=False):
            return self._losses(predictions, assignment, targets)

    def _losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        image_M, prior_M, target_M = assignment.image_M, assignment.prior_M, assignment.target_M
        boxes_M4 = predictions.boxes_BP4[image_M, prior_M].float()
        target_boxes_M4 = targets.boxes_T4[target_M]
        iou_M = overlap(boxes_M4.detach(), target_boxes_M4)
        label_M = learned_labels(self.labels, iou_M, assignment.quality_M)
        count = mean_over_processes(assignment.quality_M.sum()).clamp(min=1)
        overlap_M = overlap(boxes_M4, target_boxes_M4, self.overlap)
        class_sum = self._class_sum(predictions, assignment, targets.labels_T[target_M], label_M)
        losses = {
            "box": self.box * (label_M * (1 - overlap_M)).sum() / count,
            "class": self.classes * class_sum / count,
        }
        if predictions.distribution_BP4R is not None:
            logits_M4R = predictions.distribution_BP4R[image_M, prior_M].float()
            center_M2 = predictions.priors.centers_P2[prior_M]
            distances_M4 = torch.cat((center_M2 - target_boxes_M4[:, :2], target_boxes_M4[:, 2:] - center_M2), dim=1)
            distances_M4 = distances_M4 / predictions.priors.strides_P[prior_M, None]
            of_sides_M4 = distribution_focal(logits_M4R, distances_M4)
            losses["distribution"] = self.distribution * (label_M * of_sides_M4.mean(dim=1)).sum() / count
        return losses

    def _class_sum(self, predictions: Predictions, assignment: Assignment, class_M: Tensor, label_M: Tensor) -> Tensor:
        """Return the cost of all classes of all priors; those of no match are absent.

        Nothing but the absence is computed for all: what is present is put in its place, match by match.
        """
        logits_BPC = predictions.class_logits_BPC.float()
        _, num_priors, num_classes = logits_BPC.shape
        absent_BP = of_no_ignored(self.absent(logits_BPC).sum(dim=-1), assignment)
        place_M = (assignment.image_M * num_priors + assignment.prior_M) * num_classes + class_M
        is_first_M, label_M = _largest_of_each(place_M, label_M)
        logits_M = logits_BPC[assignment.image_M, assignment.prior_M, class_M]
        difference_M = self.present(logits_M, label_M) - self.absent(logits_M)
        return absent_BP.sum() + torch.where(is_first_M, difference_M, 0.0).sum()


def learned_labels(labels: Labels, iou_M: Tensor, quality_M: Tensor) -> Tensor:
    """Return what the class of each matched prior learns; a NaN stays one."""
    match labels:
        case "quality":
            return quality_M
        case "overlap":
            return torch.minimum(iou_M, quality_M)
        case "either":
            return torch.where(quality_M == 1, iou_M, quality_M)


def _largest_of_each(place_M: Tensor, label_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether a row is the first of its place, and the largest label of the place; asks nothing of the device.

    A prior learns the better of two targets of one class.
    """
    place_M, order_M = place_M.sort(stable=True)
    is_first_M = torch.ones_like(place_M, dtype=torch.bool)
    is_first_M[1:] = place_M[1:] != place_M[:-1]
    run_M = is_first_M.cumsum(dim=0) - 1
    largest_M = torch.zeros_like(label_M).scatter_reduce(0, run_M, label_M[order_M], "amax")[run_M]
    return is_first_M.scatter(0, order_M, is_first_M), largest_M.scatter(0, order_M, largest_M)
