"""Varifocal loss: classes learn the quality of their boxes, and good examples count by it.

Shape letters: M matches.

Reference: Zhang et al., VarifocalNet (2021), section 3.2, equation 2.
"""

from collections.abc import Callable

from torch import Tensor

from detloom.hookspecs import hookimpl
from detloom.interfaces import Criterion
from detloom.ops.iou import OverlapKind
from detloom.ops.losses import binary_cross_entropy, focal_of_absence
from detloom_plugins.criterion_settings import check_share, check_sharpness
from detloom_plugins.graded_losses import GradedCriterion, Labels

__all__ = ["VarifocalCriterion", "register_components"]


class VarifocalCriterion(GradedCriterion):
    """Cross-entropy with the label, weighed by it; what is absent is weighed by ``alpha p^gamma``.

    Divided by the sum of the qualities of all matches, at least by 1: by the number of matches where an assigner
    has hard labels, as Zhang et al. (2021), and by the sum of the alignments where it grades its matches, as
    Feng et al., TOOD (2021). Ignored priors learn no class.

    Args:
        box: Gain of ``1 - overlap``, weighed by the label.
        classes: Gain of the classes.
        distribution: Gain of the distribution focal loss, for heads that have distributions, weighed by the label.
        overlap: Measure of overlap of the boxes: iou, giou, diou, ciou or siou.
        labels: What the class of a matched prior learns. quality: that of the match. overlap: the IoU of the
            predicted box, at most the quality. either: the quality where it is below 1, as with an assigner that
            grades its matches, else the IoU.
        alpha: Weight of what is absent.
        gamma: How much easy cases of what is absent are neglected; 0, or at least 1.
    """

    def __init__(
        self,
        *,
        box: float = 2.0,
        classes: float = 1.0,
        distribution: float = 0.25,
        overlap: OverlapKind = "giou",
        labels: Labels = "either",
        alpha: float = 0.75,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(labels=labels, overlap=overlap, classes=classes, box=box, distribution=distribution)
        check_share("alpha", alpha, 0.75)
        check_sharpness("gamma", gamma, 2.0)
        self.alpha = alpha
        self.gamma = gamma

    def absent(self, logits_X: Tensor) -> Tensor:
        """Return the cost of each logit, of any shape, where nothing is to be found."""
        return self.alpha * focal_of_absence(logits_X, self.gamma)

    def present(self, logits_M: Tensor, label_M: Tensor) -> Tensor:
        """Return the cost of each logit with its label."""
        # A match of no quality is none. A NaN is kept: it compares as unequal.
        return (label_M * binary_cross_entropy(logits_M, label_M)).where(label_M != 0, self.absent(logits_M))


@hookimpl
def register_components(register: Callable[[str, type[Criterion]], None]) -> None:
    """Offer the criterion."""
    register("varifocal", VarifocalCriterion)
