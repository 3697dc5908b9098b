"""Task-aligned assignment against a slow reference and by hand."""

from dataclasses import replace
from functools import partial
from typing import Any

import assignment_cases
import pytest
import torch
from assignment_cases import ANCHORS_LA2, HEIGHT, WIDTH, rows, targets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import Assignment, Predictions, Targets
from detloom_plugins import task_aligned
from detloom_plugins.task_aligned import TaskAlignedAssigner

POINTS_LA2 = torch.tensor([[[32.0, 32.0]], [[64.0, 64.0]]])
BOX = (0.0, 20.0, 20.0, 40.0, 40.0)
CENTRE = 3 * 12 + 3  # the prior of the cell that holds the centre of BOX, on the finer level
predictions = partial(assignment_cases.predictions, sizes_LA2=POINTS_LA2)


def qualities(assignment: Assignment) -> dict[tuple[int, int, int], float]:
    """Return the quality of each match."""
    columns = (assignment.image_M, assignment.prior_M, assignment.target_M)
    keys = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(keys, assignment.quality_M.tolist(), strict=True))


def slow_assignment(given: Predictions, wanted: Targets, *, candidates: int = 13) -> dict[tuple[int, int, int], float]:
    """Return the quality of each match, one target after the other, looking at every prior."""
    claims: dict[tuple[int, int], list[tuple[float, int, float]]] = {}
    for target, (image, label, box_4) in enumerate(
        zip(wanted.image_T.tolist(), wanted.labels_T.tolist(), wanted.boxes_T4, strict=True)
    ):
        iou_P = box_iou(given.boxes_BP4[image], box_4[None])[:, 0]
        score_P = given.class_logits_BPC[image, :, label].sigmoid()
        if given.objectness_BP is not None:
            score_P = score_P * given.objectness_BP[image].sigmoid()
        alignment_P = score_P * iou_P**6
        x1, y1, x2, y2 = box_4.tolist()
        inside = [p for p, (x, y) in enumerate(given.priors.centers_P2.tolist()) if x1 < x < x2 and y1 < y < y2]
        for prior in sorted(inside, key=lambda p: -alignment_P[p].item())[:candidates]:
            claims.setdefault((image, prior), []).append((-iou_P[prior].item(), target, alignment_P[prior].item()))
    matches = {(*place, min(claim)[1]): min(claim) for place, claim in claims.items()}
    found: dict[tuple[int, int, int], float] = {}
    for key, (_, _, alignment) in matches.items():
        own = [match for other, match in matches.items() if other[2] == key[2]]
        found[key] = alignment * max(-iou for iou, _, _ in own) / (max(t for _, _, t in own) + 1e-9)
    return found


@st.composite
def objects(draw: st.DrawFn) -> tuple[float, ...]:
    x1, y1 = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    x2, y2 = draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT))
    return (draw(st.integers(0, 2)), x1 + 0.3, y1 + 0.37, x2 - 0.13, y2 - 0.21)


