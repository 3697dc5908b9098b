"""Two plain losses: cross-entropy of the classes of all priors, and GIoU of the boxes that are matched.

Shape letters: B images, P priors, C classes, M matches.

Reference: Rezatofighi et al., Generalized intersection over union (2019), algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloom import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.iou import overlap
from detloom.ops.losses import binary_cross_entropy, of_no_ignored
from detloom.ops.reduce import mean_over_processes
from detloom.structures import Assignment, HeadTraits, Predictions, Targets

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(Criterion):
    """Sums over the batch, divided by the number of matches, and at least by 1.

    A matched prior learns the quality of its match for the class of its target, other priors learn 0.

    Args:
        box: Gain of ``1 - GIoU``.
        classes: Gain of the classes.
    """

    def __init__(self, *, box: float = 2.0, classes: float = 1.0) -> None:
        self.box = box
        self.classes = classes

    def objection(self, head: HeadTraits) -> str | None:
        """Ask for a head that predicts nothing which no loss here would teach."""
        if head.objectness:
            return "it teaches no objectness; choose a head without one"
        return "it teaches no distributions; choose a head without them" if head.distribution_bins else None

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Return ``box`` and ``class``."""
        image_M, prior_M, target_M = assignment.image_M, assignment.prior_M, assignment.target_M
        # Half precision is too coarse for sums over all priors.
        with torch.autocast(predictions.boxes_BP4.device.type, enabled=False):
            logits_BPC = predictions.class_logits_BPC.float()
            _, num_priors, num_classes = logits_BPC.shape
            place_M = (image_M * num_priors + prior_M) * num_classes + targets.labels_T[target_M]
            learned_BPC = torch.zeros_like(logits_BPC).flatten()
            learned_BPC = learned_BPC.scatter_reduce(0, place_M, assignment.quality_M, "amax").view_as(logits_BPC)
            class_BP = binary_cross_entropy(logits_BPC, learned_BPC).sum(dim=-1)
            giou_M = overlap(predictions.boxes_BP4[image_M, prior_M].float(), targets.boxes_T4[target_M], "giou")
            count = mean_over_processes(logits_BPC.new_full((), assignment.num_matches)).clamp(min=1)
            return {
                "box": self.box * (1 - giou_M).sum() / count,
                "class": self.classes * of_no_ignored(class_BP, assignment).sum() / count,
            }


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the criterion under the name that recipes use."""
    register("new-component", NewComponent)
