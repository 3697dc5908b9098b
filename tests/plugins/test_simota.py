"""SimOTA against a slow reference and by hand."""

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
from torch.nn import functional
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.structures import Predictions, Targets
from detloom_plugins import dynamic_k, simota
from detloom_plugins.simota import Region, SimotaAssigner

POINTS_LA2 = torch.tensor([[[32.0, 32.0]], [[64.0, 64.0]]])
BOX = (0.0, 20.0, 20.0, 40.0, 40.0)
predictions = partial(assignment_cases.predictions, sizes_LA2=POINTS_LA2)


def slow_assignment(
    given: Predictions, wanted: Targets, *, radius: float = 1.5, region: Region = "square"
) -> list[tuple[int, int, int]]:
    """Return what is matched, one image and one target after the other, among all priors, the costs in full."""
    found: list[tuple[int, int, int]] = []
    priors = given.priors
    for image in range(given.num_images):
        target_G = (wanted.image_T == image).nonzero()[:, 0]
        box_G4 = wanted.boxes_T4[target_G]
        offset_GP2 = priors.centers_P2 - ((box_G4[:, :2] + box_G4[:, 2:]) / 2)[:, None]
        is_near_GP = (offset_GP2.abs() < radius * priors.strides_P[:, None]).all(dim=2)
        is_free_GP, is_wanted_GP = is_near_GP, is_near_GP
        if region == "square-or-box":
            x_P, y_P = priors.centers_P2.unbind(1)
            x1_G1, y1_G1, x2_G1, y2_G1 = box_G4[:, :, None].unbind(1)
            is_inside_GP = (x1_G1 < x_P) & (x_P < x2_G1) & (y1_G1 < y_P) & (y_P < y2_G1)
            is_free_GP, is_wanted_GP = is_near_GP & is_inside_GP, is_near_GP | is_inside_GP
        prior_N = is_wanted_GP.any(dim=0).nonzero()[:, 0]
        if len(prior_N) == 0:
            continue
        iou_GN = box_iou(box_G4, given.boxes_BP4[image, prior_N])
        score_NC = given.class_logits_BPC[image, prior_N].sigmoid()
        if given.objectness_BP is not None:
            score_NC = (score_NC * given.objectness_BP[image, prior_N, None].sigmoid()).sqrt()
        label_GC = functional.one_hot(wanted.labels_T[target_G], given.num_classes).float()
        shape = (len(target_G), *score_NC.shape)
        class_GN = functional.binary_cross_entropy(
            score_NC.expand(shape), label_GC[:, None].expand(shape), reduction="none"
        ).sum(dim=-1)
        # In float64, so that the penalty hides no difference.
        cost_GN = (class_GN - 3 * (iou_GN + 1e-8).log()).double() + 1e6 * ~is_free_GP[:, prior_N]
        is_taken_GN = torch.zeros_like(cost_GN, dtype=torch.bool)
        for cost_N, iou_N, is_taken_N in zip(cost_GN, iou_GN, is_taken_GN, strict=True):
            k = max(1, int(iou_N.topk(min(10, len(prior_N))).values.sum()))
            is_taken_N[cost_N.sort(stable=True).indices[:k]] = True
        for column in is_taken_GN.any(dim=0).nonzero()[:, 0].tolist():
            takers = is_taken_GN[:, column].nonzero()[:, 0]
            winner = takers[0] if len(takers) == 1 else cost_GN[:, column].argmin()
            found.append((image, int(prior_N[column]), int(target_G[winner])))
    return sorted(found)


@st.composite
def objects(draw: st.DrawFn) -> tuple[float, ...]:
    # Centres lie two strides from the border, so that every target has more candidates of its own than it takes.
    x, y = draw(st.integers(32, WIDTH - 32)), draw(st.integers(24, HEIGHT - 24))
    w, h = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return (draw(st.integers(0, 2)), x - w / 2, y - h / 2, x + w / 2, y + h / 2)


