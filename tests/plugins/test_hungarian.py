"""Optimal one-to-one assignment against dense matchings of each image, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from detloom.errors import RecipeError
from detloom.ops.ranking import smallest
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins import hungarian
from detloom_plugins.hungarian import HungarianAssigner, cheapest, cheapest_matching


def slow_costs(predictions: Predictions, wanted: Targets, *, inside: bool = False) -> Tensor:
    """Return the cost of every target and every prior of its image, written as the paper does."""
    rows = []
    size_4 = torch.tensor([wanted.image_size[1], wanted.image_size[0]] * 2)
    for image, label, box_4 in zip(wanted.image_T.tolist(), wanted.labels_T.tolist(), wanted.boxes_T4, strict=True):
        boxes_P4 = predictions.boxes_BP4[image]
        score_P = predictions.class_logits_BPC[image, :, label].sigmoid()
        if predictions.objectness_BP is not None:
            score_P = score_P * predictions.objectness_BP[image].sigmoid()
        difference_P4 = (box_convert(boxes_P4, "xyxy", "cxcywh") - box_convert(box_4, "xyxy", "cxcywh")) / size_4
        giou_P = generalized_box_iou(boxes_P4, box_4[None])[:, 0]
        cost_P = -score_P + 5 * difference_P4.abs().sum(dim=1) - 2 * giou_P
        if inside:
            x_P, y_P = predictions.priors.centers_P2.T
            is_inside_P = (x_P > box_4[0]) & (x_P < box_4[2]) & (y_P > box_4[1]) & (y_P < box_4[3])
            cost_P = cost_P.masked_fill(~is_inside_P, 1e6)
        rows.append(cost_P)
    return torch.stack(rows) if rows else torch.zeros(0, predictions.priors.num_priors)


def check_optimal(result: Assignment, cost_TP: Tensor, wanted: Targets, *, limit: float = math.inf) -> None:
    """Hold that the matches are one-to-one, as many as can be, and cost no more than the best of each image."""
    assert len(set(result.target_M.tolist())) == result.num_matches
    places = list(zip(result.image_M.tolist(), result.prior_M.tolist(), strict=True))
    assert len(set(places)) == result.num_matches
    assert torch.equal(wanted.image_T[result.target_M], result.image_M)
    for image in range(wanted.num_images):
        costs = cost_TP[wanted.image_T == image].double().numpy()
        row, column = linear_sum_assignment(costs)
        expected = costs[row, column][costs[row, column] < limit]
        mine_M = result.image_M == image
        mine = cost_TP[result.target_M[mine_M], result.prior_M[mine_M]].double().sum().item()
        assert int(mine_M.sum()) == len(expected)
        assert mine == pytest.approx(expected.sum(), abs=1e-4)


@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_matches_cost_as_little_as_dense_matchings(scene: Any, seed: int, *, objectness: bool) -> None:
    predictions = scene.predictions(3, seed=seed, objectness=objectness, points=seed % 2 == 0)
    wanted = scene.random_targets(3, seed=seed, most=20)

    result = HungarianAssigner().assign(predictions, wanted)

    check_optimal(result, slow_costs(predictions, wanted), wanted)
    assert result.num_matches == wanted.num_targets
    assert result.quality_M.eq(1).all()


def test_matches_at_the_limits_cost_as_little_as_dense_matchings(
    scene: Any, edge_batch: list[list[tuple[float, ...]]]
) -> None:
    # Points are fewer than hundreds of objects: 120 a picture.
    predictions, wanted = scene.predictions(len(edge_batch), points=True), scene.targets(edge_batch)

    result = HungarianAssigner().assign(predictions, wanted)

    check_optimal(result, slow_costs(predictions, wanted), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_matches_inside_the_targets_cost_as_little_as_dense_matchings(scene: Any, seed: int) -> None:
    predictions, wanted = scene.predictions(3, seed=seed), scene.random_targets(3, seed=seed, most=20)

    result = HungarianAssigner(inside=True).assign(predictions, wanted)

    check_optimal(result, slow_costs(predictions, wanted, inside=True), wanted, limit=1e5)
    center_M2, box_M4 = predictions.priors.centers_P2[result.prior_M], wanted.boxes_T4[result.target_M]
    assert ((center_M2 > box_M4[:, :2]) & (center_M2 < box_M4[:, 2:])).all()


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], np.ndarray[Any, Any]]:
    # Few distinct costs, and as many objects as priors, make contention and ties.
    counts = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    priors = draw(st.integers(1, 8))
    costs = draw(st.lists(st.integers(-6, 6), min_size=sum(counts) * priors, max_size=sum(counts) * priors))
    return counts, np.array(costs, dtype=np.float32).reshape(sum(counts), priors) / 4


@settings(deadline=None, max_examples=300)
@given(tables())
def test_sparse_matching_of_the_batch_is_as_cheap_as_dense_ones(table: tuple[list[int], Any]) -> None:
    counts, cost_TP = table
    num_priors = cost_TP.shape[1]
    image_T = np.repeat(np.arange(len(counts)), counts)
    if not len(image_T):
        return
    most = min(max(counts), num_priors)
    prior_TK = np.argsort(cost_TP, axis=1, kind="stable")[:, :most]
    cost_TK = np.take_along_axis(cost_TP, prior_TK, axis=1)
    # Of an image with n objects the n cheapest alone are given.
    cost_TK[np.arange(most) >= np.array(counts)[image_T, None]] = np.inf

    place_T = cheapest_matching(cost_TK, image_T[:, None] * num_priors + prior_TK)

    taken = place_T[place_T >= 0]
    assert len(set(taken)) == len(taken)
    for image in range(len(counts)):
        of_image = image_T == image
        row, column = linear_sum_assignment(cost_TP[of_image])
        is_matched = of_image & (place_T >= 0)
        assert is_matched.sum() == len(row)
        assert (place_T[is_matched] // num_priors == image).all()
        mine = cost_TP[is_matched, place_T[is_matched] % num_priors].sum()
        assert mine == pytest.approx(cost_TP[of_image][row, column].sum())


def test_contended_prior_goes_where_the_sum_is_least() -> None:
    # Both want place 0 most; the second would lose more by its other one.
    place_T = cheapest_matching(np.array([[1.0, 1.5], [1.1, 4.0]], dtype=np.float32), np.array([[0, 1], [0, 2]]))

    assert place_T.tolist() == [1, 0]


def test_target_takes_a_dear_place_rather_than_none() -> None:
    costs = np.array([[0.0, 0.0], [0.0, np.inf], [1e4, np.inf]], dtype=np.float32)

    place_T = cheapest_matching(costs, np.array([[0, 1], [0, 1], [1, 0]]))

    # Two places for three: the dear one has place 1 only if that leaves nobody else without.
    assert sorted(place_T.tolist()) == [-1, 0, 1]
    assert place_T[2] == -1


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3), st.integers(1, 400), st.integers(1, 6), st.integers(0, 1000))
def test_cheapest_are_those_of_a_full_ranking(rows: int, width: int, count: int, seed: int) -> None:
    # Few distinct values: ties within and between chunks.
    values = torch.randint(0, 5, (rows, width), generator=torch.Generator().manual_seed(seed)).float()
    values[values == 4] = torch.inf
    count = min(count, width)

    assert torch.equal(cheapest(values, count), smallest(values, count))


@pytest.mark.parametrize("name", ["PAIRS_AT_ONCE", "PAIRS_IN_CACHE"])
def test_blocks_change_nothing(scene: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    predictions, wanted = scene.predictions(3), scene.random_targets(3, seed=2, most=10)
    whole = HungarianAssigner().assign(predictions, wanted)

    monkeypatch.setattr(hungarian, name, 500)

    assert scene.rows(HungarianAssigner().assign(predictions, wanted)) == scene.rows(whole)


@pytest.mark.parametrize("seed", range(8))
def test_order_of_targets_does_not_matter(scene: Any, seed: int) -> None:
    predictions, wanted = scene.predictions(1), scene.random_targets(1, seed=seed, most=20)
    back = Targets.from_lists([wanted.boxes_T4.flip(0)], [wanted.labels_T.flip(0)], scene.size)

    straight, other = HungarianAssigner().assign(predictions, wanted), HungarianAssigner().assign(predictions, back)

    last = wanted.num_targets - 1
    assert scene.rows(straight) == sorted((b, p, last - t) for b, p, t in scene.rows(other))


def test_equal_targets_have_different_priors(scene: Any) -> None:
    box = (0, 20, 20, 40, 40)

    result = HungarianAssigner().assign(scene.predictions(1), scene.targets([[box] * 4]))

    assert sorted(result.target_M.tolist()) == [0, 1, 2, 3]
    assert len(set(result.prior_M.tolist())) == 4


def test_more_objects_than_priors_leave_some_without() -> None:
    priors = Priors.on_grids([(1, 2)], [32], torch.full((1, 1, 2), 32.0))
    predictions = Predictions(priors.boxes_P4[None], torch.zeros(1, 2, 1), None, priors)
    wanted = Targets.from_lists(
        [torch.tensor([[0.0, 0.0, 8.0 * i, 32.0] for i in range(1, 6)])], [torch.zeros(5)], (32, 64)
    )

    result = HungarianAssigner().assign(predictions, wanted)

    check_optimal(result, slow_costs(predictions, wanted), wanted)
    assert result.num_matches == 2


def test_soft_labels_are_the_overlaps_of_the_predicted_boxes(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(0, 20, 20, 40, 40), (1, 0, 0, 60, 60)]])

    result = HungarianAssigner(soft_labels=True).assign(predictions, wanted)

    iou_MT = box_iou(predictions.boxes_BP4[0, result.prior_M], wanted.boxes_T4)
    torch.testing.assert_close(result.quality_M, iou_MT.gather(1, result.target_M[:, None])[:, 0])
    assert result.quality_M.dtype == torch.float32


@pytest.mark.parametrize("part", ["boxes_BP4", "class_logits_BPC", "objectness_BP"])
@pytest.mark.parametrize("where", [slice(None), slice(7, 8)], ids=["everywhere", "at one prior"])
def test_nan_makes_every_target_of_the_image_a_match_of_quality_nan(scene: Any, part: str, where: slice) -> None:
    predictions = scene.predictions(2)
    getattr(predictions, part)[0, where] = torch.nan
    box = (0, 20, 20, 40, 40)

    result = HungarianAssigner().assign(predictions, scene.targets([[box, box, (1, 0, 0, 60, 60)], [box]]))

    assert sorted(result.target_M[result.quality_M.isnan()].tolist()) == [0, 1, 2]
    assert result.target_M[~result.quality_M.isnan()].tolist() == [3]


def test_matches_are_the_same_under_autocast(scene: Any) -> None:
    predictions, wanted = scene.predictions(2), scene.random_targets(2, seed=3)
    plain = HungarianAssigner(soft_labels=True).assign(predictions, wanted)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = HungarianAssigner(soft_labels=True).assign(predictions, wanted)

    assert scene.rows(under) == scene.rows(plain)
    assert torch.equal(under.quality_M, plain.quality_M)


def test_it_says_that_it_is_one_to_one_and_has_no_relaxed_form() -> None:
    assert HungarianAssigner.one_to_one
    assert HungarianAssigner().relaxed() is None


@pytest.mark.parametrize("name", ["class_weight", "distance_weight", "overlap_weight"])
def test_negative_weights_are_named(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} must not be negative, got -1.0; published is"):
        HungarianAssigner(**{name: -1.0})  # type: ignore[arg-type]  # one of several settings


def test_weights_decide_what_counts(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(1, 20, 20, 40, 40)]])

    by_class = HungarianAssigner(distance_weight=0.0, overlap_weight=0.0).assign(predictions, wanted)
    by_overlap = HungarianAssigner(class_weight=0.0, distance_weight=0.0).assign(predictions, wanted)

    score_P = predictions.class_logits_BPC[0, :, 1].sigmoid() * predictions.objectness_BP[0].sigmoid()
    giou_P = generalized_box_iou(predictions.boxes_BP4[0], wanted.boxes_T4)[:, 0]
    assert by_class.prior_M.tolist() == [int(score_P.argmax())]
    assert by_overlap.prior_M.tolist() == [int(giou_P.argmax())]
