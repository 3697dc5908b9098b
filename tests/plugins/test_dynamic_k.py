"""Dynamic-k assignment against a slow reference, by hand, and against the golden files."""

from collections.abc import Callable
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
from detloom_plugins import dynamic_k
from detloom_plugins.anchor_ratio import anchor_ratio_candidates
from detloom_plugins.dynamic_k import Yolov7Assigner, class_costs, dynamic_k_matches

POINTS_LA2 = torch.tensor([[[8.0, 8.0]], [[16.0, 16.0]]])
GOLDEN = [
    *((f"p5-nc3-seed{s}", "ota", 10, 0.5) for s in range(4)),
    *((f"p5-nc80-seed{s}", "ota", 10, 0.5) for s in range(4)),
    *((f"p6-nc3-seed{s}", "ota", 10, 0.5) for s in range(4)),
    # What is assigned to auxiliary heads, lead guided and coarse to fine, is the same with other settings.
    *((f"p6-nc3-seed{s}", "lead", 20, 0.5) for s in range(4)),
    *((f"p6-nc3-seed{s}", "auxm", 20, 1.0) for s in range(4)),
]
predictions = partial(assignment_cases.predictions, sizes_LA2=ANCHORS_LA2)


def slow_assignment(given: Predictions, wanted: Targets, *, candidates: int = 10) -> list[tuple[int, int, int]]:
    """Return what is matched, one image and one target after the other, the costs in full."""
    found: list[tuple[int, int, int]] = []
    table = anchor_ratio_candidates(given.priors, wanted.padded(), ratio=4.0, reach=0.5)
    for image in range(given.num_images):
        prior_N = table.prior_BK[image][table.is_candidate_BK[image]]
        target_G = (wanted.image_T == image).nonzero()[:, 0]
        if len(prior_N) == 0 or len(target_G) == 0:
            continue
        iou_GN = box_iou(wanted.boxes_T4[target_G], given.boxes_BP4[image, prior_N])
        score_NC = given.class_logits_BPC[image, prior_N].sigmoid()
        if given.objectness_BP is not None:
            score_NC = (score_NC * given.objectness_BP[image, prior_N, None].sigmoid()).sqrt()
        label_GC = functional.one_hot(wanted.labels_T[target_G], given.num_classes).float()
        shape = (len(target_G), *score_NC.shape)
        class_GN = functional.binary_cross_entropy(
            score_NC.expand(shape), label_GC[:, None].expand(shape), reduction="none"
        ).sum(dim=-1)
        cost_GN = class_GN - 3 * (iou_GN + 1e-8).log()
        is_taken_GN = torch.zeros_like(cost_GN, dtype=torch.bool)
        for cost_N, iou_N, is_taken_N in zip(cost_GN, iou_GN, is_taken_GN, strict=True):
            k = max(1, int(iou_N.topk(min(candidates, len(prior_N))).values.sum()))
            is_taken_N[cost_N.sort(stable=True).indices[:k]] = True
        for column in is_taken_GN.any(dim=0).nonzero()[:, 0].tolist():
            takers = is_taken_GN[:, column].nonzero()[:, 0]
            winner = takers[0] if len(takers) == 1 else cost_GN[:, column].argmin()
            found.append((image, int(prior_N[column]), int(target_G[winner])))
    return sorted(found)


corner_x = st.integers(0, WIDTH - 1)
corner_y = st.integers(0, HEIGHT - 1)


@st.composite
def objects(draw: st.DrawFn) -> tuple[float, ...]:
    x1, y1 = draw(corner_x), draw(corner_y)
    return (draw(st.integers(0, 2)), x1, y1, draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT)))


batches = st.lists(st.lists(objects(), max_size=5), min_size=1, max_size=3)


@settings(deadline=None, max_examples=50)
@given(batches, st.integers(0, 100), st.sampled_from([ANCHORS_LA2, POINTS_LA2]))
def test_matches_are_those_of_the_slow_reference(
    batch: list[list[tuple[float, ...]]], seed: int, sizes_LA2: Tensor
) -> None:
    given_predictions = predictions(len(batch), seed=seed, sizes_LA2=sizes_LA2)

    result = Yolov7Assigner().assign(given_predictions, targets(batch))

    assert rows(result) == slow_assignment(given_predictions, targets(batch))


