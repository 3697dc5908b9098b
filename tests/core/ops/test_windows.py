"""Priors inside boxes, against looking at every prior."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detloom.ops.windows import center_squares, pair_blocks, windows_inside
from detloom.structures import Priors

SHAPES, STRIDES = [(8, 12), (4, 6), (2, 3)], (8, 16, 32)


def priors(per_cell: int = 2) -> Priors:
    """Return priors of three levels of a wide image."""
    return Priors.on_grids(SHAPES, STRIDES, torch.ones(3, per_cell, 2))


def pairs(given_priors: Priors, boxes_TL4: Tensor, pairs_at_once: int = 1 << 20) -> list[tuple[int, int]]:
    """Return box and prior of each pair, in their order."""
    found: list[tuple[int, int]] = []
    for block in pair_blocks(windows_inside(given_priors.grids, boxes_TL4), pairs_at_once):
        found += zip(block.box_K.tolist(), block.prior_K.tolist(), strict=True)
    return found


def slow_pairs(given_priors: Priors, boxes_TL4: Tensor) -> list[tuple[int, int]]:
    """Return the same by looking at every prior."""
    return [
        (box, prior)
        for box, box_L4 in enumerate(boxes_TL4.expand(-1, len(STRIDES), 4).tolist())
        for prior, (x, y) in enumerate(given_priors.centers_P2.tolist())
        for x1, y1, x2, y2 in [box_L4[int(given_priors.level_P[prior])]]
        if x1 < x < x2 and y1 < y < y2
    ]


# Whole and half pixels put sides on centres; the rest is any float.
side = st.one_of(st.integers(-20, 120).map(float), st.floats(-50, 150, width=32))
boxes = st.lists(st.tuples(side, side, side, side), max_size=5)


@settings(deadline=None, max_examples=200)
@given(boxes, st.sampled_from([1, 3]), st.sampled_from([1, 40, 1 << 20]))
def test_pairs_are_those_of_the_slow_reference_in_blocks_of_any_size(
    sides: list[tuple[float, ...]], per_cell: int, pairs_at_once: int
) -> None:
    # Low and high sides come in any order: a box turned inside out holds nothing.
    boxes_T14 = torch.tensor(sides).reshape(-1, 1, 4)

    found = pairs(priors(per_cell), boxes_T14, pairs_at_once)

    assert found == slow_pairs(priors(per_cell), boxes_T14)


@settings(deadline=None, max_examples=50)
@given(boxes, st.sampled_from([0.4, 1.5, 2.5]))
def test_squares_around_centres_differ_from_level_to_level(sides: list[tuple[float, ...]], radius: float) -> None:
    boxes_T4 = torch.tensor(sides).reshape(-1, 4)

    squares_TL4 = center_squares(priors().grids, boxes_T4, radius)

    assert pairs(priors(), squares_TL4) == slow_pairs(priors(), squares_TL4)
    torch.testing.assert_close(squares_TL4[:, 1, 2] - squares_TL4[:, 1, 0], torch.full((len(sides),), 2 * radius * 16))


def test_centre_on_the_side_of_a_box_is_not_inside() -> None:
    # Centres of the first level lie at 4, 12, 20, ...
    found = pairs(priors(1), torch.tensor([[[4.0, 4.0, 20.0, 20.0]]]))

    assert found == [(0, 12 + 1), (0, 8 * 12), (0, 8 * 12 + 4 * 6)]


def test_a_block_says_where_the_pairs_of_its_boxes_begin() -> None:
    boxes_T14 = torch.tensor([[[0.0, 0.0, 16.0, 16.0]], [[5.0, 5.0, 6.0, 6.0]], [[0.0, 0.0, 40.0, 9.0]]])

    (block,) = pair_blocks(windows_inside(priors(1).grids, boxes_T14), 1 << 20)

    assert block.count_t.tolist() == [5, 0, 7]
    assert block.first_t.tolist() == [0, 5, 5]


@pytest.mark.parametrize("sides", [[], [[5.0, 5.0, 6.0, 6.0]]], ids=["no boxes", "no centre inside"])
def test_nothing_inside_is_no_block(sides: list[list[float]]) -> None:
    boxes_T14 = torch.tensor(sides).reshape(-1, 1, 4)

    assert list(pair_blocks(windows_inside(priors().grids, boxes_T14), 1)) == []
