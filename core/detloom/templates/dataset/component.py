"""Annotations as comma-separated values: ``classes.txt``, and ``train.csv``, ``val.csv`` and so on beside it.

``classes.txt`` has a class name on each line. The columns of a split are ``file`` (a path relative to the folder),
``x_min``, ``y_min``, ``x_max``, ``y_max`` (pixels) and ``class`` (a name). A row with a file alone is a picture without
objects.

Reference: RFC 4180 for the values.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detloom import hookimpl
from detloom.data.faults import RecordBuilder, as_number
from detloom.data.reading import picture_size
from detloom.data.records import Annotations, Fault
from detloom.errors import DataError
from detloom.interfaces import Dataset

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1

CLASSES = "classes.txt"
SIDES = ("x_min", "y_min", "x_max", "y_max")
COLUMNS = ("file", *SIDES, "class")


class NewComponent(Dataset):
    """Reads comma-separated values.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether this is a folder with ``classes.txt`` and a file of values."""
        return (path / CLASSES).is_file() and any(path.glob("*.csv"))

    def read(self, split: str) -> Annotations:
        """Return the images, boxes and faults of a split."""
        file = self.path / f"{split}.csv"
        try:
            names = (self.path / CLASSES).read_text(encoding="utf-8").splitlines()
            with file.open(encoding="utf-8", newline="") as stream:
                reader = csv.DictReader(stream)
                columns, rows = tuple(reader.fieldnames or ()), list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            known = ", ".join(sorted(each.stem for each in self.path.glob("*.csv"))) or "none"
            raise DataError(f"{file}: the split cannot be read ({error}). Splits there: {known}.") from error
        if columns != COLUMNS:
            raise DataError(f"{file}: the first line must be {','.join(COLUMNS)}, but is {','.join(columns)}.")
        labels = {name: label for label, name in enumerate(names)}
        faults: list[Fault] = []
        builders: dict[str, RecordBuilder | None] = {}
        for number, row in enumerate(rows, start=2):
            name = row["file"]
            if name not in builders:
                builders[name] = self._builder(name, len(builders) + 1, file, faults)
            if builder := builders[name]:
                _add_row(builder, row, labels, f"line {number}")
        return Annotations(
            names=tuple(labels),
            images=tuple(builder.build() for builder in builders.values() if builder),
            faults=tuple(faults),
            category_ids=tuple(labels.values()),
            source=file,
        )

    def _builder(self, name: str, position: int, file: Path, faults: list[Fault]) -> RecordBuilder | None:
        picture = self.path / name
        try:
            height, width = picture_size(picture)
        except DataError as error:
            faults.append(Fault(str(picture), "", str(error)))
            return None
        return RecordBuilder(picture, position, height, width, str(file), faults)


def _add_row(builder: RecordBuilder, row: dict[str, str | None], labels: dict[str, int], where: str) -> None:
    """Add a box; one that cannot be used becomes a fault."""
    if not any(row[column] for column in (*SIDES, "class")):
        return
    label = labels.get(str(row["class"]))
    if label is None:
        builder.faults.append(Fault(builder.file, where, f"no class is called '{row['class']}' in {CLASSES}"))
        return
    builder.add([as_number(row[column]) for column in SIDES], label, where)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the reader under the name that recipes use."""
    register("new-component", NewComponent)
