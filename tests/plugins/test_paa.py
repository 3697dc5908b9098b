"""Probabilistic anchor assignment against a slow reference, by its properties and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import Predictions, Targets
from detloom_plugins import overlap_windows
from detloom_plugins.paa import EQUALLY_LIKELY, ITERATIONS, PaaAssigner, fit_mixture, is_positive

BATCHES = [(seed, points, objectness) for seed in range(8) for points in (False, True) for objectness in (False, True)]


def slow_positives(costs: list[float], iterations: int = ITERATIONS) -> list[int]:
    """Return which of some costs are positive: the mixture of one target in float64, as the paper says it."""
    values = np.array(costs, dtype=np.float64)
    if len(values) < 2:
        return list(range(len(values)))

    def densities() -> Any:
        return [w * np.exp(-((values - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for m, v, w in components]

    components = [(values.min(), 1.0, 0.5), (values.max(), 1.0, 0.5)]
    for _ in range(iterations):
        low, high = densities()
        share = low / (low + high)
        components = []
        for part in (share, 1 - share):
            count = part.sum() + 1e-7
            mean = (part * values).sum() / count
            components.append((mean, (part * (values - mean) ** 2).sum() / count + 1e-6, count / (len(values) + 2e-7)))
    low, high = densities()
    first = [i for i in range(len(values)) if low[i] >= high[i]]
    if not first:
        return []
    most = max(low[i] + high[i] for i in first)
    limit = min(values[i] for i in first if low[i] + high[i] >= most * math.exp(-EQUALLY_LIKELY))
    return [i for i in first if values[i] <= limit]


def slow_assignment(predictions: Predictions, wanted: Targets) -> set[tuple[int, int, int]]:
    """Return the matches, one target after the other, the overlaps of all its pairs in full."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for target, (image, label, box_4) in enumerate(
        zip(wanted.image_T.tolist(), wanted.labels_T.tolist(), wanted.boxes_T4, strict=True)
    ):
        iou_P = box_iou(predictions.priors.boxes_P4, box_4[None])[:, 0]
        cost_P = -predictions.class_logits_BPC[image, :, label].sigmoid().log()
        if predictions.objectness_BP is not None:
            cost_P = cost_P - predictions.objectness_BP[image].sigmoid().log()
        cost_P = cost_P - (box_iou(predictions.boxes_BP4[image], box_4[None])[:, 0] + 1e-8).log()
        chosen: list[int] = []
        for grid in predictions.priors.grids:
            near = [prior for prior in range(grid.span.start, grid.span.stop) if iou_P[prior] >= 0.1]
            chosen += sorted(near, key=lambda prior: float(cost_P[prior]))[:9]
        for column in slow_positives(cost_P[chosen].tolist()):
            cost = float(cost_P[chosen[column]])
            if cost < best.get((image, chosen[column]), (math.inf, 0))[0]:
                best[image, chosen[column]] = (cost, target)
    return {(image, prior, target) for (image, prior), (_, target) in best.items()}


@pytest.mark.parametrize(("seed", "points", "objectness"), BATCHES)
def test_matches_are_those_of_the_slow_reference(scene: Any, seed: int, *, points: bool, objectness: bool) -> None:
    predictions = scene.predictions(3, seed=seed, points=points, objectness=objectness)
    wanted = scene.random_targets(3, seed=seed)

    result = PaaAssigner().assign(predictions, wanted)

    assert set(scene.rows(result)) == slow_assignment(predictions, wanted)
    assert result.quality_M.eq(1).all()


