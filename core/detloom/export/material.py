"""What an export reads of a data set: what to learn from, to calibrate on, and to measure on."""

from dataclasses import dataclass
from pathlib import Path

from detloom.data.faults import refuse_faults
from detloom.data.records import Annotations
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.engine.evaluate import labels_in
from detloom.errors import ExportError
from detloom.export.pictures import Pictures, chosen, drawn
from detloom.kinds import Kind
from detloom.recipe import Recipe

__all__ = ["COMPARED", "PROVED", "Material", "read_material"]

COMPARED = 16
"""Validation pictures on which the raw maps of each stage are compared."""
PROVED = 2
"""Calibration pictures on which the folded form is proved equal; in float64, each takes a while."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What an export works with.

    Attributes:
        train: What to learn from, where there is a data set.
        val: What to measure AP on, where there is a data set.
        calibration: What the ranges of numbers are found on; drawn where there is no data set.
        comparison: What raw maps are compared on; drawn where there is no data set.
    """

    train: Annotations | None
    val: Annotations | None
    calibration: Pictures
    comparison: Pictures


def read_material(
    data: Path | None, detector: Detector, recipe: Recipe, size: tuple[int, int], *, count: int, skip_bad: bool = False
) -> Material:
    """Read the splits that a recipe names, and choose pictures of them.

    Args:
        data: The data set; None gives drawn pictures.
        detector: Whose classes the data must have.
        recipe: Whose ``[data]`` and ``[dataset]`` say what the splits are.
        size: Height and width of the canvas.
        count: Pictures to calibrate on.
        skip_bad: Go on without faulty pictures and boxes.

    Raises:
        DataError: The data cannot be used, or has other classes.
        ExportError: There are no pictures.
    """
    if data is None:
        pictures = drawn(COMPARED, size)
        return Material(None, None, pictures, pictures)
    train, val = open_splits(data, recipe.data, recipe.tables.get(Kind.DATASET), seed=recipe.train.seed)
    refuse_faults((train, val), skip_bad=skip_bad or recipe.data.skip_bad)
    for part in (train, val):
        labels_in(part, detector.names)
    if not any(len(record.labels_N) for record in val.images):
        raise ExportError(f"{val.source}: there is no object to measure AP on; name another split in [data] val")
    stride = detector.max_stride
    return Material(train, val, chosen(train, count, size, stride=stride), chosen(val, COMPARED, size, stride=stride))
