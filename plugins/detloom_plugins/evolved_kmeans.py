"""Anchors by k-means, refined by a genetic search for the fitness that training sees.

k-means minimises a distance that training knows nothing of. So its centres are only where the search starts: all
anchors of a set are stretched at random, and the set that comes of it is kept where it fits better.

Several searches run side by side, in tensors with one more dimension, because a single one often ends in a set that no
small change makes better. One of them starts from the present anchors, and so the result fits no worse than they do.

Shape letters: N boxes, A anchors, S searches; 2 is width and height.

Reference: Jocher et al., YOLOv5 (2020), its automatic anchors, as YOLOv7 (2022) trains with them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import AnchorSearch
from detloom.ops.anchors import THRESHOLD, by_area, fitness
from detloom.ops.kmeans import kmeans

__all__ = ["EvolvedKmeans"]

# As published.
MUTATED = 0.9
SPREAD = 0.1
LEAST, MOST = 0.3, 3.0
SMALLEST = 2.0


class EvolvedKmeans(AnchorSearch):
    """k-means on widths and heights in units of their spread, then mutation and selection.

    Args:
        generations: Mutants of each search, one after the other.
        starts: Sets of k-means that are refined, beside the present anchors.
        iterations: Most steps of each k-means.
        threshold: Ratio of sides up to which an anchor can learn a box.
        min_recall: Share of boxes that some anchor can learn, below which training searches.
    """

    def __init__(
        self,
        *,
        generations: int = 1000,
        starts: int = 7,
        iterations: int = 30,
        threshold: float = THRESHOLD,
        min_recall: float = 0.98,
    ) -> None:
        if generations < 0:
            raise RecipeError(f"generations must be at least 0, got {generations}; published: 1000")
        if starts < 1 or iterations < 1:
            raise RecipeError(f"starts and iterations must be at least 1, got {starts} and {iterations}")
        if not threshold > 1:
            raise RecipeError(f"threshold must be above 1, got {threshold}; published: 4")
        if not 0 <= min_recall <= 1:
            raise RecipeError(f"min_recall must be between 0 and 1, got {min_recall}; published: 0.98")
        self.generations = generations
        self.starts = starts
        self.iterations = iterations
        self.threshold = threshold
        self.min_recall = min_recall

    def search(self, sizes_N2: Tensor, current_A2: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many anchors as there are at present, ``[A, 2]``, by growing area."""
        clusters = [self.clustered(sizes_N2, len(current_A2), generator) for _ in range(self.starts)]
        evolved_SA2 = self.evolved(sizes_N2, torch.stack((current_A2, *clusters)), generator)
        # The first of equals: the present anchors, if nothing is better.
        best = fitness(sizes_N2, evolved_SA2, self.threshold).argmax()
        return by_area(evolved_SA2[best])

    def clustered(self, sizes_N2: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the centres of k-means ``[count, 2]``, each axis divided by its deviation meanwhile."""
        deviation_2 = sizes_N2.std(dim=0, correction=0)
        scale_2 = torch.where(deviation_2 > 0, deviation_2, 1)
        return kmeans(sizes_N2 / scale_2, count, _distance, iterations=self.iterations, generator=generator) * scale_2

    def evolved(self, sizes_N2: Tensor, anchors_SA2: Tensor, generator: torch.Generator) -> Tensor:
        """Return sets of anchors ``[S, A, 2]``, none less fit than the one it came from."""
        fitness_S = fitness(sizes_N2, anchors_SA2, self.threshold)
        for _ in range(self.generations):
            mutant_SA2 = self.mutated(anchors_SA2, generator)
            found_S = fitness(sizes_N2, mutant_SA2, self.threshold)
            is_fitter_S = found_S > fitness_S
            anchors_SA2 = torch.where(is_fitter_S[:, None, None], mutant_SA2, anchors_SA2)
            fitness_S = torch.where(is_fitter_S, found_S, fitness_S)
        return anchors_SA2

    def mutated(self, anchors_SA2: Tensor, generator: torch.Generator) -> Tensor:
        """Return the anchors with most sides stretched or shrunk, by factors whose spread is drawn for each set."""
        shape = anchors_SA2.shape
        is_changed_SA2 = torch.rand(shape, generator=generator) < MUTATED
        spread_S11 = SPREAD * torch.rand((shape[0], 1, 1), generator=generator)
        factor_SA2 = 1 + is_changed_SA2 * spread_S11 * torch.randn(shape, generator=generator)
        return (anchors_SA2 * factor_SA2.clamp(LEAST, MOST)).clamp_min(SMALLEST)


def _distance(points_N2: Tensor, centres_K2: Tensor) -> Tensor:
    # By matrix product it would round otherwise with each number of threads.
    return torch.cdist(points_N2, centres_K2, compute_mode="donot_use_mm_for_euclid_dist")


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the search."""
    register("evolved-kmeans", EvolvedKmeans)
