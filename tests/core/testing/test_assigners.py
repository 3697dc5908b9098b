"""Assigners that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detloom.interfaces import Assigner
from detloom.structures import Assignment, HeadTraits, Predictions, Targets
from detloom.testing import assigners, check_component

Caught = Callable[[type[Any]], dict[str, str]]


class NearestAssigner(Assigner):
    """A target is learned by the nearest priors of each level, as surely as they predict its class."""

    def __init__(self, *, number: int = 2) -> None:
        self.number = number

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return self._assign(predictions, targets)

    def _assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        priors = predictions.priors
        center_T2 = (targets.boxes_T4[:, :2] + targets.boxes_T4[:, 2:]) / 2
        distance_TP = (priors.centers_P2 - center_T2[:, None]).norm(dim=-1)
        prior_TK = torch.cat(
            [
                grid.start + distance_TP[:, grid.span].argsort(dim=1, stable=True)[:, : self.number]
                for grid in priors.grids
            ],
            dim=1,
        )
        target_M = torch.arange(targets.num_targets)[:, None].expand_as(prior_TK).flatten()
        image_M, prior_M = targets.image_T[target_M], prior_TK.flatten()
        logit_M = predictions.class_logits_BPC[image_M, prior_M, targets.labels_T[target_M]]
        return self.spoiled(Assignment(image_M, prior_M, target_M, logit_M.sigmoid()), logit_M, targets)

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        """Return the matches as they are; the wrong assigners change them."""
        return found


def some(found: Assignment, keep_M: Tensor) -> Assignment:
    columns = (found.image_M, found.prior_M, found.target_M, found.quality_M)
    return Assignment(*(column[keep_M] for column in columns))


def nan_where(condition: object, found: Assignment) -> Assignment:
    return replace(found, quality_M=found.quality_M * torch.nan) if condition else found


class PositionalAssigner(NearestAssigner):
    """Takes its setting by position as well."""

    def __init__(self, number: int = 2) -> None:
        super().__init__(number=number)


class DividingAssigner(NearestAssigner):
    """Divides by its setting, whatever it is."""

    def __init__(self, *, number: int = 2) -> None:
        super().__init__(number=number)
        self.share = 1 / max(number, 0)


class MuteAssigner(NearestAssigner):
    """Refuses heads with anchors without a reason."""

    def objection(self, head: HeadTraits) -> str | None:
        return "" if head.anchors else None


class NarrowAssigner(NearestAssigner):
    """Gives priors of the lead as int32 where there are nine objects with sides that are no whole pixels."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        found = super().assign(predictions, targets)
        # Drawn objects have whole sides, and Hypothesis likes the numbers that tests hold, nine among them.
        is_fixed = targets.num_targets == 9 and bool((targets.boxes_T4 % 1 > 0).any())
        return replace(found, prior_M=found.prior_M.int()) if is_fixed else found

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:
        return super().assign(auxiliary, targets)


class IdleAssigner(NearestAssigner):
    """Matches nothing."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return some(found, torch.zeros(0, dtype=torch.int64))


class EagerAssigner(NearestAssigner):
    """Matches a first object where there is none."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        zero = torch.zeros(1, dtype=torch.int64)
        return found if targets.num_targets else Assignment(zero, zero, zero, torch.ones(1))


class PaddingAssigner(NearestAssigner):
    """Gives the matches of all images to the first where some image is empty."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        count_B = targets.image_T.bincount(minlength=targets.num_images)
        if targets.num_targets and (count_B == 0).any():
            return replace(found, image_M=torch.zeros_like(found.image_M))
        return found


class SmallAssigner(NearestAssigner):
    """Has room for 200 objects in an image."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        if targets.most_per_image > 200:
            raise IndexError("index 200 is out of bounds for dimension 1 with size 200")
        return found


class DistinctAssigner(NearestAssigner):
    """Has qualities of NaN where two boxes of an image are the same."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        placed_T5 = torch.cat((targets.image_T[:, None], targets.boxes_T4), dim=1)
        return nan_where(len(torch.unique(placed_T5, dim=0)) < targets.num_targets, found)


class EdgelessAssigner(NearestAssigner):
    """Looks left of the image where an object touches its left border."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        x1_T, width_T = targets.boxes_T4[:, 0], targets.boxes_T4[:, 2] - targets.boxes_T4[:, 0]
        at_border = ((x1_T == 0) & (width_T < 128)).any()
        return replace(found, prior_M=found.prior_M - 1000) if at_border else found


class IndoorAssigner(NearestAssigner):
    """Has qualities of NaN for objects as wide as the image."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return nan_where((targets.boxes_T4[:, 2] - targets.boxes_T4[:, 0] >= 128).any(), found)


class ThickAssigner(NearestAssigner):
    """Has qualities of NaN for objects one pixel wide or high."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return nan_where(((targets.boxes_T4[:, 2:] - targets.boxes_T4[:, :2]) <= 1).any(), found)


