"""COCO JSON: real samples, every fault, and files that were spoilt."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detloom.data.records import Annotations
from detloom.errors import DataError
from detloom_plugins.coco_dataset import CocoDataset

SOUND: dict[str, Any] = {
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    "images": [
        {"id": 10, "file_name": "a.jpg", "height": 50, "width": 100},
        {"id": 20, "file_name": "b.jpg", "height": 50, "width": 100},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 10, 20, 20.5], "area": 123.0, "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 100, 50], "iscrowd": 1},
    ],
}


def read(folder: Path, content: object) -> Annotations:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.jpg").touch()
    (folder / "annotations" / "train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return CocoDataset(folder).read("train")


def changed(table: str, row: int, **values: object) -> dict[str, Any]:
    content = copy.deepcopy(SOUND)
    content[table][row] |= values
    return content


def test_classes_boxes_crowds_and_areas_are_read(tmp_path: Path) -> None:
    annotations = read(tmp_path, SOUND)

    assert annotations.names == ("cat", "dog")
    assert annotations.category_ids == (3, 7)
    first, second = annotations.images
    assert first.path == tmp_path / "images" / "a.jpg"
    assert first.boxes_N4.tolist() == [[10, 10, 30, 30.5], [0, 0, 100, 50]]
    assert first.labels_N.tolist() == [1, 0]
    assert first.is_crowd_N.tolist() == [False, True]
    assert first.area_N.tolist() == [123, 5000]
    assert first.annotation_ids_N.tolist() == [1, 2]
    assert len(second.boxes_N4) == 0
    assert annotations.faults == ()


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("bccd", "train", (205, 2804, 0, 3)),
        ("bccd", "val", (87, 1137, 0, 3)),
        ("coco-mini", "train", (80, 739, 8, 80)),
        ("coco-mini", "val", (81, 815, 11, 80)),
    ],
)
def test_real_samples_are_read_whole(
    shared: Callable[[str], Path], name: str, split: str, counts: tuple[int, int, int, int]
) -> None:
    annotations = CocoDataset(shared(f"data/{name}")).read(split)

    num_boxes = sum(len(record.boxes_N4) for record in annotations.images)
    num_crowds = sum(int(record.is_crowd_N.sum()) for record in annotations.images)
    assert (len(annotations.images), num_boxes, num_crowds, len(annotations.names)) == counts
    assert annotations.faults == ()


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (changed("annotations", 0, bbox=[10, 10, 0, 5]), "annotation 1", "has no area"),
        (changed("annotations", 0, bbox=[200, 10, 10, 5]), "annotation 1", "lies outside"),
        (changed("annotations", 0, bbox=[90, 10, 20, 5]), "annotation 1", "reaches 10 pixels beyond"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "annotation 1", "bbox must be"),
        (changed("annotations", 0, bbox=[1, 2, float("nan"), 4]), "annotation 1", "no finite number"),
        (changed("annotations", 0, bbox=[1, 2, "x", 4]), "annotation 1", "no finite number"),
        (changed("annotations", 0, category_id=99), "annotation 1", "there is no category 99"),
        (changed("annotations", 0, image_id=99), "annotation 1", "there is no usable image 99"),
        (changed("annotations", 1, id=1), "annotation 1", "the id is given twice"),
        (changed("annotations", 0, id=None), "annotations", "needs an integer id"),
        (changed("images", 1, id=10), "image 10", "the id is given twice, to a.jpg and b.jpg"),
        (changed("images", 1, file_name="a.jpg"), "image 20", "a.jpg is listed twice"),
        (changed("images", 1, height=0), "image 20", "must be whole positive numbers"),
        (changed("images", 1, file_name=None), "images", "needs an integer id and a file_name"),
        (changed("categories", 1, id=7), "category 7", "given twice, to dog and cat"),
    ],
)
def test_each_fault_is_listed_with_its_place(tmp_path: Path, content: object, where: str, what: str) -> None:
    faults = read(tmp_path, content).faults

    assert faults[0].file == "train.json"
    assert faults[0].where == where
    assert what in faults[0].what


def test_an_image_of_no_size_is_one_fault_whatever_boxes_it_has(tmp_path: Path) -> None:
    content = copy.deepcopy(SOUND)
    content["images"][0]["width"] = 0

    faults = read(tmp_path, content).faults

    assert any(row["image_id"] == content["images"][0]["id"] for row in content["annotations"])
    assert [fault.where for fault in faults] == [f"image {content['images'][0]['id']}"]


def test_a_row_given_twice_under_two_ids_is_listed(tmp_path: Path) -> None:
    content = copy.deepcopy(SOUND)
    content["annotations"].append({**content["annotations"][0], "id": 3})

    annotations = read(tmp_path, content)

    assert len(annotations.images[0].boxes_N4) == 2
    assert annotations.faults[0].where == "annotation 3"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is no JSON"),
        ("[]", r"an object with images"),
        ("{}", "no list called images or annotations or categories"),
        ({**SOUND, "categories": []}, "no category with an id and a name"),
        ({**SOUND, "images": [{"id": 1, "file_name": "z.jpg", "height": 5, "width": 5}]}, "none of its 1 pictures"),
    ],
)
def test_a_useless_file_is_refused(tmp_path: Path, content: object, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read(tmp_path, content)


def test_a_missing_split_says_what_is_there(tmp_path: Path) -> None:
    read(tmp_path, SOUND)

    with pytest.raises(DataError, match=r"no file is the split 'val'.*There: train\.json"):
        CocoDataset(tmp_path).read("val")


@pytest.mark.parametrize("layout", ["images/train", "train2017", "train", "elsewhere"])
def test_pictures_are_found_in_the_usual_folders(tmp_path: Path, layout: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(SOUND))
    (tmp_path / layout).mkdir(parents=True)
    (tmp_path / layout / "a.jpg").touch()
    dataset = CocoDataset(tmp_path, images=layout if layout == "elsewhere" else "")

    annotations = dataset.read("train")

    assert annotations.images[0].path == tmp_path / layout / "a.jpg"


def test_one_file_is_every_split(tmp_path: Path) -> None:
    read(tmp_path, SOUND)

    annotations = CocoDataset(tmp_path / "annotations" / "train.json").read("anything")

    assert annotations.images[0].path.is_file()


def test_it_recognises_its_own(shared: Callable[[str], Path], tmp_path: Path) -> None:
    assert CocoDataset.recognises(shared("data/bccd"))
    assert CocoDataset.recognises(shared("data/bccd/annotations/train.json"))
    assert not CocoDataset.recognises(shared("data/bccd/voc"))
    assert not CocoDataset.recognises(tmp_path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(table=st.sampled_from(sorted(SOUND)), row=st.integers(0, 1), data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_values_never_crash(tmp_path: Path, table: str, row: int, data: st.DataObject) -> None:
    content = copy.deepcopy(SOUND)
    key = data.draw(st.sampled_from(sorted(content[table][row])))
    if data.draw(st.booleans()):
        content[table][row][key] = data.draw(JUNK)
    else:
        content[table][row] = data.draw(JUNK)

    try:
        annotations = read(tmp_path, content)
    except DataError:
        return

    for record in annotations.images:
        assert (record.boxes_N4[:, 2:] > record.boxes_N4[:, :2]).all()


@given(position=st.integers(0, 600), junk=st.binary(max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_bytes_never_crash(tmp_path: Path, position: int, junk: bytes) -> None:
    read(tmp_path, SOUND)
    file = tmp_path / "annotations" / "train.json"
    content = file.read_bytes()
    file.write_bytes(content[:position] + junk + content[position + 1 :])

    try:
        complaint = str(CocoDataset(tmp_path).read("train").source)
    except DataError as error:
        complaint = str(error)

    assert "train.json" in complaint