batches = st.lists(st.lists(objects(), max_size=5), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(batches, st.integers(0, 100), st.sampled_from([ANCHORS_LA2, POINTS_LA2]))
def test_matches_and_qualities_are_those_of_the_slow_reference(
    batch: list[list[tuple[float, ...]]], seed: int, sizes_LA2: Tensor
) -> None:
    given_predictions = predictions(len(batch), seed=seed, sizes_LA2=sizes_LA2)

    result = TaskAlignedAssigner().assign(given_predictions, targets(batch))

    assert qualities(result) == pytest.approx(slow_assignment(given_predictions, targets(batch)), rel=1e-4, abs=1e-6)


def test_best_match_of_a_target_has_its_largest_overlap_as_quality() -> None:
    result = TaskAlignedAssigner().assign(predictions(1), targets([[BOX]]))

    overlap_M = box_iou(predictions(1).boxes_BP4[0, result.prior_M], torch.tensor([BOX[1:]]))[:, 0]
    assert result.quality_M.max().item() == pytest.approx(overlap_M.max().item(), rel=1e-4)
    assert result.quality_M.argmax() == 0


def test_contested_prior_goes_to_the_target_that_its_box_overlaps_most_not_to_the_best_aligned() -> None:
    given_predictions = replace(predictions(1), objectness_BP=None)
    given_predictions.boxes_BP4[0, CENTRE] = torch.tensor(BOX[1:])
    # The prior is sure of class 1, which is that of the other target.
    given_predictions.class_logits_BPC[0, CENTRE] = torch.tensor([-9.0, 9.0, -9.0])
    wanted = targets([[(1.0, 18.0, 18.0, 42.0, 42.0), BOX]])

    result = TaskAlignedAssigner().assign(given_predictions, wanted)

    assert (0, CENTRE, 1) in rows(result)


def test_class_power_of_zero_ranks_by_overlap_alone() -> None:
    given_predictions = predictions(1)
    wanted = targets([[(0.0, 10.0, 10.0, 80.0, 60.0)]])

    result = TaskAlignedAssigner(class_power=0.0, candidates=3).assign(given_predictions, wanted)

    centers_P2 = given_predictions.priors.centers_P2
    is_inside_P = ((centers_P2 > 10) & (centers_P2 < torch.tensor([80.0, 60.0]))).all(dim=1)
    iou_P = box_iou(given_predictions.boxes_BP4[0], wanted.boxes_T4)[:, 0].where(is_inside_P, -1.0)
    assert set(result.prior_M.tolist()) == set(iou_P.topk(3).indices.tolist())


def test_a_target_that_holds_no_centre_has_no_matches() -> None:
    assert TaskAlignedAssigner().assign(predictions(1), targets([[(0.0, 5.0, 0.0, 6.0, 64.0)]])).num_matches == 0


def test_one_pixel_wide_target_on_centres_has_matches() -> None:
    result = TaskAlignedAssigner().assign(predictions(1), targets([[(0.0, 3.5, 0.0, 4.5, 64.0)]]))

    assert set(result.prior_M.tolist()) == {12 * row for row in range(8)}


def test_target_larger_than_the_image_chooses_among_all_priors() -> None:
    result = TaskAlignedAssigner(candidates=500).assign(predictions(1), targets([[(0.0, -9.0, -9.0, 200.0, 200.0)]]))

    assert sorted(result.prior_M.tolist()) == list(range(8 * 12 + 4 * 6))


@pytest.mark.parametrize("batch", [[[]], [[], []]], ids=["one image", "two images"])
def test_batch_without_objects_has_no_matches(batch: list[list[tuple[float, ...]]]) -> None:
    result = TaskAlignedAssigner().assign(predictions(len(batch)), targets(batch))

    assert result.num_matches == 0
    assert result.quality_M.dtype == torch.float32


def test_equal_targets_count_as_the_first() -> None:
    assert set(TaskAlignedAssigner().assign(predictions(1), targets([[BOX, BOX]])).target_M.tolist()) == {0}


def test_images_do_not_see_each_other() -> None:
    image, other = [BOX, (1.0, 22.0, 22.0, 40.0, 50.0)], [(2.0, 21.0, 21.0, 41.0, 41.0)] * 4

    together = TaskAlignedAssigner().assign(predictions(3), targets([other, image, []]))
    alone = TaskAlignedAssigner().assign(predictions(3), targets([[], image, []]))

    assert [(b, p, t - 4) for b, p, t in rows(together) if b == 1] == rows(alone)


@settings(deadline=None, max_examples=30)
@given(st.lists(objects(), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_of_targets_does_not_matter(image: list[tuple[float, ...]], shuffle: Any) -> None:
    shuffled = shuffle.sample(image, len(image))

    straight = TaskAlignedAssigner().assign(predictions(1), targets([image]).in_order())
    other = TaskAlignedAssigner().assign(predictions(1), targets([shuffled]).in_order())

    assert qualities(straight) == qualities(other)


def test_hundreds_of_targets_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    place_N4 = torch.rand((300, 4), generator=torch.Generator().manual_seed(0)).tolist()
    image = [(0.0, 70 * x, 40 * y, 70 * x + 1 + 25 * w, 40 * y + 1 + 23 * h) for x, y, w, h in place_N4]
    whole = TaskAlignedAssigner().assign(predictions(2), targets([image, []]))

    monkeypatch.setattr(task_aligned, "PAIRS_AT_ONCE", 20)
    blocks = TaskAlignedAssigner().assign(predictions(2), targets([image, []]))

    # Powers are rounded otherwise at the ends of tensors.
    assert qualities(blocks) == pytest.approx(qualities(whole), rel=1e-5)
    assert len(set(whole.prior_M.tolist())) == whole.num_matches > 50


def test_heads_without_objectness_are_judged_by_their_classes() -> None:
    given_predictions = replace(predictions(1), objectness_BP=None)
    wanted = targets([[BOX, (1.0, 22.0, 20.0, 44.0, 40.0)]])

    result = TaskAlignedAssigner().assign(given_predictions, wanted)

    assert qualities(result) == pytest.approx(slow_assignment(given_predictions, wanted), rel=1e-4)


def test_hard_labels_are_the_same_matches() -> None:
    soft = TaskAlignedAssigner().assign(predictions(1), targets([[BOX]]))
    hard = TaskAlignedAssigner(soft_labels=False).assign(predictions(1), targets([[BOX]]))

    assert rows(hard) == rows(soft)
    assert hard.quality_M.eq(1).all()


@pytest.mark.parametrize("soft_labels", [False, True])
@pytest.mark.parametrize("part", ["boxes_BP4", "class_logits_BPC", "objectness_BP"])
def test_one_nan_inside_makes_the_quality_nan(part: str, *, soft_labels: bool) -> None:
    given_predictions = predictions(2)
    getattr(given_predictions, part)[0, CENTRE] = torch.nan

    # With one candidate the NaN would be left out, if it did not rank first.
    assigner = TaskAlignedAssigner(candidates=1, soft_labels=soft_labels)
    result = assigner.assign(given_predictions, targets([[BOX], [BOX]]))

    assert set(result.image_M.tolist()) == {0, 1}
    assert result.quality_M[result.image_M == 0].isnan().all()
    assert not result.quality_M[result.image_M == 1].isnan().any()


@pytest.mark.parametrize("soft_labels", [False, True])
def test_a_nan_is_not_lost_with_a_contested_prior(*, soft_labels: bool) -> None:
    given_predictions = predictions(1)
    given_predictions.class_logits_BPC[0, CENTRE, 0] = torch.nan
    given_predictions.boxes_BP4[0, CENTRE] = torch.tensor(BOX[1:])
    # The target of class 1 reads no NaN, and the box of the prior overlaps it most.
    wanted = targets([[(1.0, *BOX[1:]), (0.0, 18.0, 18.0, 44.0, 44.0)]])

    result = TaskAlignedAssigner(soft_labels=soft_labels).assign(given_predictions, wanted)

    assert result.quality_M[result.target_M == 1].isnan().any()
    assert not result.quality_M[result.target_M == 0].isnan().any()


def test_autocast_changes_nothing() -> None:
    wanted = targets([[BOX, (1.0, 50.0, 20.0, 74.0, 44.0)]])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = TaskAlignedAssigner().assign(predictions(1), wanted)

    assert qualities(result) == qualities(TaskAlignedAssigner().assign(predictions(1), wanted))


def test_relaxed_form_takes_twice_as_many() -> None:
    wanted = targets([[(0.0, 10.0, 6.0, 80.0, 60.0)]])
    strict = TaskAlignedAssigner(candidates=5, class_power=0.5, overlap_power=4.0, soft_labels=False)

    relaxed = strict.relaxed()

    assert strict.assign(predictions(1), wanted).num_matches == 5
    assert relaxed.assign(predictions(1), wanted).num_matches == 10
    assert (relaxed.class_power, relaxed.overlap_power, relaxed.soft_labels) == (0.5, 4.0, False)


def test_a_single_candidate_is_one_to_one() -> None:
    crowd = [(0.0, x, 10.0, x + 40.0, 60.0) for x in (0.0, 2.0, 4.0, 30.0, 50.0)]
    assigner = TaskAlignedAssigner(candidates=1)

    result = assigner.assign(predictions(2), targets([crowd, crowd[::-1]]))

    assert assigner.one_to_one
    assert not TaskAlignedAssigner(candidates=2).one_to_one
    assert len(set(result.target_M.tolist())) == result.num_matches > 2
    assert len(set(zip(result.image_M.tolist(), result.prior_M.tolist(), strict=True))) == result.num_matches


@pytest.mark.parametrize(("name", "value"), [("candidates", 0), ("class_power", -1.0), ("overlap_power", 0.0)])
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {value}"):
        TaskAlignedAssigner(**{name: value})  # type: ignore[arg-type]  # one of several settings
