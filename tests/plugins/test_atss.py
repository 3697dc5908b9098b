"""ATSS against a slow reference and by hand."""

import math
from typing import Any

import pytest
import torch
from assignment_cases import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import Predictions, Priors, Targets
from detloom_plugins.atss import AtssAssigner, nearest_priors

HEIGHT, WIDTH = 128, 192
ANCHORS_LA2 = torch.tensor([[[16.0, 16.0], [32.0, 16.0]], [[24.0, 40.0], [64.0, 64.0]]])
POINTS_LA2 = torch.tensor([[[40.0, 40.0]], [[80.0, 80.0]]])


def predictions(num_images: int, sizes_LA2: Tensor = POINTS_LA2) -> Predictions:
    """Return predictions that are their priors."""
    priors = Priors.on_grids([(16, 24), (8, 12)], (8, 16), sizes_LA2)
    shape = (num_images, priors.num_priors)
    return Predictions(priors.boxes_P4.expand(num_images, -1, 4).clone(), torch.zeros(*shape, 3), None, priors)


def targets(per_image: list[list[tuple[float, ...]]]) -> Targets:
    """Return targets of class 0 given by their corners."""
    boxes = [torch.tensor(image).reshape(-1, 4).float() for image in per_image]
    return Targets.from_lists(boxes, [torch.zeros(len(each)) for each in boxes], (HEIGHT, WIDTH))


def slow_nearest(priors: Priors, center_2: Tensor, cells: int) -> list[int]:
    """Return the nearest priors of each level, by sorting them all."""
    found: list[int] = []
    for grid in priors.grids:
        distance = (priors.centers_P2[grid.span] / grid.stride - center_2 / grid.stride).square().sum(dim=1)
        count = min(cells * grid.per_cell, grid.num_priors)
        found += [grid.start + i for i in distance.sort(stable=True).indices[:count].tolist()]
    return found


