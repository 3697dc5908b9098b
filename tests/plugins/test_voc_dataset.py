"""Pascal VOC XML: real samples, every fault, and files that were spoilt."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detloom.data.records import Annotations
from detloom.errors import DataError, RecipeError
from detloom_plugins.coco_dataset import CocoDataset
from detloom_plugins.voc_dataset import VocDataset, parse_xml

SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"
CAT = (
    "<object><name>cat</name><difficult>{difficult}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def cat(*corners: object, difficult: int = 0) -> str:
    return CAT.format(*corners, difficult=difficult)


def made(folder: Path, *objects: str, size: str = SIZE, names: str = "a\n") -> VocDataset:
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(folder / "JPEGImages" / "a.jpg")
    body = f"<annotation><path>/etc/passwd</path>{size}{''.join(objects)}</annotation>"
    (folder / "Annotations" / "a.xml").write_text(body)
    (folder / "ImageSets" / "Main" / "train.txt").write_text(names)
    return VocDataset(folder)


def read(folder: Path, *objects: str) -> Annotations:
    return made(folder, *objects).read("train")


def test_corners_count_from_one_and_belong_to_the_box(tmp_path: Path) -> None:
    annotations = read(tmp_path, cat(1, 1, 100, 50), cat(11, 21, 30, 40))

    assert annotations.images[0].boxes_N4.tolist() == [[0, 0, 100, 50], [10, 20, 30, 40]]
    assert annotations.names == ("cat",)
    assert annotations.faults == ()


@pytest.mark.parametrize(("split", "image", "place"), [("train", "00343", "object 4"), ("val", "00338", "object 13")])
def test_the_real_sample_agrees_with_its_coco_form(
    shared: Callable[[str], Path], split: str, image: str, place: str
) -> None:
    voc = VocDataset(shared("data/bccd/voc"), names=("RBC", "WBC", "Platelets")).read(split)
    coco = {
        record.path.name: record
        for each in ("train", "val")
        for record in CocoDataset(shared("data/bccd")).read(each).images
    }

    assert len(voc.images) == 4
    for record in voc.images:
        same = coco[record.path.name]
        assert record.boxes_N4.tolist() == same.boxes_N4.tolist()
        assert record.labels_N.tolist() == same.labels_N.tolist()
    assert [(fault.file, fault.where) for fault in voc.faults] == [(f"BloodImage_{image}.xml", place)]
    assert "has no area" in voc.faults[0].what


def test_classes_of_all_splits_are_the_same(shared: Callable[[str], Path]) -> None:
    dataset = VocDataset(shared("data/bccd/voc"))

    assert dataset.read("train").names == dataset.read("val").names == ("Platelets", "RBC", "WBC")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (cat(5, 5, 5, 20), "has no area"),
        (cat(101, 5, 120, 20), "lies outside"),
        (cat(90, 5, 120, 20), "reaches 20 pixels beyond"),
        (cat("x", 5, 20, 20), "no finite number"),
        ("<object><name>cat</name></object>", "has no bndbox"),
        (cat(5, 5, 20, 20).replace("cat", "cow"), "there is no class 'cow'"),
        (cat(5, 5, 20, 20).replace("cat", ""), "there is no class ''"),
        (cat(1, 1, 10, 10), "stands there already"),
    ],
)
def test_each_fault_is_listed_with_its_object(tmp_path: Path, row: str, what: str) -> None:
    made(tmp_path, cat(1, 1, 10, 10), row)

    faults = VocDataset(tmp_path, names=("cat",)).read("train").faults

    assert [(fault.file, fault.where) for fault in faults] == [("a.xml", "object 2")]
    assert what in faults[0].what


@pytest.mark.parametrize(
    ("names", "size", "where", "what"),
    [
        ("a\na\n", SIZE, "line 2", "a is listed twice"),
        ("a\n../a\n", SIZE, "line 2", "is a path"),
        ("a\nb\n", SIZE, "", "cannot be read (no such file"),
        ("a\n", "<size><width>100</width><height>0</height></size>", "size", "whole positive numbers"),
    ],
)
def test_faults_of_whole_pictures_are_listed(tmp_path: Path, names: str, size: str, where: str, what: str) -> None:
    faults = made(tmp_path, cat(1, 1, 9, 9), size=size, names=names).read("train").faults

    assert faults[0].where == where
    assert what in faults[0].what


def test_an_annotation_without_a_picture_is_listed(tmp_path: Path) -> None:
    dataset = made(tmp_path, cat(1, 1, 9, 9))
    (tmp_path / "JPEGImages" / "a.jpg").unlink()

    annotations = dataset.read("train")

    assert annotations.images == ()
    assert "there is no picture" in annotations.faults[0].what


def test_a_size_that_is_not_stated_is_the_pictures(tmp_path: Path) -> None:
    record = made(tmp_path, cat(1, 1, 9, 9), size="").read("train").images[0]

    assert (record.height, record.width) == (50, 100)


def test_difficult_objects_can_be_ignored(tmp_path: Path) -> None:
    made(tmp_path, cat(1, 1, 9, 9), cat(20, 20, 30, 30, difficult=1))

    kept = VocDataset(tmp_path).read("train").images[0]
    ignored = VocDataset(tmp_path, ignore_difficult=True).read("train").images[0]

    assert kept.is_crowd_N.tolist() == [False, False]
    assert ignored.is_crowd_N.tolist() == [False, True]


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;&b;">]><annotation>&d;</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
        '<!DOCTYPE a SYSTEM "http://example.invalid/a.dtd"><annotation/>',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused(document: str, encoding: str) -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_xml(document.encode(encoding))


def test_a_missing_split_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the split 'val' cannot be read\. Splits there: train"):
        made(tmp_path).read("val")


def test_a_folder_without_any_object_has_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="so there are no classes"):
        read(tmp_path)


def test_classes_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has a class twice"):
        VocDataset(tmp_path, names=("cat", "cat"))


def test_it_recognises_its_own(shared: Callable[[str], Path], tmp_path: Path) -> None:
    assert VocDataset.recognises(shared("data/bccd/voc"))
    assert not VocDataset.recognises(shared("data/bccd"))
    assert not VocDataset.recognises(tmp_path)


@given(position=st.integers(0, 400), length=st.integers(0, 30), junk=st.binary(max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_files_never_crash(tmp_path: Path, position: int, length: int, junk: bytes) -> None:
    dataset = made(tmp_path, cat(1, 1, 100, 50), cat(11, 21, 30, 40))
    file = tmp_path / "Annotations" / "a.xml"
    content = file.read_bytes()
    file.write_bytes(content[:position] + junk + content[position + length :])

    try:
        images = dataset.read("train").images
        complaint = ""
    except DataError as error:
        images = ()
        complaint = str(error)

    assert not complaint or "no classes" in complaint
    for record in images:
        assert (record.boxes_N4[:, 2:] > record.boxes_N4[:, :2]).all()