def test_matches_at_the_limits_are_those_of_the_slow_reference(
    scene: Any, edge_batch: list[list[tuple[float, ...]]]
) -> None:
    predictions, wanted = scene.predictions(len(edge_batch)), scene.targets(edge_batch)

    result = PaaAssigner().assign(predictions, wanted)

    assert set(scene.rows(result)) == slow_assignment(predictions, wanted)
    assert len({row[:2] for row in scene.rows(result)}) == result.num_matches


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 4000).map(lambda n: n / 200), max_size=12), min_size=1, max_size=4))
def test_positives_of_each_row_are_those_of_the_slow_reference_in_float64(rows: list[list[float]]) -> None:
    width = max(1, *(len(row) for row in rows)) if rows else 1
    # Columns without a candidate hold a number that must not matter.
    cost_TK = torch.tensor([[*row, *[math.inf] * (width - len(row))] for row in rows])
    is_real_TK = cost_TK.isfinite()

    found_TK = is_positive(cost_TK, is_real_TK)

    mixture = fit_mixture(cost_TK.masked_fill(~is_real_TK, 0.0).double(), is_real_TK)
    first_TK, second_TK = mixture.log_likelihood(cost_TK.masked_fill(~is_real_TK, 0.0).double())
    for row, costs in enumerate(rows):
        columns = found_TK[row].nonzero()[:, 0].tolist()
        # Where two components are alike, or a candidate is just not equally likely, rounding may decide.
        odds_K = (first_TK - second_TK)[row, : len(costs)]
        likely_K = torch.logaddexp(first_TK, second_TK)[row, : len(costs)][odds_K >= 0].sort(descending=True).values
        is_tight = bool((odds_K.abs() < 1e-3).any())
        is_tight |= bool(((likely_K[:1] - likely_K - EQUALLY_LIKELY).abs() < EQUALLY_LIKELY / 2).any())
        if not is_tight:
            assert columns == slow_positives(costs)


def test_positives_are_the_cheapest_of_their_component() -> None:
    cost_TK = torch.tensor([[1.0, 1.1, 0.9, 1.2, 6.0, 6.1, 5.9, 6.2]])

    found_TK = is_positive(cost_TK, torch.ones_like(cost_TK, dtype=torch.bool))

    # The component about 1.05 is likeliest at 1.0 and 1.1; what costs more is negative though it belongs to it.
    assert found_TK[0, 2]
    assert found_TK[0, 0]
    assert not found_TK[0, 3:].any()


@pytest.mark.parametrize(("costs", "expected"), [([3.0], [True]), ([2.0, 2.0, 2.0], [True] * 3), ([], [])])
def test_few_or_equal_candidates_are_positive(costs: list[float], expected: list[bool]) -> None:
    cost_TK = torch.tensor([costs, [0.5] * len(costs)])
    is_candidate_TK = torch.ones_like(cost_TK, dtype=torch.bool)

    if costs:
        assert is_positive(cost_TK, is_candidate_TK)[0].tolist() == expected


