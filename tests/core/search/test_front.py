"""Fronts and hypervolumes, beside definitions written out slowly."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from detloom.search.front import best, front, hypervolume
from detloom.search.plotting import plot_front
from detloom.search.space import Objective, State, Trial

TWO = (Objective("AP", is_maximised=True), Objective("gflops", is_maximised=False))
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=7)


def trials(values: list[tuple[float, ...]]) -> list[Trial]:
    return [Trial(n, (n,), State.FINISHED, each) for n, each in enumerate(values)]


@given(POINTS)
def test_front_is_what_no_other_is_better_than(points: list[tuple[float, ...]]) -> None:
    points = [each[:2] for each in points]

    found = {trial.values for trial in front(trials(points), TWO)}

    for ap, cost in points:
        is_beaten = any(a >= ap and c <= cost and (a, c) != (ap, cost) for a, c in points)
        assert ((ap, cost) in found) == (not is_beaten)


@given(POINTS)
def test_hypervolume_counts_the_unit_cubes_that_are_reached(points: list[tuple[float, ...]]) -> None:
    objectives = (*TWO, Objective("parameters", is_maximised=False))

    found = hypervolume(points, (0, 5, 4), objectives)

    cubes = product(range(6), range(5), range(4))
    # A cube [a, a+1] x [c, c+1] x [p, p+1] is reached by a point that is at least as good as its best corner.
    expected = sum(any(ap >= a + 1 and g <= c and p <= q for ap, g, p in points) for a, c, q in cubes)
    assert found == pytest.approx(expected)


def test_best_is_the_cheaper_of_equals() -> None:
    winner = best(trials([(0.4, 3.0), (0.5, 9.0), (0.5, 7.0)]), TWO)

    assert winner is not None
    assert winner.number == 2


def test_trials_without_values_are_no_part_of_it() -> None:
    history = [Trial(0, (0,), State.REFUSED, reason="too large"), Trial(1, (1,), State.RUNNING)]

    assert best(history, TWO) is None
    assert front(history, TWO) == []
    assert hypervolume([], (0.0, 5.0), TWO) == 0.0


def test_picture_tells_trials_of_one_place_once() -> None:
    together = plot_front(trials([(0.4, 3.0), (0.4, 3.0), (0.1, 1.0)]), TWO)
    alone = plot_front(trials([(0.4, 3.0), (0.1, 1.0)]), TWO)

    # "0, 1" reaches further to the right than "0", where the one over the other would not.
    assert end_of_numbers(together) > end_of_numbers(alone) + 5


@pytest.mark.parametrize(
    ("second", "values", "is_right"),
    [
        ("gflops", [(0.2, 1.0), (0.4, 3.0)], True),
        # What is wanted high falls where the first rises.
        ("synflow", [(0.4, 1.0), (0.2, 3.0)], False),
    ],
)
def test_way_between_points_is_the_edge_of_what_the_front_is_better_than(
    second: str, values: list[tuple[float, ...]], *, is_right: bool
) -> None:
    objectives = (TWO[0], Objective(second, is_maximised=second == "synflow"))

    columns = blue_columns(plot_front(trials(values), objectives), 240)

    # Its upright half crosses the middle of the picture on the side of the better point.
    assert len(columns) > 0
    assert all((column > 360) == is_right for column in columns)


def test_three_objectives_have_no_line_between_their_points() -> None:
    objectives = (*TWO, Objective("parameters", is_maximised=False))
    picture = plot_front(trials([(0.2, 1.0, 9.0), (0.4, 3.0, 1.0)]), objectives)

    assert blue_columns(picture, 240) == []
    assert blue_columns(plot_front(trials([(0.2, 1.0), (0.4, 3.0)]), TWO), 240)


def blue_columns(picture_HW3: NDArray[np.uint8], row: int) -> list[int]:
    """Return where a row of a picture is blue."""
    row_W3 = picture_HW3[row].astype(int)
    found: list[int] = np.flatnonzero(row_W3[:, 2] - row_W3[:, 0] > 60).tolist()
    return found


def end_of_numbers(picture_HW3: NDArray[np.uint8]) -> int:
    """Return the last blue column above the highest point, where only its numbers stand."""
    # Below what the picture says of its colours.
    return max(column for row in range(46, 66) for column in blue_columns(picture_HW3, row))
