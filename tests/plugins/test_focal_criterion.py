"""Focal loss by hand; what it shares with others is tested in ``test_graded_losses``."""

import math

import pytest
import torch

from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.focal_criterion import FocalCriterion

PRIORS = Priors.on_grids([(1, 2)], (8,), torch.full((1, 1, 2), 8.0))
BOX = torch.tensor([0.0, 0.0, 8.0, 8.0])
TARGETS = Targets.from_lists([BOX[None]], [torch.tensor([0])], (8, 16))


def class_loss(criterion: FocalCriterion, logit: float, quality: float = 1.0) -> float:
    """Return the loss of a matched prior; what the other costs is nothing."""
    logits = torch.tensor([[[logit], [-100.0]]])
    zero = torch.zeros(1, dtype=torch.int64)
    given = Predictions(BOX.expand(1, 2, 4), logits, None, PRIORS)
    matches = Assignment(zero, zero, zero, torch.tensor([quality]))
    return criterion.losses(given, matches, TARGETS)["class"].item()


def test_present_class_weighs_alpha_and_less_the_surer_it_is() -> None:
    assert class_loss(FocalCriterion(), 0.0) == pytest.approx(0.25 * 0.5**2 * math.log(2))
    # A probability of 3/4.
    assert class_loss(FocalCriterion(), math.log(3)) == pytest.approx(0.25 * 0.25**2 * math.log(4 / 3), rel=1e-5)


def test_without_gamma_it_is_a_balanced_cross_entropy() -> None:
    assert class_loss(FocalCriterion(gamma=0.0), math.log(3)) == pytest.approx(0.25 * math.log(4 / 3), rel=1e-5)


def test_hard_label_is_learned_whatever_the_box() -> None:
    assert class_loss(FocalCriterion(), 100.0) == pytest.approx(0, abs=1e-6)


def test_what_is_absent_weighs_the_rest() -> None:
    given = Predictions(BOX.expand(1, 2, 4), torch.zeros(1, 2, 1), None, PRIORS)
    none = torch.zeros(0, dtype=torch.int64)

    losses = FocalCriterion().losses(given, Assignment(none, none, none, torch.zeros(0)), TARGETS)

    assert losses["class"].item() == pytest.approx(2 * 0.75 * 0.5**2 * math.log(2))
