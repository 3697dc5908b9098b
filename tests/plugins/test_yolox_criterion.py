"""The losses of YOLOX by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from detloom.errors import RecipeError
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom_plugins import yolox_criterion
from detloom_plugins.yolox_criterion import YoloxCriterion

PRIORS = Priors.on_grids([(2, 2)], (8,), torch.full((1, 1, 2), 8.0))
TARGETS = Targets.from_lists([torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([1])], (16, 16))


def predictions() -> Predictions:
    """Return predictions with logits of 0 and boxes half of the target's."""
    boxes_BP4 = torch.tensor([0.0, 0.0, 4.0, 8.0]).expand(1, 4, 4).clone().requires_grad_()
    return Predictions(
        boxes_BP4, torch.zeros(1, 4, 3, requires_grad=True), torch.zeros(1, 4, requires_grad=True), PRIORS
    )


def assignment(priors: list[int], quality: list[float] | None = None) -> Assignment:
    """Return matches of the only target."""
    zeros = torch.zeros(len(priors), dtype=torch.int64)
    return Assignment(
        zeros, torch.tensor(priors, dtype=torch.int64), zeros, torch.tensor(quality or [1.0] * len(priors))
    )


def plain(**settings: float) -> YoloxCriterion:
    """Return a criterion whose gains are 1."""
    return YoloxCriterion(**({"box": 1.0} | settings))


def test_box_loss_is_that_of_the_squared_overlap() -> None:
    losses = YoloxCriterion().losses(predictions(), assignment([0, 1]), TARGETS)

    assert losses["box"].item() == pytest.approx(5 * (1 - 0.5**2), abs=1e-5)


def test_objectness_of_all_priors_is_divided_by_the_matches() -> None:
    losses = plain().losses(predictions(), assignment([0, 3]), TARGETS)

    assert losses["objectness"].item() == pytest.approx(4 / 2 * math.log(2))


def test_matched_priors_learn_an_objectness_of_one() -> None:
    given = predictions()
    assert given.objectness_BP is not None
    losses = plain().losses(given, assignment([1, 1]), TARGETS)

    (gradient,) = torch.autograd.grad(losses["objectness"], given.objectness_BP)

    assert (gradient * 2).tolist() == [[0.5, -0.5, 0.5, 0.5]]


def test_ignored_priors_learn_no_objectness_unless_they_are_matched() -> None:
    given = predictions()
    assert given.objectness_BP is not None
    matches = replace(assignment([1]), ignored_BP=torch.tensor([[True, True, False, False]]))

    losses = plain().losses(given, matches, TARGETS)
    (gradient,) = torch.autograd.grad(losses["objectness"], given.objectness_BP)

    assert gradient.tolist() == [[0.0, -0.5, 0.5, 0.5]]


@pytest.mark.parametrize(("quality", "learned"), [(1.0, 0.5), (0.2, 0.2)], ids=["hard label", "soft label"])
def test_class_learns_the_overlap_and_no_more_than_the_quality(quality: float, learned: float) -> None:
    given = predictions()
    losses = plain().losses(given, assignment([2], [quality]), TARGETS)

    (gradient,) = torch.autograd.grad(losses["class"], given.class_logits_BPC)

    assert gradient[0, 2].tolist() == pytest.approx([0.5, 0.5 - learned, 0.5], abs=1e-5)


def test_batch_without_matches_learns_that_nothing_is_there() -> None:
    given = predictions()

    losses = plain(l1=1.0).losses(given, assignment([]), TARGETS)
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), (given.boxes_BP4, given.class_logits_BPC))

    assert all(gradient.eq(0).all() for gradient in gradients)
    assert losses["box"].item() == losses["class"].item() == losses["l1"].item() == 0
    assert losses["objectness"].item() == pytest.approx(4 * math.log(2))


def test_l1_is_measured_in_cells_and_logarithms() -> None:
    losses = plain(l1=1.0).losses(predictions(), assignment([0]), TARGETS)

    # The centre is 2 of 8 pixels off, the width is half.
    assert losses["l1"].item() == pytest.approx(0.25 + math.log(2), abs=1e-5)


def test_l1_is_left_out_without_a_gain() -> None:
    assert set(plain().losses(predictions(), assignment([0]), TARGETS)) == {"box", "objectness", "class"}


def test_l1_of_a_vanishing_box_is_finite() -> None:
    given = replace(predictions(), boxes_BP4=torch.zeros(1, 4, 4, requires_grad=True))

    loss = plain(l1=1.0).losses(given, assignment([0]), TARGETS)["l1"]
    (gradient,) = torch.autograd.grad(loss, given.boxes_BP4)

    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_count_is_a_mean_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plain().losses(predictions(), assignment([0, 1]), TARGETS)
    monkeypatch.setattr(yolox_criterion, "mean_over_processes", lambda count: 2.0 * count)

    shared = plain().losses(predictions(), assignment([0, 1]), TARGETS)

    for key, value in alone.items():
        assert shared[key].item() == pytest.approx(value.item() / 2)


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = plain().losses(predictions(), assignment([0]), TARGETS)

    assert all(value.dtype == torch.float32 for value in under.values())


def test_nan_quality_makes_the_losses_nan() -> None:
    assert plain().losses(predictions(), assignment([0], [math.nan]), TARGETS)["class"].isnan()


def test_heads_without_objectness_are_refused() -> None:
    given: Any = replace(predictions(), objectness_BP=None)

    assert "objectness" in (YoloxCriterion().objection(HeadTraits(anchors=False, objectness=False)) or "")
    assert YoloxCriterion().objection(HeadTraits(anchors=False, objectness=True)) is None
    with pytest.raises(RecipeError, match="objectness"):
        YoloxCriterion().losses(given, assignment([]), TARGETS)
