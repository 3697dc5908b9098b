"""Anchors by k-means with overlap as the distance.

Under Euclid's distance large boxes err more than small ones; ``1 - IoU`` does not depend on the scale.

Shape letters: N boxes, A anchors, K centres; 2 is width and height.

Reference: Redmon and Farhadi, YOLO9000 (2017), section 2, "Dimension clusters".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import AnchorSearch
from detloom.ops.anchors import THRESHOLD, by_area
from detloom.ops.kmeans import kmeans

__all__ = ["IouKmeans", "overlap_distance"]


class IouKmeans(AnchorSearch):
    """k-means on widths and heights with the distance ``1 - IoU``; an anchor is the mean of its boxes.

    Args:
        iterations: Most steps; it ends when no box changes its anchor.
        threshold: Ratio of sides up to which an anchor can learn a box.
        min_recall: Share of boxes that some anchor can learn, below which training searches.
    """

    def __init__(self, *, iterations: int = 100, threshold: float = THRESHOLD, min_recall: float = 0.98) -> None:
        if iterations < 1:
            raise RecipeError(f"iterations must be at least 1, got {iterations}")
        if not threshold > 1:
            raise RecipeError(f"threshold must be above 1, got {threshold}; published: 4")
        if not 0 <= min_recall <= 1:
            raise RecipeError(f"min_recall must be between 0 and 1, got {min_recall}; published: 0.98")
        self.iterations = iterations
        self.threshold = threshold
        self.min_recall = min_recall

    def search(self, sizes_N2: Tensor, current_A2: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many anchors as there are at present, ``[A, 2]``, by growing area."""
        count = len(current_A2)
        return by_area(kmeans(sizes_N2, count, overlap_distance, iterations=self.iterations, generator=generator))


def overlap_distance(sizes_N2: Tensor, centres_K2: Tensor) -> Tensor:
    """Return ``[N, K]``: 1 - IoU of boxes and centres that lie with their middles on one another."""
    shared_NK = torch.minimum(sizes_N2[:, None], centres_K2).prod(dim=-1)
    union_NK = sizes_N2.prod(dim=-1)[:, None] + centres_K2.prod(dim=-1) - shared_NK
    return 1 - shared_NK / union_NK


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the search."""
    register("iou-kmeans", IouKmeans)
