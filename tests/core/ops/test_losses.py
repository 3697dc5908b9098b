"""Cross-entropies by hand."""

import math

import pytest
import torch

from detloom.ops.losses import binary_cross_entropy, one_hot, smoothed_labels


def test_smoothing_takes_as_much_from_true_as_it_gives_to_false() -> None:
    assert smoothed_labels(0.1) == pytest.approx((0.95, 0.05))


def test_one_hot_rows_hold_a_value_of_their_own() -> None:
    rows = one_hot(torch.tensor([2, 0]), 3, positive=torch.tensor([0.5, 1.0]), negative=0.1)

    torch.testing.assert_close(rows, torch.tensor([[0.1, 0.1, 0.5], [1.0, 0.1, 0.1]]))


def test_an_undecided_logit_costs_the_logarithm_of_two() -> None:
    loss = binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 1.0]))

    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_positive_weight_concerns_positives_alone() -> None:
    loss = binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 1.0]), positive_weight=3.0)

    assert loss.tolist() == pytest.approx([math.log(2), 3 * math.log(2)])


def test_focal_factors_weigh_side_and_difficulty() -> None:
    loss = binary_cross_entropy(torch.zeros(2), torch.tensor([0.0, 1.0]), focal_gamma=2.0)

    assert loss.tolist() == pytest.approx([0.75 * 0.25 * math.log(2), 0.25 * 0.25 * math.log(2)])


def test_focal_gradient_is_finite_where_the_answer_is_sure() -> None:
    logits = torch.tensor([200.0, -200.0], requires_grad=True)

    loss = binary_cross_entropy(logits, torch.tensor([1.0, 0.0]), focal_gamma=1.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)

    assert gradient.isfinite().all()
