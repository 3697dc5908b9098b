"""Forms of boxes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.ops import boxes

numbers = st.integers(-1000, 1000).map(float)


def test_centre_and_size_become_corners() -> None:
    box_cxcywh = torch.tensor([[10.0, 20.0, 4.0, 6.0]])

    assert boxes.cxcywh_to_xyxy(box_cxcywh).tolist() == [[8.0, 17.0, 12.0, 23.0]]


@given(st.tuples(numbers, numbers, numbers, numbers))
def test_forms_of_boxes_lead_back(corners: tuple[float, ...]) -> None:
    box = torch.tensor([corners])

    assert boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(box)).equal(box)
