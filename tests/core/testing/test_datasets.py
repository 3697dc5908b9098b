"""Readers of data sets that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detloom.data.records import Annotations, ImageRecord
from detloom.errors import DataError
from detloom.interfaces import Dataset
from detloom.testing import check_component, datasets

Caught = Callable[..., dict[str, str]]


class PlainDataset(Dataset):
    """A file ``train.boxes`` with a row of a picture's name and corners for each object; all are cats."""

    def __init__(self, path: Path, *, strict: bool = True) -> None:
        self.path = path
        self.strict = strict

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir() and any(path.glob("*.boxes"))

    def read(self, split: str) -> Annotations:
        file = self.path / f"{split}.boxes"
        if not file.is_file():
            raise DataError(f"{file}: there is no such split")
        rows = [line.split() for line in file.read_text("utf-8").splitlines()]
        images = [self.record(name, [row[1:] for row in rows if row[0] == name]) for name in ("a.jpg", "b.jpg")]
        return self.spoiled(Annotations(("cat",), tuple(images), (), (1,), file))

    def record(self, name: str, rows: list[list[str]]) -> ImageRecord:
        boxes_N4 = np.array(rows, np.float32).reshape(-1, 4)
        count = len(rows)
        return ImageRecord(
            self.path / name,
            ord(name[0]),
            50,
            100,
            boxes_N4,
            np.zeros(count, np.int64),
            np.zeros(count, np.bool_),
            (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1),
            np.arange(count, dtype=np.int64),
        )

    def spoiled(self, found: Annotations) -> Annotations:
        """Return the annotations as they are; the wrong readers change them."""
        return found


def with_first(found: Annotations, **changes: Any) -> Annotations:
    return replace(found, images=(replace(found.images[0], **changes), *found.images[1:]))


class PositionalDataset(PlainDataset):
    """Takes its setting by position as well."""

    def __init__(self, path: Path, strict: bool = True) -> None:
        super().__init__(path, strict=strict)


class ModestDataset(PlainDataset):
    """Recognises nothing."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        del path
        return False


class GreedyDataset(PlainDataset):
    """Recognises every folder."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir()


class RawDataset(PlainDataset):
    """Raises the error of the operating system where there is nothing to read."""

    def read(self, split: str) -> Annotations:
        if not self.path.exists():
            raise FileNotFoundError(self.path)
        return super().read(split)


class AnySplitDataset(PlainDataset):
    """Reads the training split whatever it is asked for."""

    def read(self, split: str) -> Annotations:
        return super().read("train" if self.path.exists() else split)


class CountingFromOneDataset(PlainDataset):
    """Counts classes from 1."""

    def spoiled(self, found: Annotations) -> Annotations:
        return with_first(found, labels_N=found.images[0].labels_N + 1)


class UnclippedDataset(PlainDataset):
    """Has boxes beyond their picture."""

    def spoiled(self, found: Annotations) -> Annotations:
        return with_first(found, boxes_N4=found.images[0].boxes_N4 * np.float32(3))


class LostDataset(PlainDataset):
    """Has a path that is relative to the data set."""

    def spoiled(self, found: Annotations) -> Annotations:
        return with_first(found, path=Path("a.jpg"))


class BlindDataset(PlainDataset):
    """Reads no objects."""

    def record(self, name: str, rows: list[list[str]]) -> ImageRecord:
        return super().record(name, rows[:0])


class RestlessDataset(PlainDataset):
    """Lists the pictures backwards every second time."""

    turn = 0

    def spoiled(self, found: Annotations) -> Annotations:
        RestlessDataset.turn += 1
        return replace(found, images=found.images[:: 1 if RestlessDataset.turn % 2 else -1])


WRONG: dict[str, tuple[type[Dataset], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalDataset, "every setting is keyword-only"),
    "example_is_recognised": (ModestDataset, "return True for a data set of this format"),
    "other_folders_are_not_recognised": (GreedyDataset, "return False"),
    "missing_data_are_a_data_error": (RawDataset, "raises FileNotFoundError"),
    "unknown_split_is_a_data_error": (AnySplitDataset, "is read in silence"),
    "annotations_are_well_formed": (CountingFromOneDataset, "indices count from 0"),
    "boxes_lie_inside_their_pictures": (UnclippedDataset, "clip them"),
    "pictures_are_there_and_told_apart": (LostDataset, "from any folder"),
    "objects_are_found": (BlindDataset, "have no objects"),
    "reading_twice_gives_the_same": (RestlessDataset, "sort what is listed"),
}


def example(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    (folder / "train.boxes").write_text("a.jpg 10 5 40 30\na.jpg 30 20 100 50\n", "utf-8")
    return folder


def test_right_reader_passes_all(tmp_path: Path) -> None:
    check_component(PlainDataset, example=partial(example, tmp_path))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_reader_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught, tmp_path: Path) -> None:
    cls, message = WRONG[name]

    broken = caught(cls, partial(example, tmp_path))

    assert set(broken) == {name}
    assert message in broken[name]


def test_reader_without_an_example_is_asked_for_one(caught: Caught) -> None:
    assert "give example=..., a function that returns the path" in caught(PlainDataset)["example_is_recognised"]


def test_every_check_of_readers_has_a_wrong_one() -> None:
    assert [check.__name__ for check in datasets.CHECKS] == list(WRONG)
