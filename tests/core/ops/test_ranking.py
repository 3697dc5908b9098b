"""Ranks with ties, signs and NaN."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops.ranking import LAST_KEY, is_least, order_within, ordered_key, position_of, smallest


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


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(width=32, allow_nan=False)), max_size=20))
def test_order_within_groups_is_a_stable_sort_by_group_then_value(rows: list[tuple[int, float]]) -> None:
    group = torch.tensor([row[0] for row in rows], dtype=torch.int64)

    result = order_within(group, torch.tensor([row[1] for row in rows]))

    assert result.tolist() == sorted(range(len(rows)), key=lambda i: rows[i])


def test_nan_comes_last_in_its_group_alone() -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])

    assert order_within(torch.tensor([0, 0, 1, 1]), values).tolist() == [1, 0, 2, 3]


def test_least_key_of_each_place_is_found_and_the_last_key_never() -> None:
    keys = torch.tensor([[7, 3, LAST_KEY], [5, 9, LAST_KEY]])
    places = torch.tensor([[0, 1, 2], [0, 1, 2]])

    assert is_least(keys, places, 4).tolist() == [[False, True, False], [True, False, False]]
