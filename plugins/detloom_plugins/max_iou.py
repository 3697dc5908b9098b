"""Assignment by overlap: a prior learns the target that it overlaps most, if by enough.

Shape letters: B images, P priors, T targets, R priors of a cell of each level, s windows of a block,
N cells of a window, M matches.

References: Lin et al., RetinaNet (2017), section 4, "Anchors"; Ren et al., Faster R-CNN (2015), section 3.1.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.ops.ranking import LAST_KEY, ordered_key, position_of, smallest
from detloom.structures import Assignment, Predictions, Targets
from detloom_plugins.overlap_windows import nearest_of_each_size, overlapping_pairs

__all__ = ["MaxIouAssigner", "register_components"]


class MaxIouAssigner(Assigner):
    """A prior learns the target of largest IoU from one limit up, and nothing between that and a lower one.

    Points are compared by their nominal size. A prior has one target at most, the first of those that
    it overlaps equally. The predictions play no part, but for the quality. The device is waited for
    twice in a batch: for the numbers of priors near the targets, and for the number of matches.

    Args:
        positive: A prior with at least this IoU is positive.
        negative: A prior that is not positive, but has at least this IoU with a target, is ignored.
        keep_best: Give each target the prior that it overlaps most, however little, and even where
            another target overlaps that prior more. Of equal priors this is the one whose cell is nearest to the
            target's centre, then the first; a prior that is the best of several targets goes to the one it
            overlaps most, and the others have none for this reason. RetinaNet does without, Faster R-CNN has it.
        soft_labels: Set the quality to the IoU of the predicted box and the target, not to 1.
    """

    def __init__(
        self,
        *,
        positive: float = 0.5,
        negative: float = 0.4,
        keep_best: bool = True,
        soft_labels: bool = False,
    ) -> None:
        if not 0 < positive <= 1:
            raise RecipeError(f"positive must lie in (0, 1], got {positive}; published is 0.5")
        if not 0 < negative <= positive:
            raise RecipeError(
                f"negative must lie above 0 and not above positive ({positive}), got {negative}; published is 0.4"
            )
        self.positive = positive
        self.negative = negative
        self.keep_best = keep_best
        self.soft_labels = soft_labels

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, image after image."""
        boxes_T4 = targets.boxes_T4
        with torch.autocast(boxes_T4.device.type, enabled=False):
            best_key_BP = self._best_targets(predictions, targets)
            is_near_BP = best_key_BP != LAST_KEY
            # A key sorts by the IoU first, so that this is a limit on the IoU.
            limit = ordered_key(
                boxes_T4.new_full((), -self.positive), targets.image_T.new_full((), targets.num_targets)
            )
            is_positive_BP = best_key_BP <= limit
            target_BP = position_of(best_key_BP)
            if self.keep_best:
                claimed_key_BP = self._claims(predictions, targets)
                is_claimed_BP = claimed_key_BP != LAST_KEY
                target_BP = torch.where(is_claimed_BP, position_of(claimed_key_BP), target_BP)
                is_positive_BP |= is_claimed_BP

            image_M, prior_M = is_positive_BP.nonzero(as_tuple=True)
            target_M = target_BP[image_M, prior_M]
            quality_M = torch.ones_like(target_M, dtype=torch.float32)
            if self.soft_labels:
                quality_M = overlap(predictions.boxes_BP4[image_M, prior_M].float(), boxes_T4[target_M]).clamp(0, 1)
        ignored_BP = is_near_BP & ~is_positive_BP if self.negative < self.positive else None
        return Assignment(image_M, prior_M, target_M, quality_M, ignored_BP)

    def relaxed(self) -> Assigner | None:
        """Return the same with ``positive`` lowered to ``negative``: what was ignored is positive."""
        if self.negative == self.positive:
            return None
        return MaxIouAssigner(
            positive=self.negative, negative=self.negative, keep_best=self.keep_best, soft_labels=self.soft_labels
        )

    def _best_targets(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return ``[B, P]`` keys of the target each prior overlaps most, of those by ``negative`` or more."""
        num_priors = predictions.priors.num_priors
        key = targets.image_T.new_full((predictions.num_images * num_priors,), LAST_KEY)
        for pairs in overlapping_pairs(predictions.priors, targets.boxes_T4, self.negative):
            place_sN = targets.image_T[pairs.target_s, None] * num_priors + pairs.prior_sN
            key_sN = ordered_key(-pairs.overlap_sN, pairs.target_s[:, None]).where(pairs.is_pair_sN, LAST_KEY)
            key.scatter_reduce_(0, place_sN.flatten(), key_sN.flatten(), "amin")
        return key.view(predictions.num_images, num_priors)

    def _claims(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return ``[B, P]`` keys of the target that each prior is the best of."""
        num_priors = predictions.priors.num_priors
        key = targets.image_T.new_full((predictions.num_images * num_priors,), LAST_KEY)
        prior_TR, overlap_TR = nearest_of_each_size(predictions.priors, targets.boxes_T4)
        best_T1 = smallest(-overlap_TR, 1)
        target_T = torch.arange(targets.num_targets, device=key.device)
        key_T = ordered_key(-overlap_TR.gather(1, best_T1)[:, 0], target_T)
        place_T = targets.image_T * num_priors + prior_TR.gather(1, best_T1)[:, 0]
        return key.scatter_reduce(0, place_T, key_T, "amin").view(predictions.num_images, num_priors)


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer assignment by overlap."""
    register("max-iou", MaxIouAssigner)