def slow_assignment(priors: Priors, wanted: Targets) -> list[tuple[int, int, int]]:
    """Return what is matched, one target after the other."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for target, (image, box_4) in enumerate(zip(wanted.image_T.tolist(), wanted.boxes_T4, strict=True)):
        chosen = torch.tensor(slow_nearest(priors, (box_4[:2] + box_4[2:]) / 2, 9))
        iou_K = box_iou(priors.boxes_P4[chosen], box_4[None])[:, 0]
        threshold = iou_K.mean() + iou_K.std()
        for prior, iou in zip(chosen.tolist(), iou_K, strict=True):
            x, y = priors.centers_P2[prior].tolist()
            x1, y1, x2, y2 = box_4.tolist()
            is_inside = x1 < x < x2 and y1 < y < y2
            # Within rounding of the threshold either is right.
            if is_inside and iou >= threshold and iou.item() > best.get((image, prior), (-1.0, 0))[0]:
                best[image, prior] = (iou.item(), target)
    return sorted((image, prior, target) for (image, prior), (_, target) in best.items())


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, ...]:
    # Thirds keep overlaps away from ties with the threshold.
    x1, y1 = draw(st.integers(0, WIDTH - 8)), draw(st.integers(0, HEIGHT - 8))
    x2, y2 = draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT))
    return (x1 + 0.3, y1 + 0.37, x2 - 0.13, y2 - 0.21)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(boxes(), max_size=4), min_size=1, max_size=3), st.sampled_from([ANCHORS_LA2, POINTS_LA2]))
def test_matches_are_those_of_the_slow_reference(batch: list[list[tuple[float, ...]]], sizes_LA2: Tensor) -> None:
    given_predictions = predictions(len(batch), sizes_LA2)

    result = AtssAssigner().assign(given_predictions, targets(batch))

    assert rows(result) == slow_assignment(given_predictions.priors, targets(batch))


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)),
    st.integers(1, 30),
)
def test_nothing_outside_the_window_is_nearer(shape: tuple[int, int], place: tuple[float, float], cells: int) -> None:
    priors = Priors.on_grids([shape], [8], torch.ones(1, 1, 2))
    center_2 = torch.tensor([place[0] * shape[1] * 8, place[1] * shape[0] * 8])

    found = nearest_priors(priors, center_2[None], cells)[0]

    distance_P = (priors.centers_P2 - center_2).norm(dim=1)
    expected = distance_P.sort().values[: min(cells, math.prod(shape))]
    torch.testing.assert_close(distance_P[found].sort().values, expected)


def test_equally_near_cells_are_taken_by_row_then_column() -> None:
    priors = Priors.on_grids([(4, 4)], [8], torch.ones(1, 1, 2))

    found = nearest_priors(priors, torch.tensor([[16.0, 16.0]]), 3)

    assert found.tolist() == [[5, 6, 9]]


@settings(deadline=None, max_examples=30)
@given(st.lists(boxes(), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_of_targets_does_not_matter(image: list[tuple[float, ...]], random: Any) -> None:
    order = list(range(len(image)))
    random.shuffle(order)

    straight = AtssAssigner().assign(predictions(1), targets([image]))
    shuffled = AtssAssigner().assign(predictions(1), targets([[image[i] for i in order]]))

    # A prior that overlaps two targets equally goes to the first: what is compared is that it is taken.
    assert [row[:2] for row in rows(straight)] == [row[:2] for row in rows(shuffled)]


def test_prior_of_several_targets_learns_the_one_it_overlaps_most() -> None:
    small, large = (60.0, 40.0, 100.0, 80.0), (50.0, 30.0, 110.0, 90.0)

    result = AtssAssigner().assign(predictions(1), targets([[large, small]]))

    prior_of_small = 7 * 24 + 9  # centre (76, 60)
    assert (0, prior_of_small, 1) in rows(result)
    assert len(set(result.prior_M.tolist())) == result.num_matches


def test_equal_targets_count_as_the_first() -> None:
    box = (60.0, 40.0, 100.0, 80.0)

    result = AtssAssigner().assign(predictions(1), targets([[box, box]]))

    assert set(result.target_M.tolist()) == {0}


def test_thin_box_between_the_centres_has_no_positives() -> None:
    result = AtssAssigner().assign(predictions(1), targets([[(64.0, 64.0, 65.0, 65.0)]]))

    assert result.num_matches == 0


def test_box_larger_than_the_image_has_its_largest_anchors() -> None:
    result = AtssAssigner().assign(predictions(1, ANCHORS_LA2), targets([[(-20.0, -20.0, WIDTH + 20, HEIGHT + 20)]]))

    assert result.num_matches == 9
    assert all(prior >= 16 * 24 * 2 and prior % 2 == 1 for prior in result.prior_M.tolist())


@pytest.mark.parametrize("batch", [[[]], [[], []]])
def test_batch_without_objects_has_no_matches(batch: list[list[tuple[float, ...]]]) -> None:
    assert AtssAssigner().assign(predictions(len(batch)), targets(batch)).num_matches == 0


def test_labels_are_hard_unless_asked() -> None:
    box = (60.0, 40.0, 100.0, 80.0)

    hard = AtssAssigner().assign(predictions(1), targets([[box]]))
    soft = AtssAssigner(soft_labels=True).assign(predictions(1), targets([[box]]))

    assert hard.quality_M.tolist() == [1.0] * hard.num_matches
    overlap_M = box_iou(predictions(1).boxes_BP4[0, soft.prior_M], torch.tensor([box]))[:, 0]
    torch.testing.assert_close(soft.quality_M, overlap_M)


def test_nan_in_the_predictions_makes_soft_labels_nan() -> None:
    given_predictions = predictions(1)
    given_predictions.boxes_BP4.fill_(torch.nan)

    result = AtssAssigner(soft_labels=True).assign(given_predictions, targets([[(60.0, 40.0, 100.0, 80.0)]]))

    assert result.num_matches > 0
    assert result.quality_M.isnan().all()


def test_single_candidate_deviates_by_nothing() -> None:
    priors = Priors.on_grids([(1, 1)], [16], torch.full((1, 1, 2), 16.0))
    given_predictions = Predictions(priors.boxes_P4[None], torch.zeros(1, 1, 3), None, priors)

    result = AtssAssigner(candidates=1).assign(given_predictions, targets([[(2.0, 2.0, 14.0, 14.0)]]))

    assert rows(result) == [(0, 0, 0)]


def test_relaxed_form_has_more_positives() -> None:
    wanted = targets([[(60.0, 40.0, 130.0, 110.0), (10.0, 20.0, 60.0, 90.0)]])
    strict = AtssAssigner(soft_labels=True)

    relaxed = strict.relaxed()

    assert relaxed.assign(predictions(1), wanted).num_matches > strict.assign(predictions(1), wanted).num_matches
    assert relaxed.soft_labels


def test_candidates_below_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="candidates must be at least 1, got 0"):
        AtssAssigner(candidates=0)
