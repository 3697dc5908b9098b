"""Focal loss: classes of all priors, of which the easy ones are neglected.

Shape letters: X any shape, M matches.

Reference: Lin et al., Focal loss (2017), section 3, equation 5.
"""

from collections.abc import Callable

from torch import Tensor

from detloom.hookspecs import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.iou import OverlapKind
from detloom.ops.losses import binary_cross_entropy, focal_of_absence
from detloom_plugins.criterion_settings import check_share, check_sharpness
from detloom_plugins.graded_losses import GradedCriterion, Labels

__all__ = ["FocalCriterion", "register_components"]


class FocalCriterion(GradedCriterion):
    """Cross-entropy weighed by ``alpha (1 - p)^gamma`` where a class is present, ``(1 - alpha) p^gamma`` elsewhere.

    A label between 0 and 1 mixes the factors of both. Divided by the sum of the qualities of all matches, at least
    by 1: by the number of matches where an assigner has hard labels, as published. The paper's smooth L1 of boxes
    gives way to their overlap. Ignored priors learn no class.

    Args:
        box: Gain of ``1 - overlap``, weighed by the label.
        classes: Gain of the classes.
        distribution: Gain of the distribution focal loss, for heads that have distributions, weighed by the label.
        overlap: Measure of overlap of the boxes: iou, giou, diou, ciou or siou.
        labels: What the class of a matched prior learns. quality: that of the match, 1 with hard labels, as
            published. overlap: the IoU of the predicted box, at most the quality. either: the quality where it is
            below 1, as with an assigner that grades its matches, else the IoU.
        alpha: Weight of what is present; what is absent weighs ``1 - alpha``.
        gamma: How much easy cases are neglected; 0, or at least 1.
    """

    def __init__(
        self,
        *,
        box: float = 2.0,
        classes: float = 1.0,
        distribution: float = 0.25,
        overlap: OverlapKind = "giou",
        labels: Labels = "quality",
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(labels=labels, overlap=overlap, classes=classes, box=box, distribution=distribution)
        check_share("alpha", alpha, 0.25)
        check_sharpness("gamma", gamma, 2.0)
        self.alpha = alpha
        self.gamma = gamma

    def absent(self, logits_X: Tensor) -> Tensor:
        """Return the cost of each logit, of any shape, where nothing is to be found."""
        return (1 - self.alpha) * focal_of_absence(logits_X, self.gamma)

    def present(self, logits_M: Tensor, label_M: Tensor) -> Tensor:
        """Return the cost of each logit with its label."""
        probability_M = logits_M.sigmoid()
        loss_M = binary_cross_entropy(logits_M, label_M) * (label_M * self.alpha + (1 - label_M) * (1 - self.alpha))
        miss_M = label_M * (1 - probability_M) + (1 - label_M) * probability_M
        return loss_M if self.gamma == 0 else loss_M * miss_M.pow(self.gamma)


@hookimpl
def register_components(register: Callable[[str, type[Criterion]], None]) -> None:
    """Offer the criterion."""
    register("focal", FocalCriterion)