@pytest.mark.parametrize(("name", "matches", "candidates", "reach"), GOLDEN)
def test_published_matches(
    loss_case: Callable[[str], Any], name: str, matches: str, candidates: int, reach: float
) -> None:
    case = loss_case(name)

    result = Yolov7Assigner(candidates=candidates, reach=reach, published_ties=True).assign(case.lead, case.targets)

    assert case.rows(result) == case.golden_rows(matches)


@pytest.mark.parametrize("seed", range(2))
def test_wide_images_scale_x_by_the_width(loss_case: Callable[[str], Any], seed: int) -> None:
    # The published code scales x by the height when it computes costs, which is right for square images
    # alone. Here x is scaled by the width, so that its matches of wide images are not ours.
    case = loss_case(f"wide-nc3-seed{seed}")

    result = Yolov7Assigner().assign(case.lead, case.targets)

    assert rows(result) == slow_assignment(case.lead.detach(), case.targets)


@settings(deadline=None, max_examples=30)
# Costs can tie, for boxes that no prediction overlaps, say, and position settles ties; so the detector gives
# targets in an order of its own, as here.
@given(st.lists(objects(), min_size=1, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_order_of_targets_does_not_matter(image: list[tuple[float, ...]], random: Any) -> None:
    shuffled = random.sample(image, len(image))
    given_predictions = predictions(1)

    straight = Yolov7Assigner().assign(given_predictions, targets([image]).in_order())
    other = Yolov7Assigner().assign(given_predictions, targets([shuffled]).in_order())

    assert rows(straight) == rows(other)


def test_images_do_not_see_each_other() -> None:
    image = [(0.0, 10.0, 10.0, 30.0, 30.0), (1.0, 12.0, 12.0, 30.0, 40.0)]
    other = [(2.0, 11.0, 11.0, 31.0, 31.0)] * 4
    given_predictions = predictions(3)

    together = Yolov7Assigner().assign(given_predictions, targets([other, image, []]))
    alone = Yolov7Assigner().assign(given_predictions, targets([[], image, []]))

    assert [(b, p, t - 4) for b, p, t in rows(together) if b == 1] == rows(alone)


def test_memory_is_bounded_by_blocks_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = [(float(i % 3), 4.0 * i, 10.0, 4.0 * i + 20, 40.0) for i in range(15)]
    given_predictions = predictions(2)
    whole = Yolov7Assigner().assign(given_predictions, targets([image, image[:3]]))

    monkeypatch.setattr(dynamic_k, "PAIRS_AT_ONCE", 1)
    blocks = Yolov7Assigner().assign(given_predictions, targets([image, image[:3]]))

    assert rows(blocks) == rows(whole)
    assert len(rows(whole)) > 15


@pytest.mark.parametrize("batch", [[[]], [[], []]], ids=["one image", "two images"])
def test_batch_without_objects_has_no_matches(batch: list[list[tuple[float, ...]]]) -> None:
    result = Yolov7Assigner().assign(predictions(len(batch)), targets(batch))

    assert result.num_matches == 0
    assert result.quality_M.dtype == torch.float32


def test_target_that_fits_no_prior_has_no_matches() -> None:
    result = Yolov7Assigner().assign(predictions(1), targets([[(0.0, 0.0, 0.0, 1.0, 64.0)]]))

    assert result.num_matches == 0


def test_target_without_candidates_uses_those_of_others() -> None:
    thin, square = (0.0, 30.0, 30.0, 31.0, 39.0), (1.0, 30.0, 30.0, 40.0, 40.0)

    result = Yolov7Assigner().assign(predictions(1), targets([[thin, square]]))

    assert set(result.target_M.tolist()) == {0, 1}


def test_two_equal_targets_count_as_the_first() -> None:
    box = (0.0, 20.0, 20.0, 40.0, 40.0)

    result = Yolov7Assigner().assign(predictions(1), targets([[box, box]]))

    assert set(result.target_M.tolist()) == {0}


def test_hard_labels_have_a_quality_of_one() -> None:
    result = Yolov7Assigner().assign(predictions(1), targets([[(0.0, 20.0, 20.0, 40.0, 40.0)]]))

    assert result.quality_M.tolist() == [1.0] * result.num_matches


def test_heads_without_objectness_are_judged_by_their_classes() -> None:
    given_predictions = replace(predictions(1), objectness_BP=None)
    wanted = targets([[(0.0, 20.0, 20.0, 40.0, 40.0), (1.0, 22.0, 20.0, 44.0, 40.0)]])

    result = Yolov7Assigner().assign(given_predictions, wanted)

    assert rows(result) == slow_assignment(given_predictions, wanted)


@pytest.mark.parametrize("part", ["boxes_BP4", "class_logits_BPC", "objectness_BP"])
def test_nan_among_the_candidates_makes_the_quality_nan(part: str) -> None:
    # The losses are NaN then, which the training sees; nothing is asked of the device here.
    given_predictions = predictions(2)
    getattr(given_predictions, part)[0] = torch.nan
    box = (0.0, 20.0, 20.0, 40.0, 40.0)

    result = Yolov7Assigner().assign(given_predictions, targets([[box], [box]]))

    assert set(result.image_M.tolist()) == {0, 1}
    assert result.quality_M[result.image_M == 0].isnan().all()
    assert result.quality_M[result.image_M == 1].eq(1).all()


def test_certain_predictions_have_finite_costs() -> None:
    cost = class_costs(torch.tensor([[[200.0, -200.0]]]), torch.tensor([[200.0]]))

    cost_tN = cost(torch.tensor([0, 0]), torch.tensor([0, 1]))

    assert cost_tN.isfinite().all()
    assert cost_tN[0].item() < 1e-3
    assert cost_tN[1].item() > 10


def test_gradients_do_not_flow_through_the_assignment() -> None:
    given_predictions = predictions(1)
    given_predictions.boxes_BP4.requires_grad_()

    result = Yolov7Assigner().assign(given_predictions, targets([[(0.0, 20.0, 20.0, 40.0, 40.0)]]))

    assert not result.quality_M.requires_grad


def matched(cost_TN: Tensor, overlap_TN: Tensor, *, candidates: int = 10) -> list[int]:
    """Return the target of each candidate of a single image."""
    image_T = torch.zeros(len(cost_TN), dtype=torch.int64)
    width = cost_TN.shape[1]
    count_B = torch.tensor([width])
    result = dynamic_k_matches(
        lambda block: (cost_TN[block], overlap_TN[block]), image_T, count_B, width, candidates=candidates
    )
    return result[0].tolist()


def test_overlaps_add_up_to_the_number_of_matches() -> None:
    cost_TN = torch.tensor([[0.4, 0.1, 0.3, 0.2]])

    assert matched(cost_TN, torch.tensor([[0.9, 0.9, 0.3, 0.1]])) == [-1, 0, -1, 0]


def test_only_the_best_overlaps_are_added_up() -> None:
    cost_TN = torch.tensor([[0.4, 0.1, 0.3, 0.2]])

    assert matched(cost_TN, torch.full((1, 4), 0.9), candidates=2) == [-1, 0, -1, -1]


def test_target_without_overlap_keeps_its_cheapest() -> None:
    assert matched(torch.tensor([[0.2, 0.1]]), torch.zeros(1, 2)) == [-1, 0]


def test_candidate_taken_twice_goes_where_it_costs_least_even_to_a_third() -> None:
    # The first two targets take candidate 0; it costs the third least, which takes candidate 1.
    cost_TN = torch.tensor([[0.5, 0.9], [0.6, 0.9], [0.4, 0.1]])

    assert matched(cost_TN, torch.zeros(3, 2)) == [2, 2]


def test_first_of_equal_targets_and_of_equal_candidates_wins() -> None:
    assert matched(torch.full((2, 2), 0.5), torch.zeros(2, 2)) == [0, -1]


def test_relaxed_form_is_the_published_coarse_one() -> None:
    given_predictions = predictions(1)
    image = [(0.0, 20.0, 20.0, 40.0, 40.0), (1.0, 50.0, 8.0, 70.0, 30.0)]
    fine = Yolov7Assigner(anchor_ratio=3.0, candidates=20, overlap_weight=2.0)

    coarse = fine.relaxed()

    assert coarse is not None
    assert coarse.relaxed() is None
    published = Yolov7Assigner(anchor_ratio=3.0, candidates=20, overlap_weight=2.0, reach=1.0)
    assert rows(coarse.assign(given_predictions, targets([image]))) == rows(
        published.assign(given_predictions, targets([image]))
    )
    assert fine.reach == 0.5


@pytest.mark.parametrize(
    ("name", "value"), [("anchor_ratio", 1.0), ("reach", 1.5), ("candidates", 0), ("overlap_weight", -1.0)]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {value}"):
        Yolov7Assigner(**{name: value})  # type: ignore[arg-type]  # one of several settings
