"""Candidates by anchor ratio against a slow reference, by hand, and against the golden files."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detloom.errors import RecipeError
from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.structures import Priors, Targets
from detloom_plugins.anchor_ratio import AnchorRatioAssigner, AnchorRatioCandidates, anchor_ratio_candidates

HEIGHT, WIDTH = 64, 96
STRIDES = (8, 16)
ANCHORS_LA2 = torch.tensor([[[8.0, 8.0], [16.0, 8.0]], [[24.0, 40.0], [64.0, 64.0]]])
PRIORS = Priors.on_grids([(8, 12), (4, 6)], STRIDES, ANCHORS_LA2)

# Quarter pixels, so that centres fall on the edges and into the middle of cells.
quarters = st.integers(1, 4 * HEIGHT).map(lambda n: n / 4)
boxes_cxcywh = st.tuples(quarters, quarters, quarters, quarters)


def candidates(
    boxes: list[tuple[float, ...]], *, reach: float = 0.5, priors: Priors = PRIORS, ratio: float = 4.0
) -> AnchorRatioCandidates:
    """Return the candidates of one image, whose boxes are given by centre and size."""
    boxes_T4 = cxcywh_to_xyxy(torch.tensor(boxes).reshape(-1, 4))
    labels_T = torch.zeros(len(boxes), dtype=torch.int64)
    targets = Targets.from_lists([boxes_T4], [labels_T], (HEIGHT, WIDTH))
    return anchor_ratio_candidates(priors, targets.padded(), ratio=ratio, reach=reach)


def pairs(found: AnchorRatioCandidates) -> list[tuple[int, int]]:
    """Return prior and target of each candidate, in order."""
    chosen = found.is_candidate_BK
    return list(zip(found.prior_BK[chosen].tolist(), found.target_BK[chosen].tolist(), strict=True))


def slow_pairs(boxes: list[tuple[float, ...]], reach: float) -> list[tuple[int, int]]:
    """Return the same, one target after the other."""
    found: list[tuple[int, int]] = []
    for grid, sizes in zip(PRIORS.grids, ANCHORS_LA2.tolist(), strict=True):
        for direction in range(5):
            for anchor, (anchor_w, anchor_h) in enumerate(sizes):
                for target, (cx, cy, w, h) in enumerate(boxes):
                    x, y = cx / grid.stride, cy / grid.stride
                    fits = max(w / anchor_w, anchor_w / w, h / anchor_h, anchor_h / h) < 4
                    edge = (0.0, x, y, grid.width - x, grid.height - y)[direction]
                    is_near = direction == 0 or (edge % 1 < reach and edge > 1)
                    if not (fits and is_near):
                        continue
                    step_x, step_y = ((0, 0), (-reach, 0), (0, -reach), (reach, 0), (0, reach))[direction]
                    column = min(max(math.trunc(x + step_x), 0), grid.width - 1)
                    row = min(max(math.trunc(y + step_y), 0), grid.height - 1)
                    found.append((grid.start + (row * grid.width + column) * 2 + anchor, target))
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(boxes_cxcywh, max_size=6), st.sampled_from([0.5, 1.0]))
def test_candidates_and_their_order_are_those_of_the_slow_reference(
    boxes: list[tuple[float, ...]], reach: float
) -> None:
    assert pairs(candidates(boxes, reach=reach)) == slow_pairs(boxes, reach)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["p5-nc3", "p5-nc80", "p6-nc3"])
def test_published_candidates(loss_case: Callable[[str], Any], family: str, seed: int) -> None:
    case = loss_case(f"{family}-seed{seed}")

    for reach, name in ((0.5, "candidates3_"), (1.0, "candidates5_")):
        if f"{name}0" not in case.arrays:
            continue
        found = anchor_ratio_candidates(case.lead.priors, case.targets.padded(), ratio=4.0, reach=reach)
        image_M, column_M = found.is_candidate_BK.nonzero(as_tuple=True)

        assert sorted(case.cells(image_M, found.prior_BK[image_M, column_M])) == case.golden_cells(name)


@pytest.mark.parametrize("name", ["nl3_size128_nc5_seed11", "nl4_size256_nc5_seed12", "nl3_size128_nc1_seed13"])
def test_published_order_of_candidates(described_case: Callable[[str], Any], name: str) -> None:
    case, numbers = described_case(name)
    found = anchor_ratio_candidates(case.lead.priors, case.targets.padded(), ratio=4.0, reach=0.5)

    for image in range(case.targets.num_images):
        chosen = found.is_candidate_BK[image]
        prior_N, target_N = found.prior_BK[image][chosen], found.target_BK[image][chosen]
        cells = case.cells(torch.full_like(prior_N, image), prior_N)
        mine = [[*cell, target] for cell, target in zip(cells, target_N.tolist(), strict=True)]

        listed = enumerate(numbers["candidates_g0.5"])
        assert mine == [[level, *row] for level, rows in listed for row in rows if row[0] == image]


def test_centre_on_the_edge_of_a_cell_names_that_cell_twice() -> None:
    # x = 4 cells: near the edge to the left, and as near to that on the right, where 4.5 is still cell 4.
    found = pairs(candidates([(32.0, 36.0, 8.0, 8.0)]))

    level_0 = Counter((prior // 2 // 12, prior // 2 % 12) for prior, _ in found if prior % 2 == 0 and prior < 192)
    assert level_0 == {(4, 4): 2, (4, 3): 1}


def test_rounding_of_corners_does_not_move_a_centre_over_the_edge_of_a_cell() -> None:
    width = 36.366259

    exact = pairs(candidates([(48.0, 36.0, 36.0, 8.0)]))
    rounded = pairs(candidates([(48.0, 36.0, width, 8.0)]))

    assert exact == rounded


def test_centre_on_the_border_of_the_image_belongs_to_the_last_cell() -> None:
    found = pairs(candidates([(float(WIDTH), float(HEIGHT), 8.0, 8.0)]))

    assert found
    assert all(0 <= prior < PRIORS.num_priors for prior, _ in found)
    assert {prior for prior, _ in found if prior < 192} == {190, 191}


def test_ratio_of_exactly_the_limit_does_not_fit() -> None:
    assert not pairs(candidates([(36.0, 36.0, 2.0, 8.0)], ratio=4.0))
    assert pairs(candidates([(36.0, 36.0, 2.0, 8.0)], ratio=4.1))


def test_points_are_compared_by_their_nominal_size() -> None:
    points = Priors.on_grids([(8, 12)], [8], torch.full((1, 1, 2), 8.0))

    found = pairs(candidates([(36.0, 36.0, 8.0, 8.0), (36.0, 36.0, 60.0, 60.0)], priors=points))

    assert found == [(4 * 12 + 4, 0)]


def test_levels_may_have_different_numbers_of_priors_a_cell() -> None:
    one = Priors.on_grids([(8, 12)], [8], torch.full((1, 1, 2), 8.0))
    two = Priors.on_grids([(4, 6)], [16], torch.full((1, 2, 2), 16.0))
    second = type(two.grids[0])(4, 6, 16, 2, start=96, level=1)
    priors = Priors(
        centers_P2=torch.cat((one.centers_P2, two.centers_P2)),
        sizes_P2=torch.cat((one.sizes_P2, two.sizes_P2)),
        strides_P=torch.cat((one.strides_P, two.strides_P)),
        level_P=torch.cat((one.level_P, two.level_P + 1)),
        grids=(*one.grids, second),
        num_levels=2,
    )

    found = pairs(candidates([(36.0, 36.0, 12.0, 12.0)], priors=priors, reach=0.0))

    assert found == [(4 * 12 + 4, 0), (96 + (2 * 6 + 2) * 2, 0), (96 + (2 * 6 + 2) * 2 + 1, 0)]


def test_no_targets_have_no_candidates() -> None:
    assert not pairs(candidates([]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["p5-nc3", "p5-nc80", "p6-nc3"])
def test_published_matches_with_fixed_assignment(loss_case: Callable[[str], Any], family: str, seed: int) -> None:
    case = loss_case(f"{family}-seed{seed}")

    result = AnchorRatioAssigner().assign(case.lead, case.targets)

    # The files hold each match in order, with the class and the box that it learns.
    expected = []
    for level, grid in enumerate(case.lead.priors.grids):
        columns = (case.arrays[f"plain_{name}{level}"] for name in ("match", "class", "box"))
        for (image, anchor, row, column), label, (dx, dy, w, h) in zip(*columns, strict=True):
            center = ((column + dx) * grid.stride, (row + dy) * grid.stride)
            box = (*center, w * grid.stride, h * grid.stride)
            expected.append((int(image), (level, int(image), int(anchor), int(row), int(column)), int(label), box))
    expected.sort(key=lambda match: match[0])
    assert case.cells(result.image_M, result.prior_M) == [cell for _, cell, _, _ in expected]
    assert case.targets.labels_T[result.target_M].tolist() == [label for _, _, label, _ in expected]
    boxes_M4 = cxcywh_to_xyxy(torch.tensor([box for *_, box in expected], dtype=torch.float32))
    torch.testing.assert_close(case.targets.boxes_T4[result.target_M], boxes_M4, rtol=1e-4, atol=1e-3)


def test_matches_are_the_candidates_in_their_order(scene: Any, edge_batch: list[list[tuple[float, ...]]]) -> None:
    predictions, wanted = scene.predictions(len(edge_batch)), scene.targets(edge_batch)

    result = AnchorRatioAssigner().assign(predictions, wanted)

    table = anchor_ratio_candidates(predictions.priors, wanted.padded(), ratio=4.0, reach=0.5)
    expected = [
        (image, *pair)
        for image in range(wanted.num_images)
        for pair in zip(
            table.prior_BK[image][table.is_candidate_BK[image]].tolist(),
            table.target_BK[image][table.is_candidate_BK[image]].tolist(),
            strict=True,
        )
    ]
    columns = (result.image_M, result.prior_M, result.target_M)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert result.quality_M.eq(1).all()


def test_all_targets_of_a_prior_are_matched(scene: Any) -> None:
    box = (0, 20, 20, 40, 40)
    predictions = scene.predictions(1)

    one = AnchorRatioAssigner().assign(predictions, scene.targets([[box]]))
    two = AnchorRatioAssigner().assign(predictions, scene.targets([[box, box]]))

    assert two.num_matches == 2 * one.num_matches > 0
    assert sorted(two.prior_M.tolist()) == sorted(2 * one.prior_M.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_order_of_targets_does_not_matter(scene: Any, seed: int) -> None:
    predictions, wanted = scene.predictions(1), scene.random_targets(1, seed=seed, most=10)
    back = Targets.from_lists([wanted.boxes_T4.flip(0)], [wanted.labels_T.flip(0)], scene.size)

    straight = AnchorRatioAssigner().assign(predictions, wanted)
    other = AnchorRatioAssigner().assign(predictions, back)

    last = wanted.num_targets - 1
    assert scene.rows(straight) == sorted((b, p, last - t) for b, p, t in scene.rows(other))


def test_soft_labels_are_the_overlaps_of_the_predicted_boxes(scene: Any) -> None:
    predictions, wanted = scene.predictions(1), scene.targets([[(0, 20, 20, 40, 40), (1, 0, 0, 60, 60)]])

    result = AnchorRatioAssigner(soft_labels=True).assign(predictions, wanted)

    iou_MT = box_iou(predictions.boxes_BP4[0, result.prior_M], wanted.boxes_T4)
    torch.testing.assert_close(result.quality_M, iou_MT.gather(1, result.target_M[:, None])[:, 0])
    assert result.quality_M.dtype == torch.float32


def test_nan_in_the_predictions_makes_soft_labels_nan(scene: Any) -> None:
    predictions = scene.predictions(2)
    predictions.boxes_BP4[0] = math.nan

    result = AnchorRatioAssigner(soft_labels=True).assign(predictions, scene.targets([[(0, 20, 20, 40, 40)]] * 2))

    assert set(result.image_M.tolist()) == {0, 1}
    assert (result.quality_M.isnan() == (result.image_M == 0)).all()


def test_relaxed_form_adds_cells(scene: Any) -> None:
    predictions, wanted = scene.predictions(3), scene.random_targets(3, seed=1)
    relaxed = AnchorRatioAssigner().relaxed()
    assert relaxed is not None

    fine = scene.rows(AnchorRatioAssigner().assign(predictions, wanted))
    coarse = scene.rows(relaxed.assign(predictions, wanted))

    assert set(fine) < set(coarse)
    assert relaxed.relaxed() is None


@pytest.mark.parametrize(("name", "value"), [("anchor_ratio", 1.0), ("reach", 1.5), ("reach", -0.5)])
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must .* got {value}"):
        AnchorRatioAssigner(**{name: value})  # type: ignore[arg-type]  # one of several settings
