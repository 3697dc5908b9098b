"""Criteria that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detloom.interfaces import Criterion
from detloom.ops.losses import binary_cross_entropy, of_no_ignored
from detloom.structures import Assignment, HeadTraits, Predictions, Targets
from detloom.testing import check_component, criteria

Caught = Callable[[type[Any]], dict[str, str]]


class PlainCriterion(Criterion):
    """Distances of boxes weighed by quality, cross-entropies of everything else."""

    def __init__(self, *, box: float = 1.0) -> None:
        self.box = box

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        with torch.autocast("cpu", enabled=False):
            return self._losses(predictions, assignment, targets)

    def _losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        image_M, prior_M, target_M = assignment.image_M, assignment.prior_M, assignment.target_M
        quality_M, count = self.quality(assignment), self.count(assignment)
        where = (image_M, prior_M)
        distance_M = (self.boxes(predictions)[where] - targets.boxes_T4[target_M]).abs().sum(dim=1)
        logits_BPC = predictions.class_logits_BPC
        label_BPC = torch.zeros_like(logits_BPC).index_put((*where, targets.labels_T[target_M]), quality_M)
        class_BP = binary_cross_entropy(logits_BPC, label_BPC).sum(dim=-1)
        losses = {
            "box": self.box * self.weighted(quality_M, distance_M) / count,
            "class": self.learned(class_BP, assignment).sum() / count / self.classes(predictions),
        }
        if predictions.objectness_BP is not None:
            is_matched_BP = torch.zeros_like(predictions.objectness_BP).index_put(where, quality_M)
            each_BP = binary_cross_entropy(predictions.objectness_BP, is_matched_BP)
            losses["objectness"] = self.learned(each_BP, assignment).sum() / count
        if predictions.distribution_BP4R is not None:
            losses["distribution"] = -predictions.distribution_BP4R[where].log_softmax(dim=-1)[..., 0].sum() / count
        return losses

    def quality(self, assignment: Assignment) -> Tensor:
        return assignment.quality_M

    def count(self, assignment: Assignment) -> float:
        return max(1, assignment.num_matches)

    def boxes(self, predictions: Predictions) -> Tensor:
        return predictions.boxes_BP4

    def weighted(self, quality_M: Tensor, distance_M: Tensor) -> Tensor:
        return (quality_M * distance_M).sum()

    def learned(self, loss_BP: Tensor, assignment: Assignment) -> Tensor:
        return of_no_ignored(loss_BP, assignment)

    def classes(self, predictions: Predictions) -> float:
        return predictions.num_classes


class PositionalCriterion(PlainCriterion):
    """Takes its setting by position as well."""

    def __init__(self, box: float = 1.0) -> None:
        super().__init__(box=box)


class DividingCriterion(PlainCriterion):
    """Divides by its setting, whatever it is."""

    def __init__(self, *, box: float = 1.0) -> None:
        super().__init__(box=box)
        self.share = 1 / max(box, 0)


class RefusingCriterion(PlainCriterion):
    """Refuses every kind of head."""

    def objection(self, head: HeadTraits) -> str | None:
        return f"it serves no head of {head.levels} levels"


class OtherClassesCriterion(PlainCriterion):
    """Divides by the number of other classes, of which there may be none."""

    def classes(self, predictions: Predictions) -> float:
        return torch.tensor(predictions.num_classes - 1.0)  # type: ignore[return-value]  # divides to infinity


class CountingCriterion(PlainCriterion):
    """Divides by the number of matches, of which there may be none."""

    def count(self, assignment: Assignment) -> float:
        return torch.tensor(float(assignment.num_matches))  # type: ignore[return-value]  # divides to infinity


class DetachedCriterion(PlainCriterion):
    """Detaches the boxes."""

    def boxes(self, predictions: Predictions) -> Tensor:
        return predictions.boxes_BP4.detach()


class SumCriterion(PlainCriterion):
    """Adds up over the batch and divides by nothing."""

    def count(self, assignment: Assignment) -> float:
        return 1.0


class StubbornCriterion(PlainCriterion):
    """Lets ignored priors learn."""

    def learned(self, loss_BP: Tensor, assignment: Assignment) -> Tensor:
        return loss_BP


class ObedientCriterion(PlainCriterion):
    """Ignores matched priors that are marked as ignored."""

    def learned(self, loss_BP: Tensor, assignment: Assignment) -> Tensor:
        return loss_BP if assignment.ignored_BP is None else loss_BP.masked_fill(assignment.ignored_BP, 0)


class TrustingCriterion(PlainCriterion):
    """Takes a quality of NaN for 1."""

    def quality(self, assignment: Assignment) -> Tensor:
        return assignment.quality_M.nan_to_num(1.0)


class TidyCriterion(PlainCriterion):
    """Takes corners of NaN for 0."""

    def boxes(self, predictions: Predictions) -> Tensor:
        return predictions.boxes_BP4.nan_to_num(0.0)


class RoughCriterion(PlainCriterion):
    """Multiplies as matrices, which autocast does in half precision."""

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        return self._losses(predictions, assignment, targets)

    def weighted(self, quality_M: Tensor, distance_M: Tensor) -> Tensor:
        return quality_M @ distance_M


class ClampingCriterion(PlainCriterion):
    """Clamps the qualities that it is given in place."""

    def quality(self, assignment: Assignment) -> Tensor:
        return assignment.quality_M.clamp_(max=0.9)


class CompleteCriterion(PlainCriterion):
    """Takes for granted that there are priors on every level of the lead."""

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        levels = range(predictions.priors.num_levels)
        assert list(zip(levels, predictions.priors.grids, strict=True))
        return super().losses(predictions, assignment, targets)


# For each check a component that is wrong in one way, and a part of what its author is told.
WRONG: dict[str, tuple[type[Criterion], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalCriterion, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingCriterion, "box=-1.0 raises ZeroDivisionError"),
    "objection_is_a_reason_or_none": (RefusingCriterion, "refuses every kind of head"),
    "losses_are_named_finite_numbers": (OtherClassesCriterion, "1 class, every object"),
    "losses_without_matches_are_finite": (CountingCriterion, "divide by a count of at least 1"),
    "gradient_reaches_boxes_and_classes": (DetachedCriterion, "no gradient reaches boxes_BP4"),
    "losses_do_not_grow_with_the_batch": (SumCriterion, "for the same images twice"),
    "ignored_priors_cost_nothing": (StubbornCriterion, "depends on what ignored priors predict"),
    "ignoring_a_matched_prior_changes_nothing": (ObedientCriterion, "without a match alone"),
    "quality_of_nan_makes_a_loss_nan": (TrustingCriterion, "without clamping NaN away"),
    "nan_predictions_make_a_loss_nan": (TidyCriterion, "NaN in boxes_BP4"),
    "autocast_changes_no_loss": (RoughCriterion, "enabled=False"),
    "inputs_are_left_alone": (ClampingCriterion, "work on a copy"),
    "auxiliary_outputs_on_some_levels_are_served": (CompleteCriterion, "raised ValueError: zip()"),
}


def test_right_criterion_passes_all() -> None:
    check_component(PlainCriterion)


class BoxwardCriterion(PlainCriterion):
    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        return super().losses(replace(predictions, distribution_BP4R=None), assignment, targets)


class BinwardCriterion(PlainCriterion):
    def objection(self, head: HeadTraits) -> str | None:
        return None if head.distribution_bins else "it learns boxes by their distributions"

    def boxes(self, predictions: Predictions) -> Tensor:
        return predictions.boxes_BP4.detach()


@pytest.mark.parametrize("cls", [BoxwardCriterion, BinwardCriterion])
def test_distributions_are_learned_by_their_boxes_or_by_themselves(cls: type[Criterion]) -> None:
    check_component(cls)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_criterion_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_criteria_has_a_wrong_one() -> None:
    assert [check.__name__ for check in criteria.CHECKS] == list(WRONG)
