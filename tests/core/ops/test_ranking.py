"""Ranks with ties, signs and NaN."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops.ranking import ordered_key, position_of, smallest


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.data())
def test_smallest_is_a_stable_sort_cut_short(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))

    result = smallest(torch.tensor([values]), count)

    assert result.tolist() == [sorted(range(len(values)), key=lambda i: values[i])[:count]]


def test_nan_of_either_sign_comes_after_infinity() -> None:
    values = torch.tensor([float("nan"), float("inf"), -1.0, 0.0])
    values[3] = -values[0]

    assert smallest(values, 4).tolist() == [2, 1, 0, 3]


def test_keys_give_their_positions_back() -> None:
    positions = torch.tensor([0, 5, 2**31])

    assert position_of(ordered_key(torch.tensor([-1.0, 0.0, 7.0]), positions)).equal(positions)
