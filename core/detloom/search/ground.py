"""What a strategy may build and train on before the first trial."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detloom.assembly import assemble
from detloom.building import without_initial_weights
from detloom.detector import Detector
from detloom.recipe import Recipe
from detloom.search.space import Point
from detloom.workshop import workshop

__all__ = ["Ground", "drawn_detector"]


def drawn_detector(recipe: Recipe, names: Sequence[str], seed: int) -> Detector:
    """Return the detector of a recipe with weights that are drawn, whatever the recipe starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assemble(without_initial_weights(recipe, workshop()), names=names)


@dataclass(frozen=True, slots=True)
class Ground:
    """The recipes of points, and where something may be trained.

    Attributes:
        recipe: Returns the recipe of a point as it is trained in the search, proxies included.
        build: Returns the detector of a point for the classes of the data, with drawn weights.
        data: The data set's path.
        folder: A directory of its own, which survives until the search ends.
        seed: Of the search.
    """

    recipe: Callable[[Point], Recipe]
    build: Callable[[Point], Detector]
    data: str
    folder: Path
    seed: int
