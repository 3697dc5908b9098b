"""What a strategy may build and train on before the first trial."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detloom.detector import Detector
from detloom.recipe import Recipe
from detloom.search.space import Point

__all__ = ["Ground"]


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
