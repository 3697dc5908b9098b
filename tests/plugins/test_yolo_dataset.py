"""YOLO text: boxes, polygons, layouts, faults, and files that were spoilt."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detloom.data.records import Annotations
from detloom.errors import DataError
from detloom_plugins.yolo_dataset import YoloDataset, label_file

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def made(folder: Path, labels: str = "0 0.5 0.5 0.2 0.4\n", yaml: str = YAML) -> YoloDataset:
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
    picture = folder / "images" / "train" / "a.png"
    if not picture.exists():
        Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(picture)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(picture.with_name("empty.png"))
    (folder / "labels" / "train" / "a.txt").write_text(labels)
    (folder / "data.yaml").write_text(yaml)
    return YoloDataset(folder)


def read(folder: Path, labels: str) -> Annotations:
    return made(folder, labels).read("train")


def test_fractions_become_pixels(tmp_path: Path) -> None:
    annotations = read(tmp_path, "0 0.5 0.5 0.2 0.4\n\n1 0.25 0.5 0.5 1\n")

    np.testing.assert_allclose(annotations.images[0].boxes_N4, [[40, 15, 60, 35], [0, 0, 50, 50]], atol=1e-4)
    assert annotations.images[0].labels_N.tolist() == [0, 1]
    assert annotations.names == ("cat", "dog")
    assert annotations.faults == ()


def test_polygons_become_the_boxes_around_them(tmp_path: Path) -> None:
    annotations = read(tmp_path, "1 0.1 0.2 0.5 0.1 0.3 0.8\n0 0.5 0.5 0.2 0.4\n")

    np.testing.assert_allclose(annotations.images[0].boxes_N4, [[10, 5, 50, 40], [40, 15, 60, 35]], atol=1e-4)


def test_pictures_without_a_text_file_are_kept(tmp_path: Path) -> None:
    annotations = read(tmp_path, "0 0.5 0.5 0.2 0.4")

    assert [record.path.name for record in annotations.images] == ["a.png", "empty.png"]
    assert len(annotations.images[1].boxes_N4) == 0


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("0 0.5 0.5 0.2", "has 4 columns"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 6 columns"),
        ("0 0.1 0.2 0.5 0.1 0.3 0.8 0.4", "has 8 columns"),
        ("2 0.5 0.5 0.2 0.4", "there is no class 2; classes are 0 to 1"),
        ("-1 0.5 0.5 0.2 0.4", "there is no class -1"),
        ("cat 0.5 0.5 0.2 0.4", "there is no class cat"),
        ("0.5 0.5 0.5 0.2 0.4", "there is no class 0.5"),
        ("0 nan 0.5 0.2 0.4", "no finite number"),
        ("0 0.5 0.5 0 0.4", "has no area"),
        ("0 0.5 0.5 -0.2 0.4", "has no area"),
        ("0 1.5 0.5 0.2 0.4", "lies outside"),
        ("0 0.95 0.5 0.2 0.4", "reaches 5 pixels beyond"),
    ],
)
def test_each_fault_is_listed_with_its_line(tmp_path: Path, row: str, what: str) -> None:
    faults = read(tmp_path, f"0 0.5 0.5 0.2 0.4\n{row}\n").faults

    assert len(faults) == 1
    assert Path(faults[0].file).name == "a.txt"
    assert faults[0].where == "line 2"
    assert what in faults[0].what


def test_equal_rows_are_listed(tmp_path: Path) -> None:
    annotations = read(tmp_path, "0 0.5 0.5 0.2 0.4\n0 0.5 0.5 0.2 0.4\n")

    assert len(annotations.images[0].boxes_N4) == 1
    assert "stands there already" in annotations.faults[0].what


def test_a_broken_picture_is_listed(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    (tmp_path / "images" / "train" / "b.jpg").write_bytes(b"no picture")

    annotations = dataset.read("train")

    assert len(annotations.images) == 2
    assert annotations.faults[0].what == "cannot be read as a picture (its content is of no known format)"


@pytest.mark.parametrize("names", ["names: {0: cat, 1: dog}", "names:\n  0: cat\n  1: dog", "nc: 2\nnames: [cat, dog]"])
def test_names_may_be_a_list_or_a_mapping(tmp_path: Path, names: str) -> None:
    dataset = made(tmp_path, yaml=f"train: images/train\n{names}\n")

    assert dataset.read("train").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("yaml", "match"),
    [
        ("train: images/train\n", "'names' is missing; list the classes"),
        ("train: images/train\nnames: true\n", "'names' is true: it must be an array of text"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", "without gaps"),
        ("train: images/train\nnames: [cat]\nnc: 2\n", "'nc' is 2, but names has 1"),
        ("names: [cat]\nval: images/val\n", r"'train' is missing: it must say where.*Splits there: val"),
        ("names: [cat]\ntrain: [1, true]\n", r"'train' is \[1, true\]: it must say where"),
        ("train: images/nowhere\nnames: [cat]\n", "neither a folder nor a list"),
        ("train: images/val\nnames: [cat]\n", "no pictures in images/val"),
        ("train: [\n", "is no YAML"),
        ("- cat\n", "must be a table"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [cat]\n", "is no YAML"),
    ],
)
def test_a_useless_yaml_is_refused(tmp_path: Path, yaml: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        made(tmp_path, yaml=yaml).read("train")


def test_pictures_without_any_text_file_are_refused(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").unlink()

    with pytest.raises(DataError, match=r"none of 2 pictures has a text file.*labels/train/a\.txt"):
        dataset.read("train")


@pytest.mark.parametrize("place", ["../images/train", "list.txt", "[images/train]"])
def test_places_may_be_lists_and_exports_paths(tmp_path: Path, place: str) -> None:
    (tmp_path / "list.txt").write_text("./images/train/a.png\nimages/train/empty.png\n")
    dataset = made(tmp_path, yaml=f"train: {place}\nnames: [cat, dog]\n")

    assert len(dataset.read("train").images) == 2


def test_only_the_last_folder_called_images_is_replaced() -> None:
    assert label_file(Path("images/set/images/train/a.jpg")) == Path("images/set/labels/train/a.txt")
    assert label_file(Path("flat/a.jpg")) == Path("flat/a.txt")


def test_it_recognises_its_own(tmp_path: Path) -> None:
    assert not YoloDataset.recognises(tmp_path)

    made(tmp_path)

    assert YoloDataset.recognises(tmp_path)
    assert YoloDataset.recognises(tmp_path / "data.yaml")
    assert not YoloDataset.recognises(tmp_path / "images")


@given(content=st.binary(max_size=40) | st.text("0123456789.-e n\n", max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_rows_never_crash(tmp_path: Path, content: bytes) -> None:
    dataset = made(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(content)

    annotations = dataset.read("train")

    for record in annotations.images:
        assert (record.boxes_N4[:, 2:] > record.boxes_N4[:, :2]).all()


@given(position=st.integers(0, len(YAML)), junk=st.binary(max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_yaml_never_crashes(tmp_path: Path, position: int, junk: bytes) -> None:
    dataset = made(tmp_path)
    content = YAML.encode()
    (tmp_path / "data.yaml").write_bytes(content[:position] + junk + content[position + 1 :])

    try:
        complaint = str(dataset.read("train").source)
    except DataError as error:
        complaint = str(error)

    assert "data.yaml" in complaint or "list of pictures" in complaint
