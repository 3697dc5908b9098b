"""Quality focal loss by hand; what it shares with others is tested in ``test_graded_losses``."""

import math

import pytest
import torch

from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.quality_focal_criterion import QualityFocalCriterion

PRIORS = Priors.on_grids([(1, 2)], (8,), torch.full((1, 1, 2), 8.0))
TARGETS = Targets.from_lists([torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([0])], (8, 16))
HALF_OF_IT_BP4 = torch.tensor([0.0, 0.0, 4.0, 8.0]).expand(1, 2, 4)


def class_loss(criterion: QualityFocalCriterion, logit: float, quality: float = 1.0) -> float:
    """Return the loss of a matched prior; what the other costs is nothing."""
    zero = torch.zeros(1, dtype=torch.int64)
    given = Predictions(HALF_OF_IT_BP4, torch.tensor([[[logit], [-100.0]]]), None, PRIORS)
    matches = Assignment(zero, zero, zero, torch.tensor([quality]))
    return criterion.losses(given, matches, TARGETS)["class"].item()


def test_probability_equal_to_the_overlap_costs_nothing() -> None:
    assert class_loss(QualityFocalCriterion(), 0.0) == pytest.approx(0, abs=1e-9)


def test_cost_grows_with_the_distance_from_the_label() -> None:
    # Probability 3/4, label 1/2.
    cross_entropy = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    assert class_loss(QualityFocalCriterion(), math.log(3)) == pytest.approx(0.25**2 * cross_entropy, rel=1e-5)
    assert class_loss(QualityFocalCriterion(beta=1.0), math.log(3)) == pytest.approx(0.25 * cross_entropy, rel=1e-5)
    assert class_loss(QualityFocalCriterion(beta=0.0), math.log(3)) == pytest.approx(cross_entropy, rel=1e-5)


def test_graded_match_learns_its_quality() -> None:
    assert class_loss(QualityFocalCriterion(), math.log(3), quality=0.75) == pytest.approx(0, abs=1e-9)
