"""The data check: every fault of the splits that a recipe would use."""

from collections.abc import Callable
from pathlib import Path

from detloom.data.faults import faults_of
from detloom.data.records import Fault
from detloom.data.splits import open_splits
from detloom.recipe import Recipe

__all__ = ["check_path"]


def check_path(
    path: str | Path, recipe: Recipe, *, progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[str, ...], tuple[Fault, ...]]:
    """Return the class names of a data set, and every fault, each picture decoded in full.

    Args:
        path: The data set's folder or file.
        recipe: Says which splits, and how they are read.
        progress: Called with the pictures of a split looked at so far, and all of them.

    Raises:
        DataError: The data set cannot be read at all.
    """
    train, val = open_splits(path, recipe.data, recipe.tables.get("dataset"), decode=True, progress=progress)
    return train.names, faults_of((train, val))
