"""Clusters of points, under any distance, the same for the same generator.

Shape letters: N points, K centres, D numbers of a point.

References: Lloyd, Least squares quantization in PCM (1982); Arthur and Vassilvitskii, k-means++ (2007), section 2.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Distance", "kmeans"]

Distance = Callable[[Tensor, Tensor], Tensor]
"""Points ``[N, D]`` and centres ``[K, D]`` to distances ``[N, K]``, at least 0."""


def kmeans(points_ND: Tensor, count: int, distance: Distance, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Return ``[count, D]`` centres, each the mean of the points that are nearest to it.

    A centre that loses all of its points stays where it is.

    Args:
        points_ND: At least one.
        count: Number of centres.
        distance: Of points from centres.
        iterations: The most; it ends sooner when no point changes its centre.
        generator: Draws the first centres, each from points that are far from the others.
    """
    centre_KD = _seeds(points_ND, count, distance, generator)
    nearest_N = torch.full((len(points_ND),), -1)
    for _ in range(iterations):
        before_N, nearest_N = nearest_N, distance(points_ND, centre_KD).argmin(dim=1)
        if nearest_N.equal(before_N):
            break
        sum_KD = torch.zeros_like(centre_KD).index_add_(0, nearest_N, points_ND)
        members_K1 = nearest_N.bincount(minlength=count)[:, None]
        centre_KD = torch.where(members_K1 > 0, sum_KD / members_K1, centre_KD)
    return centre_KD


def _seeds(points_ND: Tensor, count: int, distance: Distance, generator: torch.Generator) -> Tensor:
    """Draw points, each as likely as its squared distance from the nearest one drawn before."""
    weight_N = points_ND.new_ones(len(points_ND))
    chosen: list[Tensor] = []
    squared_N = torch.full_like(weight_N, torch.inf)
    for _ in range(count):
        index_1 = torch.multinomial(weight_N, 1, generator=generator)
        chosen.append(points_ND[index_1])
        squared_N = torch.minimum(squared_N, distance(points_ND, chosen[-1])[:, 0].square())
        # Where there are fewer different points than centres, some are drawn twice.
        weight_N = squared_N if bool(squared_N.any()) else torch.ones_like(squared_N)
    return torch.cat(chosen)
