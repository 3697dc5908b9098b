"""The data check: every fault of the splits that a recipe would use."""

from pathlib import Path

from detloom.data.records import Fault
from detloom.data.splits import formats_of, open_splits
from detloom.recipe import Recipe
from detloom.workshop import workshop

__all__ = ["check_path"]


def check_path(path: str | Path, recipe: Recipe) -> tuple[Fault, ...]:
    """Return every fault of a data set, each picture decoded in full.

    Raises:
        DataError: The data set cannot be read at all.
    """
    train, val = open_splits(path, recipe.data, recipe.tables.get("dataset"), formats_of(workshop()), decode=True)
    return (*train.faults, *val.faults)
