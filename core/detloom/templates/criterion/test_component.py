"""The checks of detloom's kit, then a loss by hand."""

import math
from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent

import detloom
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_one_match_by_hand() -> None:
    # Two priors and two classes, logits of 0: each costs log 2. The matched box covers half of its target.
    priors = Priors.on_grids([(1, 2)], [8], torch.tensor([[[8.0, 8.0]]]))
    boxes_BP4 = torch.tensor([[[0.0, 0.0, 4.0, 8.0], [8.0, 0.0, 16.0, 8.0]]])
    predictions = Predictions(boxes_BP4, torch.zeros(1, 2, 2), None, priors)
    targets = Targets.from_lists([torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([1])], (8, 16))
    first = torch.tensor([0])
    assignment = Assignment(image_M=first, prior_M=first, target_M=first, quality_M=torch.ones(1))

    losses = NewComponent(box=2.0, classes=1.0).losses(predictions, assignment, targets)

    assert losses["box"].item() == pytest.approx(2 * 0.5)
    assert losses["class"].item() == pytest.approx(4 * math.log(2))


def test_heads_with_what_no_loss_teaches_are_refused() -> None:
    assert NewComponent().objection(HeadTraits(anchors=False, objectness=True)) is not None
    assert NewComponent().objection(HeadTraits(anchors=False, objectness=False, distribution_bins=16)) is not None
    assert NewComponent().objection(HeadTraits(anchors=False, objectness=False)) is None
