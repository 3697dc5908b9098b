"""The checks of detloom's kit, then boxes as written, and faults that are told, not raised."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from new_plugin import NewComponent
from PIL import Image

import detloom
from detloom.data.splits import open_split
from detloom.errors import DataError
from detloom.testing import Check, parametrize_with_checks

HEADER = "file,x_min,y_min,x_max,y_max,class\n"


def write_example(folder: Path) -> Path:
    """Write a data set of two pictures of 32 x 16 pixels, one of them without objects."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 16)).save(folder / name)
    (folder / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    (folder / "train.csv").write_text(
        f"{HEADER}a.png,1,2,11,12,dog\na.png,0,0,32,16,cat\nb.png,,,,,\n", encoding="utf-8"
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_example(tmp_path)


@cache
def example() -> Path:
    """Return the same data set for every check."""
    return write_example(Path(mkdtemp()))


@parametrize_with_checks(NewComponent, example=example)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_boxes_are_read_as_written(folder: Path) -> None:
    found = NewComponent(folder).read("train")

    assert found.names == ("cat", "dog")
    assert [image.path.name for image in found.images] == ["a.png", "b.png"]
    assert found.images[0].boxes_N4.tolist() == [[1, 2, 11, 12], [0, 0, 32, 16]]
    assert found.images[0].labels_N.tolist() == [1, 0]
    assert found.images[1].boxes_N4.shape == (0, 4)
    assert found.faults == ()


def test_detloom_recognises_the_folder(folder: Path, tmp_path: Path) -> None:
    assert len(open_split(folder, "train").images) == 2
    assert not NewComponent.recognises(tmp_path / "absent")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("a.png,1,2,11,12,bird", "no class is called 'bird'"),
        ("a.png,11,2,1,12,cat", "no area"),
        ("a.png,one,2,11,12,cat", "no finite number"),
        ("absent.png,1,2,11,12,cat", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_a_fault(folder: Path, row: str, what: str) -> None:
    (folder / "train.csv").write_text(f"{HEADER}{row}\n", encoding="utf-8")

    (fault,) = NewComponent(folder).read("train").faults

    assert what in fault.what


def test_a_split_that_is_not_there_is_told_with_those_that_are(folder: Path) -> None:
    with pytest.raises(DataError, match="Splits there: train"):
        NewComponent(folder).read("val")
