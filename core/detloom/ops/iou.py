"""How far boxes overlap: IoU and the measures that go on where IoU is flat.

Boxes are xyxy. The measures are differentiable in both arguments.

Shape letter: X any shape that broadcasts.

References:
    GIoU: Rezatofighi et al. (2019), algorithm 1. DIoU and CIoU: Zheng et al. (2020), section 3.
    SIoU: Gevorgyan (2022), section 2.
"""

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["OverlapKind", "overlap"]

OverlapKind = Literal["iou", "giou", "diou", "ciou", "siou"]

EPSILON = 1e-7
# SIoU: how sharply a difference of shape is punished; the paper finds values between 2 and 6.
SHAPE_POWER = 4


def overlap(a_X4: Tensor, b_X4: Tensor, kind: OverlapKind = "iou") -> Tensor:
    """Return a measure of overlap of boxes side by side; leading shapes broadcast.

    All measures are 1 for equal boxes. ``iou`` lies in [0, 1], ``giou`` and ``diou`` in [-1, 1];
    ``ciou`` and ``siou`` can fall below -1.
    """
    ax1, ay1, ax2, ay2 = a_X4.unbind(-1)
    bx1, by1, bx2, by2 = b_X4.unbind(-1)
    # The heights alone carry the epsilon: it keeps unions, and the ratios of CIoU, above zero.
    aw, ah = ax2 - ax1, ay2 - ay1 + EPSILON
    bw, bh = bx2 - bx1, by2 - by1 + EPSILON
    shared_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    shared_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    shared = shared_w * shared_h
    union = aw * ah + bw * bh - shared + EPSILON
    iou = shared / union
    if kind == "iou":
        return iou

    hull_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    if kind == "giou":
        hull = hull_w * hull_h + EPSILON
        return iou - (hull - union) / hull

    offset_x = (bx1 + bx2 - ax1 - ax2) / 2
    offset_y = (by1 + by2 - ay1 - ay2) / 2
    if kind == "siou":
        distance = _siou_distance(offset_x, offset_y, hull_w, hull_h)
        return iou - (distance + _siou_shape(aw, ah, bw, bh)) / 2

    diou = iou - (offset_x.square() + offset_y.square()) / (hull_w.square() + hull_h.square() + EPSILON)
    if kind == "diou":
        return diou

    angle = torch.atan(bw / (bh + EPSILON)) - torch.atan(aw / (ah + EPSILON))
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        trade_off = aspect / (aspect - iou + (1 + EPSILON))
    return diou - trade_off * aspect


def _siou_distance(offset_x: Tensor, offset_y: Tensor, hull_w: Tensor, hull_h: Tensor) -> Tensor:
    """Return the distance cost, in [0, 2], which counts less the nearer the boxes are to a diagonal."""
    # 1 - 2 sin^2(arcsin(s) - pi/4) with s = |y| / r is sin(2 arcsin(s)), without the trigonometry
    # whose gradient is infinite on the axes.
    angle = 2 * offset_x.abs() * offset_y.abs() / (offset_x.square() + offset_y.square() + EPSILON)
    steepness = 2 - angle
    x = (offset_x / (hull_w + EPSILON)).square()
    y = (offset_y / (hull_h + EPSILON)).square()
    return 2 - torch.exp(-steepness * x) - torch.exp(-steepness * y)


def _siou_shape(aw: Tensor, ah: Tensor, bw: Tensor, bh: Tensor) -> Tensor:
    """Return the shape cost, in [0, 2]."""
    w = (aw - bw).abs() / (torch.maximum(aw, bw) + EPSILON)
    h = (ah - bh).abs() / (torch.maximum(ah, bh) + EPSILON)
    return (1 - torch.exp(-w)).pow(SHAPE_POWER) + (1 - torch.exp(-h)).pow(SHAPE_POWER)