class VariedAssigner(NearestAssigner):
    """Has qualities of NaN where more than ten objects are of one class."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return nan_where(targets.num_targets > 10 and len(set(targets.labels_T.tolist())) == 1, found)


class FirstAssigner(NearestAssigner):
    """Serves the first object of each image alone."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        is_first_T = torch.ones(targets.num_targets, dtype=torch.bool)
        is_first_T[1:] = targets.image_T[1:] != targets.image_T[:-1]
        return some(found, is_first_T[found.target_M].nonzero().flatten())


class RelativeAssigner(NearestAssigner):
    """Divides qualities by the largest of the batch."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        if found.num_matches == 0:
            return found
        # Those of sure predictions may all be 0.
        return replace(found, quality_M=found.quality_M / found.quality_M.max().clamp(min=1e-30))


class RememberingAssigner(NearestAssigner):
    """Halves qualities once it has seen an object at the border."""

    seen_border = False

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        if self.seen_border:
            return replace(found, quality_M=found.quality_M / 2)
        self.seen_border = bool((targets.boxes_T4[:, 0] == 0).any())
        return found


class RoundingAssigner(NearestAssigner):
    """Rounds the boxes that it is given in place."""

    def _assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        targets.boxes_T4.round_()
        return super()._assign(predictions, targets)


class LearningAssigner(NearestAssigner):
    """Lets gradients through its qualities."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return self._assign(predictions, targets)


class UnboundedAssigner(NearestAssigner):
    """Takes logits for qualities, which are probabilities while predictions are unsure."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return replace(found, quality_M=0.5 + logit_M / 20)


class SilentAssigner(NearestAssigner):
    """Drops matches whose prediction is NaN."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return some(found, (logit_M > -10).nonzero().flatten())


class RoughAssigner(NearestAssigner):
    """Multiplies qualities as matrices, which autocast does in half precision."""

    def spoiled(self, found: Assignment, logit_M: Tensor, targets: Targets) -> Assignment:
        return replace(found, quality_M=(found.quality_M[:, None] @ torch.ones(1, 1)).float().flatten())


class WholeAssigner(NearestAssigner):
    """Gives auxiliary outputs the matches of the lead, on levels that they do not have."""

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:
        return self.assign(lead, targets)


class StricterAssigner(NearestAssigner):
    """Has a relaxed form with fewer matches."""

    def relaxed(self) -> Assigner | None:
        return NearestAssigner(number=self.number - 1)


class SeveralAssigner(NearestAssigner):
    """Says that it is one-to-one, and gives a target several priors."""

    one_to_one = True


# For each check a component that is wrong in one way, and a part of what its author is told.
WRONG: dict[str, tuple[type[Assigner], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalAssigner, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingAssigner, "number=-1 raises ZeroDivisionError"),
    "objection_is_a_reason_or_none": (MuteAssigner, "else the reason as text"),
    "matches_are_a_valid_assignment": (NarrowAssigner, "prior_M of shape"),
    "ordinary_objects_are_learned": (IdleAssigner, "nothing would be learned"),
    "batch_without_objects_has_no_matches": (EagerAssigner, "there are 0 targets"),
    "image_without_objects_has_no_matches": (PaddingAssigner, "another image than image_M says"),
    "hundreds_of_objects_in_an_image_are_served": (SmallAssigner, "raised IndexError: index 200"),
    "equal_objects_are_served": (DistinctAssigner, "qualities [nan"),
    "objects_at_the_border_are_served": (EdgelessAssigner, "prior_M from -"),
    "objects_larger_than_the_image_are_served": (IndoorAssigner, "qualities [nan"),
    "objects_one_pixel_wide_are_served": (ThickAssigner, "qualities [nan"),
    "objects_all_of_one_class_are_served": (VariedAssigner, "qualities [nan"),
    "order_of_objects_does_not_matter": (FirstAssigner, "settle ties by values"),
    "images_do_not_affect_each_other": (RelativeAssigner, "let nothing of one image enter another"),
    "same_input_gives_the_same_matches": (RememberingAssigner, "keep no state"),
    "inputs_are_left_alone": (RoundingAssigner, "work on a copy"),
    "no_gradient_flows_through_matches": (LearningAssigner, "@torch.no_grad()"),
    "quality_lies_between_0_and_1": (UnboundedAssigner, "they must lie in [0, 1]"),
    "nan_is_never_silent": (SilentAssigner, "a match of quality NaN"),
    "autocast_changes_no_match": (RoughAssigner, "enabled=False"),
    "auxiliary_outputs_on_some_levels_are_served": (WholeAssigner, "prior_M from"),
    "relaxed_form_finds_no_fewer_matches": (StricterAssigner, "weaken a condition"),
    "one_to_one_gives_a_target_one_prior_at_most": (SeveralAssigner, "leave one_to_one false"),
}


def test_right_assigner_passes_all() -> None:
    check_component(NearestAssigner)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_assigner_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_assigners_has_a_wrong_one() -> None:
    assert [check.__name__ for check in assigners.CHECKS] == list(WRONG)
