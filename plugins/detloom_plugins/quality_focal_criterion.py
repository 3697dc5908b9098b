"""Quality focal loss: classes learn the quality of their boxes, and count by how far they are from it.

Shape letters: X any shape, M matches.

Reference: Li et al., Generalized focal loss (2020), section 3.1, equation 2, and section 3.3.
"""

from collections.abc import Callable

from torch import Tensor

from detloom.hookspecs import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.iou import OverlapKind
from detloom.ops.losses import binary_cross_entropy, focal_of_absence
from detloom_plugins.criterion_settings import check_sharpness
from detloom_plugins.graded_losses import GradedCriterion, Labels

__all__ = ["QualityFocalCriterion", "register_components"]


class QualityFocalCriterion(GradedCriterion):
    """Cross-entropy with the label, weighed by the distance from it to a power.

    Divided by the sum of the qualities of all matches, at least by 1: by the number of matches where an assigner
    has hard labels, as Li et al. (2020), and by the sum of the alignments where it grades its matches, as
    Feng et al., TOOD (2021). Ignored priors learn no class.

    Args:
        box: Gain of ``1 - overlap``, weighed by the label.
        classes: Gain of the classes.
        distribution: Gain of the distribution focal loss, for heads that have distributions, weighed by the label.
        overlap: Measure of overlap of the boxes: iou, giou, diou, ciou or siou.
        labels: What the class of a matched prior learns. quality: that of the match. overlap: the IoU of the
            predicted box, at most the quality. either: the quality where it is below 1, as with an assigner that
            grades its matches, else the IoU.
        beta: How much cases near their label are neglected; 0, or at least 1.
    """

    def __init__(
        self,
        *,
        box: float = 2.0,
        classes: float = 1.0,
        distribution: float = 0.25,
        overlap: OverlapKind = "giou",
        labels: Labels = "either",
        beta: float = 2.0,
    ) -> None:
        super().__init__(labels=labels, overlap=overlap, classes=classes, box=box, distribution=distribution)
        check_sharpness("beta", beta, 2.0)
        self.beta = beta

    def absent(self, logits_X: Tensor) -> Tensor:
        """Return the cost of each logit, of any shape, where nothing is to be found."""
        return focal_of_absence(logits_X, self.beta)

    def present(self, logits_M: Tensor, label_M: Tensor) -> Tensor:
        """Return the cost of each logit with its label."""
        loss_M = binary_cross_entropy(logits_M, label_M)
        return loss_M if self.beta == 0 else (label_M - logits_M.sigmoid()).abs().pow(self.beta) * loss_M


@hookimpl
def register_components(register: Callable[[str, type[Criterion]], None]) -> None:
    """Offer the criterion."""
    register("quality-focal", QualityFocalCriterion)
