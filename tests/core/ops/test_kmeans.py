"""Clusters of points."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detloom.ops.kmeans import kmeans


def found(points_ND: Tensor, count: int, *, seed: int = 0, iterations: int = 100) -> Tensor:
    return kmeans(points_ND, count, torch.cdist, iterations=iterations, generator=torch.Generator().manual_seed(seed))


def test_groups_that_lie_apart_are_found() -> None:
    points_N2 = torch.tensor([[0.0, 0.0], [1.0, 1.0], [100.0, 0.0], [102.0, 0.0], [0.0, 50.0]])

    centres = found(points_N2, 3)

    assert sorted(centres.tolist()) == [[0.0, 50.0], [0.5, 0.5], [101.0, 0.0]]


def test_more_centres_than_different_points_are_drawn_twice() -> None:
    centres = found(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), 3)

    assert centres.tolist() == [[1.0, 2.0]] * 3


@given(st.integers(0, 1000))
def test_each_centre_is_the_mean_of_what_is_nearest(seed: int) -> None:
    points_N2 = torch.rand(40, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    centre_K2 = found(points_N2, 5, seed=seed)
    nearest_N = torch.cdist(points_N2, centre_K2).argmin(dim=1)

    for index, centre_2 in enumerate(centre_K2):
        members = points_N2[nearest_N == index]
        assert len(members)
        torch.testing.assert_close(members.mean(dim=0), centre_2)


def test_same_generator_gives_the_same_centres() -> None:
    points_N2 = torch.rand(50, 2, generator=torch.Generator().manual_seed(3))

    assert found(points_N2, 4, seed=1).equal(found(points_N2, 4, seed=1))
    assert not found(points_N2, 4, seed=1, iterations=0).equal(found(points_N2, 4, seed=2, iterations=0))
