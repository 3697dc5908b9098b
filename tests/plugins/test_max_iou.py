"""Assignment by overlap against a slow reference and by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.max_iou import MaxIouAssigner

Rows = set[tuple[int, int, int]]


def slow_assignment(
    priors: Priors, wanted: Targets, *, positive: float = 0.5, negative: float = 0.4
) -> tuple[Rows, set[tuple[int, int]]]:
    """Return matches and ignored priors without claims, all overlaps in full."""
    matches, ignored = set(), set()
    for image in range(wanted.num_images):
        target_G = (wanted.image_T == image).nonzero()[:, 0]
        if len(target_G) == 0:
            continue
        iou_GP = box_iou(wanted.boxes_T4[target_G], priors.boxes_P4)
        for prior, iou_G in enumerate(iou_GP.T):
            # Rounding must not decide which of two equal targets comes first.
            best = int((iou_G >= iou_G.max() - 1e-6).nonzero()[0, 0])
            if iou_G[best] >= positive:
                matches.add((image, prior, int(target_G[best])))
            elif iou_G[best] >= negative:
                ignored.add((image, prior))
    return matches, ignored


def ignored(assignment: Assignment) -> set[tuple[int, int]]:
    """Return image and prior of what is ignored."""
    assert assignment.ignored_BP is not None
    return {(image, prior) for image, prior in assignment.ignored_BP.nonzero().tolist()}


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_matches_are_those_of_the_slow_reference(scene: Any, seed: int, *, points: bool) -> None:
    predictions, wanted = scene.predictions(3, points=points), scene.random_targets(3, seed=seed)

    result = MaxIouAssigner(keep_best=False).assign(predictions, wanted)

    assert (set(scene.rows(result)), ignored(result)) == slow_assignment(predictions.priors, wanted)


def test_matches_at_the_limits_are_those_of_the_slow_reference(
    scene: Any, edge_batch: list[list[tuple[float, ...]]]
) -> None:
    predictions, wanted = scene.predictions(len(edge_batch)), scene.targets(edge_batch)

    # Limits that no overlap of these boxes meets exactly.
    result = MaxIouAssigner(positive=0.5003, negative=0.4003, keep_best=False).assign(predictions, wanted)

    expected = slow_assignment(predictions.priors, wanted, positive=0.5003, negative=0.4003)
    assert (set(scene.rows(result)), ignored(result)) == expected


def check_claims(scene: Any, predictions: Predictions, wanted: Targets) -> None:
    """Hold that each target has its best prior, unless that is the best of another, which overlaps it as much."""
    without = set(scene.rows(MaxIouAssigner(keep_best=False).assign(predictions, wanted)))

    result = MaxIouAssigner().assign(predictions, wanted)

    owner = {(image, prior): target for image, prior, target in scene.rows(result)}
    assert len(owner) == result.num_matches
    iou_TP = box_iou(wanted.boxes_T4, predictions.priors.boxes_P4)
    # Within rounding any of the best may be meant.
    best = [set((iou_P >= iou_P.max() - 1e-6).nonzero()[:, 0].tolist()) for iou_P in iou_TP]
    for target, image in enumerate(wanted.image_T.tolist()):
        owners = {owner[image, prior] for prior in best[target] if (image, prior) in owner}
        assert target in owners or any(
            best[rival] & best[target] and iou_TP[rival].max() >= iou_TP[target].max() - 1e-6 for rival in owners
        )
    # Nothing but the claims differs from the assignment without.
    assert len(set(scene.rows(result)) - without) <= wanted.num_targets


def test_claims_at_the_limits(scene: Any, edge_batch: list[list[tuple[float, ...]]]) -> None:
    check_claims(scene, scene.predictions(len(edge_batch)), scene.targets(edge_batch))


@pytest.mark.parametrize("seed", range(10))
def test_every_target_claims_its_best_prior(scene: Any, seed: int) -> None:
    check_claims(scene, scene.predictions(2), scene.random_targets(2, seed=seed))


def lone(sizes: list[list[float]], shape: tuple[int, int] = (4, 4)) -> Predictions:
    """Return predictions that are their priors, on one level of stride 16."""
    priors = Priors.on_grids([shape], [16], torch.tensor([sizes]))
    return Predictions(priors.boxes_P4[None], torch.zeros(1, priors.num_priors, 1), None, priors)


def boxes(*corners: tuple[float, ...]) -> Targets:
    """Return objects of one image."""
    return Targets.from_lists([torch.tensor(corners)], [torch.zeros(len(corners))], (64, 64))


def test_target_takes_its_best_prior_from_one_that_overlaps_it_more() -> None:
    predictions = lone([[16.0, 16.0]])
    # Prior 5 is (16..32, 16..32). The first target fills it and half of prior 6; the second, small and
    # inside prior 5, has no other.
    wanted = boxes((16.0, 16.0, 32.0, 32.0), (18.0, 18.0, 22.0, 22.0))

    kept = MaxIouAssigner().assign(predictions, wanted)
    alone = MaxIouAssigner().assign(predictions, boxes((18.0, 18.0, 22.0, 22.0)))

    # Both have it as their best: it goes where it overlaps most.
    assert (kept.prior_M.tolist(), kept.target_M.tolist()) == ([5], [0])
    assert alone.prior_M.tolist() == [5]


def test_claim_comes_before_a_larger_overlap_that_is_not_the_targets_best() -> None:
    predictions = lone([[16.0, 16.0], [16.0, 20.0]])
    # The first target is prior 11 (cell 5, tall); it overlaps prior 10 by 0.8. The second has prior 10 as its best.
    wanted = boxes((16.0, 14.0, 32.0, 34.0), (16.0, 16.0, 32.0, 26.0))

    kept = MaxIouAssigner().assign(predictions, wanted)
    without = MaxIouAssigner(keep_best=False).assign(predictions, wanted)

    assert dict(zip(kept.prior_M.tolist(), kept.target_M.tolist(), strict=True)) == {10: 1, 11: 0}
    assert dict(zip(without.prior_M.tolist(), without.target_M.tolist(), strict=True)) == {10: 0, 11: 0}


def test_of_priors_that_hold_a_target_the_nearest_is_the_best() -> None:
    # All four priors in the middle hold the target, which lies nearest to the centre of cell 10.
    result = MaxIouAssigner().assign(lone([[48.0, 48.0]]), boxes((33.0, 33.0, 37.0, 37.0)))

    assert result.prior_M.tolist() == [10]


def test_equal_targets_count_as_the_first(scene: Any) -> None:
    box = (0, 20, 20, 40, 40)

    result = MaxIouAssigner().assign(scene.predictions(1), scene.targets([[box, box]]))

    assert set(result.target_M.tolist()) == {0}


@pytest.mark.parametrize("seed", range(10))
def test_order_of_targets_does_not_matter(scene: Any, seed: int) -> None:
    predictions, wanted = scene.predictions(1), scene.random_targets(1, seed=seed, most=10)
    back = Targets.from_lists([wanted.boxes_T4.flip(0)], [wanted.labels_T.flip(0)], scene.size)

    straight, other = MaxIouAssigner().assign(predictions, wanted), MaxIouAssigner().assign(predictions, back)

    last = wanted.num_targets - 1
    assert scene.rows(straight) == sorted((b, p, last - t) for b, p, t in scene.rows(other))
    assert ignored(straight) == ignored(other)


def test_soft_labels_are_the_overlaps_of_the_predicted_boxes(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(0, 20, 20, 40, 40), (1, 0, 0, 60, 60)]])

    result = MaxIouAssigner(soft_labels=True).assign(predictions, wanted)

    iou_MT = box_iou(predictions.boxes_BP4[0, result.prior_M], wanted.boxes_T4)
    torch.testing.assert_close(result.quality_M, iou_MT.gather(1, result.target_M[:, None])[:, 0])
    assert result.quality_M.dtype == torch.float32


def test_nan_in_the_predictions_makes_soft_labels_nan(scene: Any) -> None:
    predictions = scene.predictions(2)
    predictions.boxes_BP4[0] = math.nan

    result = MaxIouAssigner(soft_labels=True).assign(predictions, scene.targets([[(0, 20, 20, 40, 40)]] * 2))

    assert set(result.image_M.tolist()) == {0, 1}
    assert (result.quality_M.isnan() == (result.image_M == 0)).all()


def test_relaxed_form_makes_positive_what_was_ignored(scene: Any) -> None:
    predictions, wanted = scene.predictions(3), scene.random_targets(3, seed=1)
    strict = MaxIouAssigner(keep_best=False)
    relaxed = strict.relaxed()
    assert relaxed is not None

    fine, coarse = strict.assign(predictions, wanted), relaxed.assign(predictions, wanted)

    assert coarse.ignored_BP is None
    assert {row[:2] for row in scene.rows(coarse)} == {row[:2] for row in scene.rows(fine)} | ignored(fine)
    assert relaxed.relaxed() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive": 0.0}, r"positive must lie in \(0, 1\], got 0.0"),
        ({"positive": 1.5}, r"positive must lie in \(0, 1\], got 1.5"),
        ({"negative": 0.0}, "negative must lie above 0 .* got 0.0"),
        ({"negative": 0.6}, r"not above positive \(0.5\), got 0.6"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MaxIouAssigner(**settings)  # type: ignore[arg-type]  # one of several settings


def test_matches_are_the_same_under_autocast(scene: Any) -> None:
    predictions, wanted = scene.predictions(2), scene.random_targets(2, seed=3)
    assign: Callable[[Predictions, Targets], Assignment] = MaxIouAssigner(soft_labels=True).assign

    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = assign(predictions, wanted)

    quality_M: Tensor = assign(predictions, wanted).quality_M
    assert torch.equal(under.quality_M, quality_M)
