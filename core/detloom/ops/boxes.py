"""Forms of boxes.

xyxy: corners; cxcywh: centre and size. All functions take ``[..., 4]`` and return new tensors.

Shape letters: X any leading shape.
"""

import torch
from torch import Tensor

__all__ = ["cxcywh_to_xyxy", "xyxy_to_cxcywh"]


def cxcywh_to_xyxy(boxes_cxcywh_X4: Tensor) -> Tensor:
    """Return corners from centres and sizes."""
    center_X2, size_X2 = boxes_cxcywh_X4[..., :2], boxes_cxcywh_X4[..., 2:]
    half_X2 = size_X2 / 2
    return torch.cat((center_X2 - half_X2, center_X2 + half_X2), dim=-1)


def xyxy_to_cxcywh(boxes_X4: Tensor) -> Tensor:
    """Return centres and sizes from corners."""
    low_X2, high_X2 = boxes_X4[..., :2], boxes_X4[..., 2:]
    return torch.cat(((low_X2 + high_X2) / 2, high_X2 - low_X2), dim=-1)
