"""Pairs that overlap enough, against all pairs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detloom.ops.iou import overlap
from detloom.structures import Priors
from detloom_plugins import overlap_windows
from detloom_plugins.overlap_windows import nearest_of_each_size, overlapping_pairs

SIZES_LA2 = torch.tensor([[[8.0, 8.0], [16.0, 8.0]], [[24.0, 40.0], [70.3, 64.1]]])
PRIORS = Priors.on_grids([(8, 12), (4, 6)], (8, 16), SIZES_LA2)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, ...]:
    # Up to larger than the image, down to a pixel.
    x1, y1 = draw(st.integers(-20, 95)), draw(st.integers(-20, 63))
    w, h = draw(st.integers(1, 140)), draw(st.integers(1, 100))
    shift = draw(st.sampled_from([0.0, 0.5, 0.37]))
    return (x1 + shift, y1 + shift, float(x1 + w) + shift, float(y1 + h) + shift)


def all_overlaps(boxes_T4: Tensor) -> Tensor:
    """Return the IoU of every target and every prior."""
    return overlap(boxes_T4[:, None], PRIORS.boxes_P4)


@settings(deadline=None, max_examples=150)
@given(st.lists(boxes(), min_size=1, max_size=5), st.sampled_from([0.01, 0.1, 0.4, 0.7, 1.0]))
def test_every_pair_above_the_threshold_is_found_once(found_of: list[tuple[float, ...]], threshold: float) -> None:
    boxes_T4 = torch.tensor(found_of)
    overlap_TP = all_overlaps(boxes_T4)
    mine_TP = torch.zeros_like(overlap_TP)
    times_TP = torch.zeros_like(overlap_TP)

    for pairs in overlapping_pairs(PRIORS, boxes_T4, threshold):
        where = (pairs.target_s[:, None].expand_as(pairs.prior_sN)[pairs.is_pair_sN], pairs.prior_sN[pairs.is_pair_sN])
        mine_TP[where] = pairs.overlap_sN[pairs.is_pair_sN]
        times_TP.index_put_(where, torch.ones(()), accumulate=True)

    # Within rounding of the threshold either is right.
    assert times_TP.le(1).all()
    assert times_TP[overlap_TP > threshold + 1e-5].eq(1).all()
    assert times_TP[overlap_TP < threshold - 1e-5].eq(0).all()
    torch.testing.assert_close(mine_TP[times_TP == 1], overlap_TP[times_TP == 1], rtol=1e-4, atol=1e-6)


def test_prior_equal_to_its_target_is_found_at_a_threshold_of_one() -> None:
    pairs = list(overlapping_pairs(PRIORS, torch.tensor([[8.0, 16.0, 16.0, 24.0]]), 1.0))

    (found,) = [pair.prior_sN[pair.is_pair_sN].tolist() for pair in pairs if pair.is_pair_sN.any()]
    assert found == [(2 * 12 + 1) * 2]


def test_windows_say_which_target_and_prior_of_a_cell_they_are_of() -> None:
    boxes_T4 = torch.tensor([[0.0, 0.0, 40.0, 40.0], [30.0, 20.0, 60.0, 60.0]])

    for pairs in overlapping_pairs(PRIORS, boxes_T4, 0.1):
        size_s2 = SIZES_LA2.flatten(0, 1)[pairs.window_s % 4]

        assert (pairs.window_s // 4 == pairs.target_s).all()
        size_sN2 = PRIORS.sizes_P2[pairs.prior_sN]
        assert (size_sN2 == size_s2[:, None]).all(dim=-1)[pairs.is_pair_sN].all()


def test_memory_is_bounded_by_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes_T4 = torch.tensor([[4.0 * i, 10.0, 4.0 * i + 20, 40.0] for i in range(15)])

    def found() -> set[Any]:
        return {
            (target, prior)
            for pairs in overlapping_pairs(PRIORS, boxes_T4, 0.1)
            for target, row, is_pair in zip(pairs.target_s, pairs.prior_sN, pairs.is_pair_sN, strict=True)
            for target, prior in [(int(target), prior) for prior in row[is_pair].tolist()]
        }

    whole = found()
    monkeypatch.setattr(overlap_windows, "PAIRS_AT_ONCE", 40)

    assert found() == whole
    assert all(p.prior_sN.numel() <= max(40, p.prior_sN.shape[1]) for p in overlapping_pairs(PRIORS, boxes_T4, 0.1))


@settings(deadline=None, max_examples=100)
@given(st.lists(boxes(), min_size=1, max_size=4))
def test_no_prior_of_a_size_overlaps_more_than_the_nearest(given_boxes: list[tuple[float, ...]]) -> None:
    boxes_T4 = torch.tensor(given_boxes)
    overlap_TP = all_overlaps(boxes_T4)

    prior_TR, overlap_TR = nearest_of_each_size(PRIORS, boxes_T4)

    row_P = PRIORS.level_P * 2 + torch.arange(PRIORS.num_priors) % 2
    for row in range(4):
        best_T = overlap_TP[:, row_P == row].amax(dim=1)
        assert (row_P[prior_TR[:, row]] == row).all()
        torch.testing.assert_close(overlap_TR[:, row], best_T, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(overlap_TP.gather(1, prior_TR[:, row : row + 1])[:, 0], best_T, rtol=1e-4, atol=1e-6)


def test_first_of_equally_near_cells_is_taken() -> None:
    prior_TR, _ = nearest_of_each_size(PRIORS, torch.tensor([[12.0, 12.0, 20.0, 20.0]]))

    assert prior_TR[0].tolist() == [(12 + 1) * 2, (12 + 1) * 2 + 1, 192, 193]


def test_without_targets_there_are_no_pairs() -> None:
    assert list(overlapping_pairs(PRIORS, torch.zeros(0, 4), 0.1)) == []