batches = st.lists(st.lists(objects(), max_size=5, unique=True), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(batches, st.integers(0, 100), st.sampled_from([ANCHORS_LA2, POINTS_LA2]))
def test_matches_are_those_of_the_slow_reference(
    batch: list[list[tuple[float, ...]]], seed: int, sizes_LA2: Tensor
) -> None:
    given_predictions = predictions(len(batch), seed=seed, sizes_LA2=sizes_LA2)

    result = SimotaAssigner().assign(given_predictions, targets(batch))

    assert rows(result) == slow_assignment(given_predictions, targets(batch))


@pytest.mark.parametrize("seed", range(5))
def test_form_of_the_paper_takes_priors_in_the_square_or_the_box(seed: int) -> None:
    given_predictions = predictions(2, seed=seed)
    batch = targets([[(0.0, 4.0, 4.0, 92.0, 60.0), BOX], [(1.0, 50.0, 20.0, 74.0, 44.0)]])

    result = SimotaAssigner(radius=2.5, region="square-or-box").assign(given_predictions, batch)

    assert rows(result) == slow_assignment(given_predictions, batch, radius=2.5, region="square-or-box")


def test_a_candidate_of_several_targets_counts_once() -> None:
    boxes = [BOX, (1.0, 21.0, 20.0, 41.0, 40.0), (2.0, 22.0, 20.0, 42.0, 40.0)]

    result = SimotaAssigner().assign(predictions(1), targets([boxes]))

    assert len(set(result.prior_M.tolist())) == result.num_matches


def test_candidates_away_from_its_own_centre_are_a_targets_last_resort() -> None:
    given_predictions = predictions(1)
    # One prior far away fits the first target perfectly; it is a candidate of the second alone.
    given_predictions.boxes_BP4[0, 2 * 12 + 9] = torch.tensor(BOX[1:])
    wanted = targets([[BOX, (1.0, 60.0, 8.0, 92.0, 32.0)]])

    result = SimotaAssigner().assign(given_predictions, wanted)

    offset_M2 = given_predictions.priors.centers_P2[result.prior_M[result.target_M == 0]] - 30.0
    stride_M1 = given_predictions.priors.strides_P[result.prior_M[result.target_M == 0], None]
    assert (offset_M2.abs() < 1.5 * stride_M1).all()


def test_a_target_at_the_corner_has_the_cells_that_there_are() -> None:
    # The centre (1, 1) has one cell within 1.5 strides on each side: that of either level.
    result = SimotaAssigner(radius=0.6).assign(predictions(1), targets([[(0.0, 0.0, 0.0, 2.0, 2.0)]]))

    assert set(result.prior_M.tolist()) <= {0, 96}
    assert result.num_matches == 1


@pytest.mark.parametrize(
    "box", [(0.0, 30.0, 10.0, 31.0, 60.0), (0.0, -40.0, -40.0, 136.0, 104.0), (0.0, 80.0, 50.0, 96.0, 64.0)]
)
def test_thin_huge_and_border_targets_have_matches(box: tuple[float, ...]) -> None:
    result = SimotaAssigner().assign(predictions(1), targets([[box]]))

    assert result.num_matches >= 1


def test_a_target_that_no_cell_is_near_has_no_matches() -> None:
    result = SimotaAssigner(radius=0.1).assign(predictions(1), targets([[(0.0, 0.0, 0.0, 2.0, 2.0)]]))

    assert result.num_matches == 0


@pytest.mark.parametrize("batch", [[[]], [[], []]], ids=["one image", "two images"])
def test_batch_without_objects_has_no_matches(batch: list[list[tuple[float, ...]]]) -> None:
    assert SimotaAssigner().assign(predictions(len(batch)), targets(batch)).num_matches == 0


def test_images_do_not_see_each_other() -> None:
    image, other = [BOX, (1.0, 22.0, 22.0, 40.0, 50.0)], [(2.0, 21.0, 21.0, 41.0, 41.0)] * 4

    together = SimotaAssigner().assign(predictions(3), targets([other, image, []]))
    alone = SimotaAssigner().assign(predictions(3), targets([[], image, []]))

    assert [(b, p, t - 4) for b, p, t in rows(together) if b == 1] == rows(alone)


def test_equal_targets_count_as_the_first() -> None:
    assert set(SimotaAssigner().assign(predictions(1), targets([[BOX, BOX]])).target_M.tolist()) == {0}


@settings(deadline=None, max_examples=30)
@given(st.lists(objects(), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_of_targets_does_not_matter(image: list[tuple[float, ...]], shuffle: Any) -> None:
    shuffled = shuffle.sample(image, len(image))

    straight = SimotaAssigner().assign(predictions(1), targets([image]).in_order())
    other = SimotaAssigner().assign(predictions(1), targets([shuffled]).in_order())

    assert rows(straight) == rows(other)


@pytest.mark.parametrize("region", ["square", "square-or-box"])
def test_hundreds_of_targets_in_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch, region: Region) -> None:
    place_N4 = torch.rand((300, 4), generator=torch.Generator().manual_seed(0)).tolist()
    image = [(0.0, 70 * x, 40 * y, 70 * x + 1 + 25 * w, 40 * y + 1 + 23 * h) for x, y, w, h in place_N4]
    whole = SimotaAssigner(region=region).assign(predictions(2), targets([image, []]))

    monkeypatch.setattr(dynamic_k, "PAIRS_AT_ONCE", 500)
    monkeypatch.setattr(simota, "PAIRS_AT_ONCE", 50)
    blocks = SimotaAssigner(region=region).assign(predictions(2), targets([image, []]))

    assert rows(blocks) == rows(whole)
    assert len(set(whole.prior_M.tolist())) == whole.num_matches > 50


def test_heads_without_objectness_are_judged_by_their_classes() -> None:
    given_predictions = replace(predictions(1), objectness_BP=None)
    wanted = targets([[(0.0, 34.0, 20.0, 54.0, 40.0), (1.0, 36.0, 20.0, 58.0, 40.0)]])

    assert rows(SimotaAssigner().assign(given_predictions, wanted)) == slow_assignment(given_predictions, wanted)


def test_labels_are_hard_unless_asked() -> None:
    hard = SimotaAssigner().assign(predictions(1), targets([[BOX]]))
    soft = SimotaAssigner(soft_labels=True).assign(predictions(1), targets([[BOX]]))

    assert rows(hard) == rows(soft)
    assert hard.quality_M.eq(1).all()
    overlap_M = box_iou(predictions(1).boxes_BP4[0, soft.prior_M], torch.tensor([BOX[1:]]))[:, 0]
    torch.testing.assert_close(soft.quality_M, overlap_M)


@pytest.mark.parametrize("soft_labels", [False, True])
@pytest.mark.parametrize("part", ["boxes_BP4", "class_logits_BPC", "objectness_BP"])
def test_nan_among_the_candidates_makes_the_quality_nan(part: str, *, soft_labels: bool) -> None:
    given_predictions = predictions(2)
    # The prior of the cell that holds the centre, on the finer level.
    getattr(given_predictions, part)[0, 3 * 12 + 3] = torch.nan

    result = SimotaAssigner(soft_labels=soft_labels).assign(given_predictions, targets([[BOX], [BOX]]))

    assert set(result.image_M.tolist()) == {0, 1}
    assert result.quality_M[result.image_M == 0].isnan().all()
    assert not result.quality_M[result.image_M == 1].isnan().any()


def test_autocast_changes_nothing() -> None:
    wanted = targets([[BOX, (1.0, 50.0, 20.0, 74.0, 44.0)]])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = SimotaAssigner(soft_labels=True).assign(predictions(1), wanted)

    assert rows(result) == rows(SimotaAssigner().assign(predictions(1), wanted))
    assert result.quality_M.dtype == torch.float32


def test_relaxed_form_has_a_larger_square_and_more_candidates() -> None:
    strict = SimotaAssigner(radius=1.0, candidates=5, overlap_weight=2.0, region="square-or-box", soft_labels=True)
    wanted = targets([[(0.0, 10.0, 6.0, 80.0, 60.0)]])

    relaxed = strict.relaxed()

    assert (relaxed.radius, relaxed.candidates) == (2.0, 10)
    assert (relaxed.overlap_weight, relaxed.region, relaxed.soft_labels) == (2.0, "square-or-box", True)
    assert relaxed.assign(predictions(1), wanted).num_matches > strict.assign(predictions(1), wanted).num_matches


@pytest.mark.parametrize(
    ("name", "value"),
    [("radius", 0.0), ("radius", float("inf")), ("candidates", 0), ("overlap_weight", -1.0), ("region", "disc")],
)
def test_settings_out_of_range_are_named(name: str, value: float | str) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {value}"):
        SimotaAssigner(**{name: value})  # type: ignore[arg-type]  # one of several settings
