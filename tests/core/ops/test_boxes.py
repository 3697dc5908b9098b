"""Forms of boxes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops import boxes

numbers = st.integers(-1000, 1000).map(float)


def test_centre_and_size_become_corners() -> None:
    box_cxcywh = torch.tensor([[10.0, 20.0, 4.0, 6.0]])

    assert boxes.cxcywh_to_xyxy(box_cxcywh).tolist() == [[8.0, 17.0, 12.0, 23.0]]


def test_corner_and_size_become_corners() -> None:
    box_xywh = torch.tensor([[10.0, 20.0, 4.0, 6.0]])

    assert boxes.xywh_to_xyxy(box_xywh).tolist() == [[10.0, 20.0, 14.0, 26.0]]


@given(st.tuples(numbers, numbers, numbers, numbers))
def test_forms_of_boxes_lead_back(corners: tuple[float, ...]) -> None:
    box = torch.tensor([corners])

    assert boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(box)).equal(box)
    assert boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(box)).equal(box)


def test_boxes_turned_inside_out_have_no_area() -> None:
    given_boxes = torch.tensor([[0.0, 0.0, 2.0, 3.0], [2.0, 3.0, 0.0, 0.0], [5.0, 0.0, 5.0, 9.0]])

    assert boxes.area(given_boxes).tolist() == [6.0, 0.0, 0.0]


def test_clipping_moves_corners_to_the_border_and_leaves_the_input() -> None:
    box = torch.tensor([[-5.0, -1.0, 30.0, 15.0]])

    result = boxes.clipped(box, (10, 20))

    assert result.tolist() == [[0.0, 0.0, 20.0, 10.0]]
    assert box.tolist() == [[-5.0, -1.0, 30.0, 15.0]]


def test_clipping_in_place_changes_its_input() -> None:
    box = torch.tensor([[-5.0, -1.0, 30.0, 15.0]])

    result = boxes.clip_(box, (10, 20))

    assert result is box
    assert box.tolist() == [[0.0, 0.0, 20.0, 10.0]]
