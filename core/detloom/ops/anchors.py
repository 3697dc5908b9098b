"""How well anchors fit the sizes of boxes.

The rule is YOLOv5's and YOLOv7's: an anchor can learn a box if neither its width nor its height is ``threshold`` times
larger or smaller. Sizes and anchors are widths and heights in pixels of the network's input, above 0.

Shape letters: N boxes, A anchors, S sets of anchors; 2 is width and height.

Reference: Jocher et al., YOLOv5 (2020), its check of anchors before a training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["THRESHOLD", "AnchorFit", "anchor_fit", "by_area", "fitness", "size_ratios"]

THRESHOLD = 4.0
"""The published ratio of sides, up to which an anchor can learn a box."""


@dataclass(frozen=True, slots=True)
class AnchorFit:
    """How well anchors fit boxes.

    Attributes:
        recall: Best possible recall: the share of boxes that some anchor can learn.
        anchors_per_target: Mean number of anchors that can learn a box.
        fitness: Mean over all boxes of the size ratio with the best anchor, which counts as 0 where it cannot learn.
    """

    recall: float
    anchors_per_target: float
    fitness: float


def size_ratios(sizes_N2: Tensor, anchors_A2: Tensor) -> Tensor:
    """Return ``[N, A]`` in (0, 1]: smaller side over larger, of widths or of heights, whichever is less."""
    sizes_N12 = sizes_N2[:, None]
    ratio_NA2 = torch.minimum(sizes_N12, anchors_A2) / torch.maximum(sizes_N12, anchors_A2)
    return ratio_NA2.amin(dim=-1)


def anchor_fit(sizes_N2: Tensor, anchors_A2: Tensor, threshold: float = THRESHOLD) -> AnchorFit:
    """Return how well anchors fit at least one box."""
    ratio_NA = size_ratios(sizes_N2, anchors_A2)
    learns_NA = ratio_NA > 1 / threshold
    return AnchorFit(
        recall=learns_NA.any(dim=1).double().mean().item(),
        anchors_per_target=learns_NA.sum(dim=1).double().mean().item(),
        fitness=fitness(sizes_N2, anchors_A2[None], threshold).item(),
    )


def fitness(sizes_N2: Tensor, anchors_SA2: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Return the ``[S]`` fitness of sets of anchors; see ``AnchorFit``.

    It takes memory for one anchor of each set at a time, which is faster as well.
    """
    width_N, height_N = sizes_N2.T.contiguous()
    best_SN = sizes_N2.new_zeros(len(anchors_SA2), len(sizes_N2))
    for anchor_S2 in anchors_SA2.unbind(dim=1):
        width_S1, height_S1 = anchor_S2[:, :1], anchor_S2[:, 1:]
        across_SN = torch.minimum(width_N, width_S1) / torch.maximum(width_N, width_S1)
        down_SN = torch.minimum(height_N, height_S1) / torch.maximum(height_N, height_S1)
        best_SN = torch.maximum(best_SN, torch.minimum(across_SN, down_SN))
    return torch.where(best_SN > 1 / threshold, best_SN, 0).mean(dim=1)


def by_area(anchors_A2: Tensor) -> Tensor:
    """Return the anchors by growing area; equal ones stay in their order."""
    return anchors_A2[anchors_A2.prod(dim=1).argsort(stable=True)]
