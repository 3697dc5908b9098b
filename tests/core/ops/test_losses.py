"""Cross-entropies by hand."""

import math

import pytest
import torch

from detloom.ops.losses import (
    binary_cross_entropy,
    distribution_focal,
    focal_of_absence,
    one_hot,
    smoothed_labels,
)


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


def test_absence_costs_its_cross_entropy_and_less_where_it_is_sure() -> None:
    logits = torch.tensor([0.0, -math.log(3)])

    assert focal_of_absence(logits, 0.0).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    assert focal_of_absence(logits, 2.0).tolist() == pytest.approx([0.25 * math.log(2), 0.25**2 * math.log(4 / 3)])


def test_distance_between_bins_is_shared_by_how_near_they_are() -> None:
    logits_M4R = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(1, 4, 4)
    log_R = logits_M4R[0, 0].log_softmax(0)

    loss_M4 = distribution_focal(logits_M4R, torch.tensor([[1.25, 2.0, 3.0, 0.0]]))

    expected = [-0.75 * log_R[1] - 0.25 * log_R[2], -log_R[2], -log_R[3], -log_R[0]]
    torch.testing.assert_close(loss_M4, torch.stack(expected)[None])


def test_distances_beyond_the_bins_are_learned_as_the_nearest() -> None:
    logits_M4R = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))

    outside = distribution_focal(logits_M4R, torch.tensor([[-5.0, 1e9, math.inf, -math.inf]]))

    torch.testing.assert_close(outside, distribution_focal(logits_M4R, torch.tensor([[0.0, 3.0, 3.0, 0.0]])))


def test_least_distribution_loss_has_its_mean_at_the_distance() -> None:
    logits_M4R = torch.zeros(1, 4, 5, dtype=torch.float64, requires_grad=True)
    distances_M4 = torch.tensor([[0.3, 1.0, 2.5, 3.9]], dtype=torch.float64)
    optimizer = torch.optim.Adam([logits_M4R], lr=0.2)

    for _ in range(500):
        optimizer.zero_grad()
        torch.autograd.backward(distribution_focal(logits_M4R, distances_M4).sum())
        optimizer.step()

    mean_M4 = (logits_M4R.detach().softmax(-1) * torch.arange(5)).sum(-1)
    torch.testing.assert_close(mean_M4, distances_M4, atol=0.02, rtol=0)


def test_nan_distance_has_a_nan_loss() -> None:
    loss_M4 = distribution_focal(torch.zeros(1, 4, 4), torch.tensor([[math.nan, 0.0, 1.0, 2.0]]))

    assert loss_M4.isnan().tolist() == [[True, False, False, False]]
