"""The assignment of FCOS against a slow reference and by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from assignment_cases import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import HeadTraits, Predictions, Priors, Targets
from detloom_plugins import fcos
from detloom_plugins.fcos import FcosAssigner, centerness

HEIGHT, WIDTH = 128, 192
ANCHORS_LA2 = torch.tensor([[[16.0, 16.0], [32.0, 16.0]], [[24.0, 40.0], [64.0, 64.0]]])
POINTS_LA2 = torch.tensor([[[40.0, 40.0]], [[80.0, 80.0]]])
BOX = (60.0, 40.0, 100.0, 80.0)


def predictions(num_images: int, sizes_LA2: Tensor = POINTS_LA2) -> Predictions:
    """Return predictions that are their priors, strides 8 and 16."""
    priors = Priors.on_grids([(16, 24), (8, 12)], (8, 16), sizes_LA2)
    shape = (num_images, priors.num_priors)
    return Predictions(priors.boxes_P4.expand(num_images, -1, 4).clone(), torch.zeros(*shape, 3), None, priors)


def targets(per_image: Sequence[Sequence[tuple[float, ...]]]) -> Targets:
    """Return targets of class 0 given by their corners."""
    boxes = [torch.tensor(image).reshape(-1, 4).float() for image in per_image]
    return Targets.from_lists(boxes, [torch.zeros(len(each)) for each in boxes], (HEIGHT, WIDTH))


def slow_assignment(given: Predictions, wanted: Targets, *, radius: float, limit: float) -> list[tuple[int, int, int]]:
    """Return what is matched, one point and one target after the other."""
    found: list[tuple[int, int, int]] = []
    priors = given.priors
    for image in range(given.num_images):
        for prior, (x, y) in enumerate(priors.centers_P2.tolist()):
            low, high = [(0.0, limit), (limit, math.inf)][int(priors.level_P[prior])]
            takers: list[tuple[float, int]] = []
            for target in (wanted.image_T == image).nonzero()[:, 0].tolist():
                x1, y1, x2, y2 = wanted.boxes_T4[target].tolist()
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                away = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) / float(priors.strides_P[prior])
                if min(sides) > 0 and low <= max(sides) <= high and (radius == 0 or away < radius):
                    takers.append(((x2 - x1) * (y2 - y1), target))
            if takers:
                found.append((image, prior, min(takers)[1]))
    return sorted(found)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, ...]:
    x1, y1 = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    return (x1, y1, draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT)))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(boxes(), max_size=4), min_size=1, max_size=3),
    st.sampled_from([ANCHORS_LA2, POINTS_LA2]),
    st.sampled_from([0.0, 1.5, 2.5]),
    st.sampled_from([(), (48.0,)]),
)
def test_matches_are_those_of_the_slow_reference(
    batch: list[list[tuple[float, ...]]], sizes_LA2: Tensor, radius: float, limits: tuple[float, ...]
) -> None:
    given_predictions = predictions(len(batch), sizes_LA2)

    result = FcosAssigner(radius=radius, limits=limits).assign(given_predictions, targets(batch))

    # By default the limit is 8 strides of the first level.
    limit = limits[0] if limits else 64.0
    assert rows(result) == slow_assignment(given_predictions, targets(batch), radius=radius, limit=limit)


def test_a_point_in_several_targets_learns_the_smallest() -> None:
    small, large = (70.0, 50.0, 90.0, 70.0), BOX

    result = FcosAssigner().assign(predictions(1), targets([[large, small]]))

    assert (0, 7 * 24 + 9, 1) in rows(result)  # the point (76, 60)
    assert len(set(result.prior_M.tolist())) == result.num_matches


def test_a_distance_on_the_limit_belongs_to_both_levels() -> None:
    # (60, 60) of the first level is 64 from the right side, (72, 56) of the second 64 from the left one.
    wanted = targets([[(8.0, 40.0, 124.0, 70.0)]])

    matched = set(FcosAssigner(radius=0).assign(predictions(1), wanted).prior_M.tolist())

    assert {7 * 24 + 7, 16 * 24 + 3 * 12 + 4} <= matched


def test_large_targets_are_left_to_the_coarse_level() -> None:
    result = FcosAssigner().assign(predictions(1), targets([[(-20.0, -20.0, WIDTH + 20, HEIGHT + 20)]]))

    assert result.num_matches == 4
    assert all(prior >= 16 * 24 for prior in result.prior_M.tolist())


def test_thin_target_between_the_centres_has_no_positives_and_on_them_it_has() -> None:
    between = FcosAssigner().assign(predictions(1), targets([[(64.0, 64.0, 65.0, 90.0)]]))
    on_them = FcosAssigner().assign(predictions(1), targets([[(67.5, 64.0, 68.5, 90.0)]]))

    assert between.num_matches == 0
    assert on_them.num_matches == 3


def test_target_at_the_border_has_positives_inside_the_grid() -> None:
    wanted = targets([[(WIDTH - 30.0, HEIGHT - 20.0, WIDTH, HEIGHT)]])

    result = FcosAssigner(radius=0).assign(predictions(1), wanted)

    assert rows(result) == slow_assignment(predictions(1), wanted, radius=0, limit=64.0)
    assert result.num_matches > 0


@pytest.mark.parametrize("batch", [[[]], [[], []]], ids=["one image", "two images"])
def test_batch_without_objects_has_no_matches(batch: list[list[tuple[float, ...]]]) -> None:
    result = FcosAssigner().assign(predictions(len(batch)), targets(batch))

    assert result.num_matches == 0
    assert result.quality_M.dtype == torch.float32


def test_equal_targets_count_as_the_first() -> None:
    assert set(FcosAssigner().assign(predictions(1), targets([[BOX, BOX]])).target_M.tolist()) == {0}


@settings(deadline=None, max_examples=30)
@given(st.lists(boxes(), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_of_targets_does_not_matter(image: list[tuple[float, ...]], shuffle: Any) -> None:
    shuffled = shuffle.sample(image, len(image))

    straight = FcosAssigner().assign(predictions(1), targets([image]).in_order())
    other = FcosAssigner().assign(predictions(1), targets([shuffled]).in_order())

    assert rows(straight) == rows(other)


def test_hundreds_of_targets_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place_N4 = torch.rand((300, 4), generator=torch.Generator().manual_seed(0)).tolist()
    image = [(140 * x, 90 * y, 140 * x + 1 + 50 * w, 90 * y + 1 + 36 * h) for x, y, w, h in place_N4]
    whole = FcosAssigner().assign(predictions(2), targets([image, []]))

    monkeypatch.setattr(fcos, "PAIRS_AT_ONCE", 7)
    blocks = FcosAssigner().assign(predictions(2), targets([image, []]))

    assert rows(blocks) == rows(whole)
    assert len(set(whole.prior_M.tolist())) == whole.num_matches > 50


def test_quality_is_one_or_the_centre_ness_or_the_overlap() -> None:
    wanted, centers_P2 = targets([[BOX]]), predictions(1).priors.centers_P2

    hard = FcosAssigner().assign(predictions(1), wanted)
    central = FcosAssigner(soft_labels="centre-ness").assign(predictions(1), wanted)
    soft = FcosAssigner(soft_labels="iou").assign(predictions(1), wanted)

    assert hard.quality_M.eq(1).all()
    x1, y1, x2, y2 = BOX
    for prior, quality in zip(central.prior_M.tolist(), central.quality_M.tolist(), strict=True):
        x, y = centers_P2[prior].tolist()
        across, along = sorted((x - x1, x2 - x)), sorted((y - y1, y2 - y))
        assert quality == pytest.approx(math.sqrt(across[0] / across[1] * along[0] / along[1]))
    overlap_M = box_iou(predictions(1).boxes_BP4[0, soft.prior_M], torch.tensor([BOX]))[:, 0]
    torch.testing.assert_close(soft.quality_M, overlap_M)


def test_centre_ness_is_one_in_the_middle_and_falls_to_the_sides() -> None:
    sides_N4 = torch.tensor([[5.0, 2.0, 5.0, 2.0], [1.0, 2.0, 4.0, 2.0], [0.0, 2.0, 10.0, 2.0]])

    torch.testing.assert_close(centerness(sides_N4), torch.tensor([1.0, 0.5, 0.0]))


def test_nan_in_the_predictions_makes_overlaps_nan_and_concerns_no_other_quality() -> None:
    given_predictions = predictions(1)
    given_predictions.boxes_BP4.fill_(torch.nan)

    soft = FcosAssigner(soft_labels="iou").assign(given_predictions, targets([[BOX]]))
    hard = FcosAssigner().assign(given_predictions, targets([[BOX]]))

    assert soft.num_matches == hard.num_matches > 0
    assert soft.quality_M.isnan().all()
    assert hard.quality_M.eq(1).all()


def test_relaxed_form_has_a_larger_square_or_there_is_none() -> None:
    strict = FcosAssigner(radius=1.0, limits=(48.0,), soft_labels="iou")

    relaxed = strict.relaxed()

    assert relaxed is not None
    assert (relaxed.radius, relaxed.limits, relaxed.soft_labels) == (2.0, (48.0,), "iou")
    assert (
        relaxed.assign(predictions(1), targets([[BOX]])).num_matches
        > strict.assign(predictions(1), targets([[BOX]])).num_matches
    )
    assert FcosAssigner(radius=0).relaxed() is None


def test_limits_must_suit_the_levels() -> None:
    assigner = FcosAssigner(limits=(64.0, 128.0))

    objection = assigner.objection(HeadTraits(anchors=False, objectness=True, levels=4))

    assert objection is not None
    assert "limits has 2 values, and this head has 4 levels: give 3" in objection
    assert assigner.objection(HeadTraits(anchors=False, objectness=True, levels=3)) is None
    assert FcosAssigner().objection(HeadTraits(anchors=False, objectness=True, levels=4)) is None
    with pytest.raises(RecipeError, match="limits has 2 values for 2 levels; give 1"):
        assigner.assign(predictions(1), targets([[BOX]]))


def test_priors_on_some_levels_have_the_limits_of_their_own_levels() -> None:
    strides, sizes_L12 = (8, 16, 32), torch.full((3, 1, 2), 32.0)
    priors = Priors.on_grids([None, (8, 12), (4, 6)], strides, sizes_L12)
    given = Predictions(priors.boxes_P4[None], torch.zeros(1, priors.num_priors, 3), None, priors)
    assigner = FcosAssigner(limits=(8.0, 48.0))

    small = assigner.assign(given, targets([[(70.0, 50.0, 90.0, 70.0)]]))
    large = assigner.assign(given, targets([[(0.0, 0.0, 190.0, 126.0)]]))

    assert set(priors.level_P[small.prior_M].tolist()) == {1}
    assert set(priors.level_P[large.prior_M].tolist()) == {2}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("radius", -1.0, "-1.0"),
        ("limits", (64.0, 64.0), r"\[64.0, 64.0\]"),
        ("limits", (0.0,), r"\[0.0\]"),
        ("soft_labels", "giou", "giou"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any, shown: str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {shown}"):
        FcosAssigner(**{name: value})
