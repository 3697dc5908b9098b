"""Overlaps by hand, by property, and against the golden files."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.ops.iou import OverlapKind, overlap

KINDS: tuple[OverlapKind, ...] = get_args(OverlapKind)

sides = st.floats(1, 500, width=32)
boxes = st.tuples(sides, sides, sides, sides).map(lambda b: cxcywh_to_xyxy(torch.tensor(b)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_overlaps_and_gradients_are_those_published(
    shared: Callable[[str], Path], seed: int, kind: OverlapKind
) -> None:
    golden = np.load(shared(f"golden/loss/iou-seed{seed}.npz"))
    a_cxcywh_N4 = torch.from_numpy(golden["a_cxcywh"]).requires_grad_()
    b_cxcywh_N4 = torch.from_numpy(golden["b_cxcywh"])

    value_N = overlap(cxcywh_to_xyxy(a_cxcywh_N4), cxcywh_to_xyxy(b_cxcywh_N4), kind)
    (gradient_N4,) = torch.autograd.grad((1 - value_N).sum(), a_cxcywh_N4)

    np.testing.assert_allclose(value_N.detach(), golden[kind], atol=1e-6, rtol=0)
    np.testing.assert_allclose(gradient_N4, golden[f"{kind}_grad_of_sum_of_one_minus"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pairwise_overlaps_are_those_published(shared: Callable[[str], Path], seed: int) -> None:
    golden = np.load(shared(f"golden/loss/iou-seed{seed}.npz"))
    a_N4 = cxcywh_to_xyxy(torch.from_numpy(golden["a_cxcywh"]))
    b_N4 = cxcywh_to_xyxy(torch.from_numpy(golden["b_cxcywh"]))

    iou_NM = overlap(a_N4[:20, None], b_N4[None, :30], "iou")

    np.testing.assert_allclose(iou_NM, golden["pairwise_first20_by_first30"], atol=1e-6, rtol=0)


def test_half_covered_box_has_a_third() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[5.0, 0.0, 15.0, 10.0]])

    assert overlap(a, b, "iou").item() == pytest.approx(1 / 3)


def test_siou_of_squares_side_by_side_is_that_of_the_paper() -> None:
    # On an axis the angle costs nothing, so that distances count fully: rho = (20 / 30)^2, gamma = 2.
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[20.0, 0.0, 30.0, 10.0]])

    value = overlap(a, b, "siou")

    assert value.item() == pytest.approx(-(1 - math.exp(-2 * (2 / 3) ** 2)) / 2, abs=1e-6)


def test_siou_of_squares_on_a_diagonal_counts_distance_least() -> None:
    # Angle cost 1, gamma = 1, both directions alike.
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[20.0, 20.0, 30.0, 30.0]])

    value = overlap(a, b, "siou")

    assert value.item() == pytest.approx(-(1 - math.exp(-((2 / 3) ** 2))), abs=1e-6)


def test_siou_of_concentric_boxes_costs_their_shapes() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[2.5, 0.0, 7.5, 10.0]])

    value = overlap(a, b, "siou")

    assert value.item() == pytest.approx(0.5 - (1 - math.exp(-0.5)) ** 4 / 2, abs=1e-6)


@given(boxes)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_boxes_overlap_by_one(kind: OverlapKind, box: torch.Tensor) -> None:
    assert overlap(box, box, kind).item() == pytest.approx(1, abs=1e-4)


@given(boxes, boxes)
@pytest.mark.parametrize("kind", KINDS)
def test_overlap_is_symmetric_and_at_most_one(kind: OverlapKind, a: torch.Tensor, b: torch.Tensor) -> None:
    forth, back = overlap(a, b, kind), overlap(b, a, kind)

    assert forth.item() == pytest.approx(back.item(), abs=1e-5)
    assert forth.item() <= 1 + 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "box",
    [[0.0, 0.0, 10.0, 10.0], [3.0, 3.0, 3.0, 3.0], [50.0, 0.0, 60.0, 10.0], [0.0, 4.0, 10.0, 4.0]],
    ids=["equal", "a point", "beside", "flat"],
)
def test_gradients_are_finite_even_for_degenerate_boxes(kind: OverlapKind, box: list[float]) -> None:
    a = torch.tensor([box], requires_grad=True)

    (gradient,) = torch.autograd.grad(overlap(a, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), kind).sum(), a)

    assert gradient.isfinite().all()


def test_empty_boxes_do_not_overlap() -> None:
    point = torch.zeros(1, 4)

    assert overlap(point, point, "iou").item() == 0
    assert overlap(point[:, None], point[None, :0], "iou").shape == (1, 0)
