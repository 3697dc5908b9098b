"""The losses of YOLOX: squared IoU, objectness of all priors, classes that follow the IoU.

Shape letters: B images, P priors, C classes, M matches.

Reference: YOLOX (2021), section 2, and its published training.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.boxes import xyxy_to_cxcywh
from detloom.ops.iou import overlap
from detloom.ops.losses import binary_cross_entropy, of_no_ignored, one_hot
from detloom.ops.reduce import mean_over_processes
from detloom.structures import Assignment, HeadTraits, Predictions, Targets
from detloom_plugins.criterion_settings import check_weights
from detloom_plugins.objectness import objection_without_objectness

__all__ = ["YoloxCriterion", "register_components"]

# Sizes below a thousandth of a cell are too small for the logarithm to mean anything.
SMALLEST_CELLS = 1e-3


class YoloxCriterion(Criterion):
    """Sums over the batch, divided by the number of matches, and at least by 1.

    A matched prior learns an objectness of 1, and for its class the IoU of its predicted box, at most
    the quality of the match. Ignored priors learn no objectness.

    Args:
        box: Gain of ``1 - IoU^2``.
        objectness: Gain of the objectness.
        classes: Gain of the classes.
        l1: Gain of the distances of centres, in cells, and of sizes, in logarithms; published training
            sets it to 1 for its last 15 epochs.
    """

    def __init__(self, *, box: float = 5.0, objectness: float = 1.0, classes: float = 1.0, l1: float = 0.0) -> None:
        check_weights({"box": box, "objectness": objectness, "classes": classes, "l1": l1})
        self.box = box
        self.objectness = objectness
        self.classes = classes
        self.l1 = l1

    def objection(self, head: HeadTraits) -> str | None:
        """Ask for an objectness."""
        return objection_without_objectness(head)

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Return ``box``, ``objectness`` and ``class``, and ``l1`` where it has a gain."""
        with torch.autocast(predictions.boxes_BP4.device.type, enabled=False):
            return self._losses(predictions, assignment, targets)

    def _losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        if predictions.objectness_BP is None:
            raise RecipeError("criterion 'yolox' learns an objectness, which this head does not predict")
        image_M, prior_M, target_M = assignment.image_M, assignment.prior_M, assignment.target_M
        logits_BP = predictions.objectness_BP.float()
        boxes_M4 = predictions.boxes_BP4[image_M, prior_M].float()
        target_boxes_M4 = targets.boxes_T4[target_M]
        iou_M = overlap(boxes_M4, target_boxes_M4)
        learned_M = torch.minimum(iou_M.detach(), assignment.quality_M)
        class_logits_MC = predictions.class_logits_BPC[image_M, prior_M].float()
        class_MC = one_hot(targets.labels_T[target_M], predictions.num_classes, positive=learned_M)

        place_M = image_M * logits_BP.shape[1] + prior_M
        # Equal numbers are written to a prior with several matches, so that their order means nothing.
        is_matched_BP = torch.zeros_like(logits_BP).view(-1).scatter(0, place_M, 1.0).view_as(logits_BP)
        objectness_BP = of_no_ignored(binary_cross_entropy(logits_BP, is_matched_BP), assignment)
        count = mean_over_processes(logits_BP.new_full((), assignment.num_matches)).clamp(min=1)
        losses = {
            "box": self.box * (1 - iou_M.square()).sum() / count,
            "objectness": self.objectness * objectness_BP.sum() / count,
            "class": self.classes * binary_cross_entropy(class_logits_MC, class_MC).sum() / count,
        }
        if self.l1:
            strides_M = predictions.priors.strides_P[prior_M]
            losses["l1"] = self.l1 * _distance(boxes_M4, target_boxes_M4, strides_M).sum() / count
        return losses


def _distance(boxes_M4: Tensor, target_boxes_M4: Tensor, strides_M: Tensor) -> Tensor:
    """Return the L1 distances in the coordinates of a head that predicts centres and logarithms of sizes."""
    scale_M1 = strides_M[:, None]
    boxes_cxcywh_M4 = xyxy_to_cxcywh(boxes_M4) / scale_M1
    target_cxcywh_M4 = xyxy_to_cxcywh(target_boxes_M4) / scale_M1
    center_M2 = (boxes_cxcywh_M4[:, :2] - target_cxcywh_M4[:, :2]).abs()
    size_M2 = boxes_cxcywh_M4[:, 2:].clamp(min=SMALLEST_CELLS).log()
    target_size_M2 = target_cxcywh_M4[:, 2:].clamp(min=SMALLEST_CELLS).log()
    return center_M2.sum(dim=1) + (size_M2 - target_size_M2).abs().sum(dim=1)


@hookimpl
def register_components(register: Callable[[str, type[Criterion]], None]) -> None:
    """Offer the criterion of YOLOX."""
    register("yolox", YoloxCriterion)
