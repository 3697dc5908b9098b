"""How well anchors fit boxes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops.anchors import anchor_fit, by_area, fitness, size_ratios

SIDES = st.floats(1, 1000, width=32)
SIZES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=12).map(torch.tensor)


def test_ratio_is_that_of_the_side_that_differs_most() -> None:
    ratio = size_ratios(torch.tensor([[10.0, 40.0]]), torch.tensor([[20.0, 40.0], [10.0, 10.0], [10.0, 40.0]]))

    assert ratio.tolist() == [[0.5, 0.25, 1.0]]


def test_anchor_of_exactly_the_threshold_does_not_learn() -> None:
    fit = anchor_fit(torch.tensor([[10.0, 10.0], [39.0, 10.0]]), torch.tensor([[40.0, 10.0], [11.0, 10.0]]))

    # The first box is four times thinner than the first anchor, and learned by the second alone.
    assert fit.recall == 1.0
    assert fit.anchors_per_target == (1 + 2) / 2
    assert fit.fitness == pytest.approx((10 / 11 + 39 / 40) / 2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("which", ["default", "kmeans_only", "evolved_1000"])
def test_figures_are_those_published_code_gives(shared: Callable[[str], Path], seed: int, which: str) -> None:
    folder = shared("golden/post")
    golden = json.loads((folder / f"anchors-seed{seed}.json").read_text())
    sizes_N2 = torch.from_numpy(np.load(folder / f"anchors-seed{seed}.npz")["box_wh_px"]).float()
    anchors_A2 = torch.tensor(golden[f"{which}_anchors"])

    fit = anchor_fit(sizes_N2, anchors_A2)

    assert fit.recall == pytest.approx(golden[which]["best_possible_recall"], abs=1e-12)
    assert fit.anchors_per_target == pytest.approx(golden[which]["anchors_per_target"], abs=1e-12)
    assert fit.fitness == pytest.approx(golden[which]["fitness"], rel=1e-5)


@given(SIZES, SIZES)
def test_figures_lie_in_their_ranges_whatever_the_order(sizes_N2: torch.Tensor, anchors_A2: torch.Tensor) -> None:
    fit = anchor_fit(sizes_N2, anchors_A2)
    turned = anchor_fit(sizes_N2.flip(0), anchors_A2.flip(0))

    # A mean of float32 may lie a rounding above the greatest of its values.
    assert 0 <= fit.fitness <= fit.recall * (1 + 1e-6)
    assert fit.recall <= 1
    assert fit.recall <= fit.anchors_per_target <= len(anchors_A2)
    assert (turned.recall, turned.anchors_per_target) == (fit.recall, fit.anchors_per_target)
    assert turned.fitness == pytest.approx(fit.fitness, rel=1e-5)


@given(SIZES, SIZES)
def test_fitness_of_several_sets_is_that_of_each(sizes_N2: torch.Tensor, anchors_A2: torch.Tensor) -> None:
    sets_SA2 = torch.stack((anchors_A2, anchors_A2 * 1.5))

    both = fitness(sizes_N2, sets_SA2)

    assert both.tolist() == [anchor_fit(sizes_N2, each).fitness for each in sets_SA2]


def test_equal_areas_stay_in_their_order() -> None:
    anchors_A2 = torch.tensor([[4.0, 4.0], [2.0, 8.0], [1.0, 1.0], [8.0, 2.0]])

    assert by_area(anchors_A2).tolist() == [[1, 1], [4, 4], [2, 8], [8, 2]]
