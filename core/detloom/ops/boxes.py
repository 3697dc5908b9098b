"""Forms of boxes, and what is done with single boxes.

xyxy: corners; cxcywh: centre and size; xywh: upper left corner and size. All functions take
``[..., 4]`` and return new tensors.

Shape letters: X any leading shape.
"""

import torch
from torch import Tensor

__all__ = [
    "area",
    "clip_",
    "clipped",
    "cxcywh_to_xyxy",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]


def cxcywh_to_xyxy(boxes_cxcywh_X4: Tensor) -> Tensor:
    """Return corners from centres and sizes."""
    center_X2, size_X2 = boxes_cxcywh_X4[..., :2], boxes_cxcywh_X4[..., 2:]
    half_X2 = size_X2 / 2
    return torch.cat((center_X2 - half_X2, center_X2 + half_X2), dim=-1)


def xyxy_to_cxcywh(boxes_X4: Tensor) -> Tensor:
    """Return centres and sizes from corners."""
    low_X2, high_X2 = boxes_X4[..., :2], boxes_X4[..., 2:]
    return torch.cat(((low_X2 + high_X2) / 2, high_X2 - low_X2), dim=-1)


def xywh_to_xyxy(boxes_xywh_X4: Tensor) -> Tensor:
    """Return corners from upper left corners and sizes."""
    low_X2, size_X2 = boxes_xywh_X4[..., :2], boxes_xywh_X4[..., 2:]
    return torch.cat((low_X2, low_X2 + size_X2), dim=-1)


def xyxy_to_xywh(boxes_X4: Tensor) -> Tensor:
    """Return upper left corners and sizes from corners."""
    low_X2, high_X2 = boxes_X4[..., :2], boxes_X4[..., 2:]
    return torch.cat((low_X2, high_X2 - low_X2), dim=-1)


def area(boxes_X4: Tensor) -> Tensor:
    """Return ``[...]`` areas; boxes turned inside out have none."""
    x1_X, y1_X, x2_X, y2_X = boxes_X4.unbind(-1)
    return (x2_X - x1_X).clamp(min=0) * (y2_X - y1_X).clamp(min=0)


def clip_(boxes_X4: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Move corners that lie outside an image of ``(height, width)`` to its border, in place."""
    height, width = image_size
    boxes_X4[..., 0::2].clamp_(min=0, max=width)
    boxes_X4[..., 1::2].clamp_(min=0, max=height)
    return boxes_X4


def clipped(boxes_X4: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return boxes whose corners lie in an image of ``(height, width)``."""
    height, width = image_size
    x1_X, y1_X, x2_X, y2_X = boxes_X4.unbind(-1)
    return torch.stack(
        (x1_X.clamp(0, width), y1_X.clamp(0, height), x2_X.clamp(0, width), y2_X.clamp(0, height)),
        dim=-1,
    )
