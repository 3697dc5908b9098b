"""Checks of readers of data sets, on the author's example.

Shape letter: N boxes of one image.
"""

import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from detloom.data.records import Annotations, ImageRecord
from detloom.errors import DataError
from detloom.interfaces import Dataset
from detloom.testing.construction import Build, check_signature, demand

__all__ = ["CHECKS", "WITH_EXAMPLE"]

SPLIT = "train"
COLUMNS = {
    "boxes_N4": np.float32,
    "labels_N": np.int64,
    "is_crowd_N": np.bool_,
    "area_N": np.float32,
    "annotation_ids_N": np.int64,
}


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """The path comes first; a recipe's table is the keyword arguments."""
    check_signature(build, ("path",))


def example_is_recognised(build: Build) -> None:
    """Nobody need say in which format a data set is."""
    path = _example(build)
    says = build.cls.recognises(path)
    demand(says is True, f"recognises({path}) is {says!r}; return True for a data set of this format")


def other_folders_are_not_recognised(build: Build) -> None:
    """Another reader's data set is not claimed, and nothing is raised where there is none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notes.md").write_text("no data set\n", encoding="utf-8")
        (folder / "empty").mkdir()
        for path in (folder, folder / "empty", folder / "notes.md", folder / "nowhere"):
            says = build.cls.recognises(path)
            demand(says is False, f"recognises() of {path.name}, which is no data set, is {says!r}; return False")


def missing_data_are_a_data_error(build: Build) -> None:
    """A path with a slip of the pen is told as such."""
    with tempfile.TemporaryDirectory() as name:
        _demand_data_error(build, Path(name) / "nowhere", SPLIT)


def unknown_split_is_a_data_error(build: Build) -> None:
    """So is a split that is not there."""
    _demand_data_error(build, _example(build), "no-such-split")


def annotations_are_well_formed(build: Build) -> None:
    """Types, shapes and limits are those that the core relies on."""
    found = _read(build)
    demand(isinstance(found, Annotations), f"read() returned a {type(found).__name__}; return Annotations")
    demand(found.images, f"read('{SPLIT}') of the example has no images; give an example with some")
    demand(
        len(set(found.names)) == len(found.names) > 0 and len(found.category_ids) == len(found.names),
        f"names are {found.names} with category_ids {found.category_ids}; each class has a name and an id of its own",
    )
    for record in found.images:
        _demand_columns(record)
        labels_N, boxes_N4 = record.labels_N, record.boxes_N4
        inside = bool(((labels_N >= 0) & (labels_N < len(found.names))).all())
        demand(inside, f"{record.path}: labels {labels_N.tolist()} of {len(found.names)} classes; indices count from 0")
        sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        demand(
            bool((sizes_N2 > 0).all()),
            f"{record.path}: boxes {boxes_N4[:3].tolist()}; give x0, y0, x1, y1; a box without area is a fault",
        )


def boxes_lie_inside_their_pictures(build: Build) -> None:
    """Pixels, not fractions; what reaches beyond is clipped, and listed as a fault."""
    for record in _read(build).images:
        if record.height and record.width and len(record.boxes_N4):
            limit_4 = np.array([record.width, record.height] * 2, np.float32)
            demand(
                bool(((record.boxes_N4 >= 0) & (record.boxes_N4 <= limit_4)).all()),
                f"{record.path}: boxes {record.boxes_N4[:3].tolist()} reach beyond {record.width} x {record.height}; "
                "clip them, see detloom.data.faults.RecordBuilder",
            )


def pictures_are_there_and_told_apart(build: Build) -> None:
    """Every picture is a file, once, with an id of its own."""
    images = _read(build).images
    lost = [record.path for record in images if not record.path.is_file()]
    demand(not lost, f"there is no {lost[:1]}; return paths that can be opened from any folder")
    for what, values in (("path", [r.path for r in images]), ("image_id", [r.image_id for r in images])):
        demand(len(set(values)) == len(values), f"two images have the same {what}; list each picture once")


def objects_are_found(build: Build) -> None:
    """An example without objects shows nothing of the format."""
    count = sum(len(record.labels_N) for record in _read(build).images)
    demand(count, "the example's pictures have no objects; read them, or give an example with some")


def reading_twice_gives_the_same(build: Build) -> None:
    """The order is fixed, as a resumed training relies on it."""
    first, again = _read(build), _read(build)
    order = [[record.path for record in found.images] for found in (first, again)]
    demand(
        order[0] == order[1] and first.names == again.names, "a second reading has another order; sort what is listed"
    )
    for one, other in zip(first.images, again.images, strict=True):
        same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
        demand(same, f"{one.path}: a second reading has other boxes")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    example_is_recognised,
    other_folders_are_not_recognised,
    missing_data_are_a_data_error,
    unknown_split_is_a_data_error,
    annotations_are_well_formed,
    boxes_lie_inside_their_pictures,
    pictures_are_there_and_told_apart,
    objects_are_found,
    reading_twice_gives_the_same,
)

WITH_EXAMPLE = tuple(
    each
    for each in CHECKS
    if each
    not in (settings_are_keyword_only_and_typed, other_folders_are_not_recognised, missing_data_are_a_data_error)
)
"""Those that work on the author's example."""


def _example(build: Build) -> Path:
    demand(
        build.example,
        f"there is no example to read; give example=..., a function that returns the path of a small data set of this "
        f"format with the split '{SPLIT}'",
    )
    return Path(build.example()) if build.example else Path()


def _read(build: Build) -> Annotations:
    reader: Dataset = build(_example(build))
    return reader.read(SPLIT)


def _demand_data_error(build: Build, path: Path, split: str) -> None:
    try:
        build(path).read(split)
    except DataError as error:
        named = path.name in str(error) or split in str(error)
        demand(named, f"the message names neither the path nor the split: {error}")
        return
    except Exception as error:
        raise AssertionError(
            f"split '{split}' of {path} raises {type(error).__name__}: {error}; raise a DataError that names the file"
        ) from error
    raise AssertionError(f"split '{split}' of {path} is read in silence; raise a DataError: there is no such thing")


def _demand_columns(record: ImageRecord) -> None:
    demand({*COLUMNS} <= {each.name for each in fields(record)}, f"images holds a {type(record).__name__}")
    count = len(record.labels_N)
    for name, dtype in COLUMNS.items():
        column: Any = getattr(record, name)
        shape = (count, 4) if name == "boxes_N4" else (count,)
        demand(
            column.dtype == dtype and column.shape == shape,
            f"{record.path}: {name} is {column.dtype} of shape {column.shape}, not {np.dtype(dtype)} of {shape}",
        )
