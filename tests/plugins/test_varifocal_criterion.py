"""Varifocal loss by hand; what it shares with others is tested in ``test_graded_losses``."""

import math

import pytest
import torch
from torch import Tensor

from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.varifocal_criterion import VarifocalCriterion

PRIORS = Priors.on_grids([(1, 2)], (8,), torch.full((1, 1, 2), 8.0))
TARGETS = Targets.from_lists([torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([0])], (8, 16))
# Half of the target, and nothing of it.
BOXES_BP4 = torch.tensor([[[0.0, 0.0, 4.0, 8.0], [10.0, 0.0, 14.0, 8.0]]])


def losses(prior: int, logits: list[float], quality: float = 1.0) -> dict[str, Tensor]:
    """Return the losses of one match."""
    zero = torch.zeros(1, dtype=torch.int64)
    given = Predictions(BOXES_BP4, torch.tensor(logits).view(1, 2, 1), None, PRIORS)
    matches = Assignment(zero, torch.tensor([prior]), zero, torch.tensor([quality]))
    return VarifocalCriterion().losses(given, matches, TARGETS)


def test_hard_label_learns_the_overlap_and_counts_by_it() -> None:
    found = losses(0, [0.0, -100.0])

    assert found["class"].item() == pytest.approx(0.5 * math.log(2), rel=1e-5)
    # 2, the weight 1/2, and what lacks of the overlap.
    assert found["box"].item() == pytest.approx(2 * 0.5 * 0.5, rel=1e-5)


def test_losses_are_divided_by_the_alignments_where_they_are_above_one() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    given = Predictions(BOXES_BP4[:, :1].expand(1, 2, 4), torch.zeros(1, 2, 1), None, PRIORS)
    matches = Assignment(zeros, torch.tensor([0, 1]), zeros, torch.tensor([0.9, 0.6]))

    found = VarifocalCriterion().losses(given, matches, TARGETS)

    assert found["class"].item() == pytest.approx(math.log(2))
    assert found["box"].item() == pytest.approx(2 * 0.5, rel=1e-5)


def test_match_of_no_quality_is_absent() -> None:
    found = losses(1, [-100.0, 0.0])

    assert found["class"].item() == pytest.approx(0.75 * 0.5**2 * math.log(2), rel=1e-5)
    assert found["box"].item() == 0