def test_weights_and_moments_are_those_of_two_clear_groups() -> None:
    values_TK = torch.tensor([[0.9, 1.1, 1.0, 9.0, 9.2]])

    mixture = fit_mixture(values_TK, torch.ones_like(values_TK, dtype=torch.bool))

    torch.testing.assert_close(mixture.mean_2T1.flatten(), torch.tensor([1.0, 9.1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(mixture.weight_2T1.flatten(), torch.tensor([0.6, 0.4]), rtol=1e-4, atol=0)
    torch.testing.assert_close(mixture.variance_2T1.flatten(), torch.tensor([0.02 / 3, 0.01]), rtol=1e-2, atol=0)


def test_prior_of_several_targets_goes_where_it_costs_least(scene: Any) -> None:
    predictions = scene.predictions(1)
    predictions.class_logits_BPC[..., 0] = -4.0
    predictions.class_logits_BPC[..., 1] = 4.0
    box = (20, 20, 40, 40)

    result = PaaAssigner().assign(predictions, scene.targets([[(0, *box), (1, *box)]]))

    assert result.num_matches > 0
    assert set(result.target_M.tolist()) == {1}


def test_weight_of_the_overlap_decides_between_class_and_box(scene: Any) -> None:
    predictions = scene.predictions(1)
    box_4 = torch.tensor([20.0, 20.0, 40.0, 40.0])
    wanted = scene.targets([[(0, *box_4.tolist())]])

    by_class = PaaAssigner(overlap_weight=0.0).assign(predictions, wanted)
    by_box = PaaAssigner(overlap_weight=100.0).assign(predictions, wanted)

    def mean_overlap(prior_M: torch.Tensor) -> float:
        return float(box_iou(predictions.boxes_BP4[0, prior_M], box_4[None]).mean())

    def mean_logit(prior_M: torch.Tensor) -> float:
        return float(predictions.class_logits_BPC[0, prior_M, 0].mean())

    assert mean_overlap(by_box.prior_M) > mean_overlap(by_class.prior_M)
    assert mean_logit(by_box.prior_M) < mean_logit(by_class.prior_M)


def test_blocks_change_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, wanted = scene.predictions(3), scene.random_targets(3, seed=2)
    whole = PaaAssigner().assign(predictions, wanted)

    monkeypatch.setattr(overlap_windows, "PAIRS_AT_ONCE", 1)

    assert scene.rows(PaaAssigner().assign(predictions, wanted)) == scene.rows(whole)


@pytest.mark.parametrize("seed", range(8))
def test_order_of_targets_does_not_matter(scene: Any, seed: int) -> None:
    predictions, wanted = scene.predictions(1), scene.random_targets(1, seed=seed, most=10)
    back = Targets.from_lists([wanted.boxes_T4.flip(0)], [wanted.labels_T.flip(0)], scene.size)

    straight, other = PaaAssigner().assign(predictions, wanted), PaaAssigner().assign(predictions, back)

    last = wanted.num_targets - 1
    assert scene.rows(straight) == sorted((b, p, last - t) for b, p, t in scene.rows(other))


def test_equal_targets_count_as_the_first(scene: Any) -> None:
    box = (0, 20, 20, 40, 40)

    result = PaaAssigner().assign(scene.predictions(1), scene.targets([[box, box]]))

    assert set(result.target_M.tolist()) == {0}


def test_soft_labels_are_the_overlaps_of_the_predicted_boxes(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(0, 20, 20, 40, 40), (1, 0, 0, 60, 60)]])

    result = PaaAssigner(soft_labels=True).assign(predictions, wanted)

    iou_MT = box_iou(predictions.boxes_BP4[0, result.prior_M], wanted.boxes_T4)
    torch.testing.assert_close(result.quality_M, iou_MT.gather(1, result.target_M[:, None])[:, 0])
    assert result.quality_M.dtype == torch.float32


@pytest.mark.parametrize("part", ["boxes_BP4", "class_logits_BPC", "objectness_BP"])
def test_nan_makes_every_target_of_the_image_a_match_of_quality_nan(scene: Any, part: str) -> None:
    predictions = scene.predictions(2)
    getattr(predictions, part)[0] = torch.nan
    box = (0, 20, 20, 40, 40)

    result = PaaAssigner().assign(predictions, scene.targets([[box, box, (1, 0, 0, 60, 60)], [box]]))

    assert set(result.target_M[result.quality_M.isnan()].tolist()) == {0, 1, 2}
    assert set(result.target_M[~result.quality_M.isnan()].tolist()) == {3}


def test_single_nan_is_not_passed_over_for_cheaper_priors(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(0, 20, 20, 40, 40)]])
    near_P = box_iou(predictions.priors.boxes_P4, wanted.boxes_T4)[:, 0] >= 0.1
    prior = int(near_P.nonzero()[-1, 0])
    predictions.class_logits_BPC[0, prior, 0] = torch.nan

    result = PaaAssigner(candidates=1).assign(predictions, wanted)

    assert result.quality_M.isnan().all()
    assert prior in result.prior_M.tolist()


def test_relaxed_form_finds_more(scene: Any) -> None:
    predictions, wanted = scene.predictions(8, points=True), scene.random_targets(8, seed=1)

    fine, coarse = PaaAssigner().assign(predictions, wanted), PaaAssigner().relaxed().assign(predictions, wanted)

    assert coarse.num_matches > fine.num_matches


def test_matches_are_the_same_under_autocast(scene: Any) -> None:
    predictions, wanted = scene.predictions(2), scene.random_targets(2, seed=3)
    plain = PaaAssigner(soft_labels=True).assign(predictions, wanted)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = PaaAssigner(soft_labels=True).assign(predictions, wanted)

    assert scene.rows(under) == scene.rows(plain)
    assert torch.equal(under.quality_M, plain.quality_M)


@pytest.mark.parametrize(
    ("name", "value"), [("least_overlap", 0.0), ("least_overlap", 1.5), ("candidates", 0), ("overlap_weight", -1.0)]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {value}"):
        PaaAssigner(**{name: value})  # type: ignore[arg-type]  # one of several settings
