"""Searches of anchors: k-means and a genetic search, and k-means of overlaps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.interfaces import AnchorSearch
from detloom.ops.anchors import anchor_fit
from detloom_plugins.evolved_kmeans import EvolvedKmeans
from detloom_plugins.iou_kmeans import IouKmeans

SEARCHES: list[AnchorSearch] = [EvolvedKmeans(generations=50, starts=2), IouKmeans()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[0, 1])
def golden(request: pytest.FixtureRequest, shared: Callable[[str], Path]) -> tuple[Tensor, dict[str, dict[str, float]]]:
    folder = shared("golden/post")
    sizes_N2 = torch.from_numpy(np.load(folder / f"anchors-seed{request.param}.npz")["box_wh_px"]).float()
    return sizes_N2, json.loads((folder / f"anchors-seed{request.param}.json").read_text())


def test_search_is_as_good_as_the_published_one(golden: tuple[Tensor, dict[str, dict[str, float]]]) -> None:
    sizes_N2, figures = golden
    current_A2 = torch.tensor(figures["default_anchors"])

    found_A2 = EvolvedKmeans().search(sizes_N2, current_A2, generator())

    fit = anchor_fit(sizes_N2, found_A2)
    # Both search at random: over seeds the published one spreads by about this much.
    assert fit.fitness > figures["evolved_1000"]["fitness"] - 0.005
    assert fit.recall > figures["evolved_1000"]["best_possible_recall"] - 0.005


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_anchors_come_by_area_and_the_same_for_the_same_generator(search: AnchorSearch) -> None:
    sizes_N2 = torch.rand(60, 2, generator=generator(5)) * 300 + 2
    current_A2 = torch.tensor([[10.0, 10.0], [50.0, 50.0], [200.0, 200.0]])

    first, second = (search.search(sizes_N2, current_A2, generator(1)) for _ in range(2))

    assert first.equal(second)
    assert first.shape == (3, 2)
    assert first.prod(dim=1).diff().min() >= 0
    assert (first > 0).all()


def test_genetic_search_never_ends_below_the_present_anchors() -> None:
    sizes_N2 = torch.tensor([[10.0, 10.0], [100.0, 50.0], [11.0, 10.0]])
    perfect_A2 = torch.tensor([[10.0, 10.0], [11.0, 10.0], [100.0, 50.0]])

    found_A2 = EvolvedKmeans(generations=20, starts=1).search(sizes_N2, perfect_A2, generator())

    assert anchor_fit(sizes_N2, found_A2).fitness == 1.0


def test_each_generation_fits_no_worse() -> None:
    sizes_N2 = torch.rand(80, 2, generator=generator(2)) * 200 + 2
    start_SA2 = torch.rand(4, 5, 2, generator=generator(3)) * 200 + 2

    few, many = (EvolvedKmeans(generations=n).evolved(sizes_N2, start_SA2, generator(4)) for n in (5, 60))

    for before, after, later in zip(start_SA2, few, many, strict=True):
        fits = [anchor_fit(sizes_N2, each).fitness for each in (before, after, later)]
        assert fits == sorted(fits)


def test_boxes_of_one_size_are_met() -> None:
    sizes_N2 = torch.full((9, 2), 32.0)

    for search in SEARCHES:
        found_A2 = search.search(sizes_N2, torch.tensor([[100.0, 10.0], [100.0, 100.0]]), generator())
        assert anchor_fit(sizes_N2, found_A2).fitness == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": -1}, "generations must be at least 0, got -1"),
        ({"starts": 0}, "starts and iterations must be at least 1"),
        ({"threshold": 1.0}, "threshold must be above 1, got 1.0"),
        ({"min_recall": 1.5}, "min_recall must be between 0 and 1, got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EvolvedKmeans(**settings)  # type: ignore[arg-type] # one table for settings of two types
