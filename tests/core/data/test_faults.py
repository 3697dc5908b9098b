"""What is wrong with boxes and pictures, and how a user is told."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detloom.data.faults import RecordBuilder, as_number, check_pictures, counted_faults, faults_of, refuse_faults
from detloom.data.records import Annotations, Fault, ImageRecord
from detloom.errors import DataError


def built(*boxes: tuple[float, float, float, float], label: int = 0) -> tuple[ImageRecord, list[Fault]]:
    faults: list[Fault] = []
    builder = RecordBuilder(Path("a.jpg"), 1, 50, 100, "a.json", faults)
    for number, box in enumerate(boxes, start=1):
        builder.add(box, label, f"annotation {number}")
    return builder.build(), faults


def test_a_sound_box_is_kept_as_it_is() -> None:
    record, faults = built((10, 20, 30.5, 40))

    assert record.boxes_N4.tolist() == [[10, 20, 30.5, 40]]
    assert record.area_N.tolist() == [410]
    assert not faults


def test_a_box_a_pixel_beyond_is_clipped_without_a_word() -> None:
    record, faults = built((-1, 0, 101, 51))

    assert record.boxes_N4.tolist() == [[0, 0, 100, 50]]
    assert not faults


def test_a_box_further_beyond_is_clipped_and_listed() -> None:
    record, faults = built((-3, 0, 50, 20))

    assert record.boxes_N4.tolist() == [[0, 0, 50, 20]]
    assert "reaches 3 pixels beyond the picture of 100 x 50" in faults[0].what
    assert faults[0].where == "annotation 1"


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ((100, 0, 120, 20), "lies outside"),
        ((0, -20, 10, 0), "lies outside"),
        ((5, 5, 5, 20), "has no area"),
        ((20, 5, 5, 20), "has no area"),
        ((math.nan, 0, 5, 5), "no finite number"),
        ((0, 0, math.inf, 5), "no finite number"),
    ],
)
def test_a_useless_box_is_dropped_and_listed(box: tuple[float, float, float, float], what: str) -> None:
    record, faults = built(box)

    assert len(record.boxes_N4) == 0
    assert what in faults[0].what


def test_an_equal_row_is_kept_once() -> None:
    record, faults = built((1, 1, 9, 9), (1, 1, 9, 9), (1, 1, 9, 9.5))

    assert len(record.boxes_N4) == 2
    assert [fault.where for fault in faults] == ["annotation 2"]


def test_a_picture_without_boxes_is_kept() -> None:
    record, faults = built()

    assert record.boxes_N4.shape == (0, 4)
    assert record.boxes_N4.dtype == np.float32
    assert not faults


@given(st.lists(st.tuples(*[st.floats()] * 4), max_size=5))
def test_whatever_the_numbers_boxes_lie_inside_and_have_an_area(boxes: list[tuple[float, float, float, float]]) -> None:
    record, faults = built(*boxes)

    sides_N2 = record.boxes_N4[:, 2:] - record.boxes_N4[:, :2]
    assert (record.boxes_N4 >= 0).all()
    assert (record.boxes_N4 <= (100, 50, 100, 50)).all()
    assert (sides_N2 > 0).all()
    assert len(record.boxes_N4) + len(faults) >= len(boxes)


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), ("2.5", 2.5), (" 7 ", 7.0)])
def test_numbers_are_read(value: object, number: float) -> None:
    assert as_number(value) == number


@pytest.mark.parametrize("value", [None, "x", "", [1], {}, True, 10**400])
def test_anything_else_is_no_number(value: object) -> None:
    assert math.isnan(as_number(value))


def test_sound_pictures_pass(painted: Annotations) -> None:
    assert check_pictures(painted, decode=True).faults == ()


@pytest.mark.parametrize("decode", [False, True])
def test_progress_is_told_after_each_picture(painted: Annotations, *, decode: bool) -> None:
    told: list[tuple[int, int]] = []

    check_pictures(painted, decode=decode, progress=lambda done, total: told.append((done, total)))

    assert told == [(done, 6) for done in range(1, 7)]


def test_missing_broken_and_differing_pictures_are_listed_and_left_out(painted: Annotations, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    first, second, third, *rest = painted.images
    images = (
        replace(first, path=tmp_path / "gone.png"),
        replace(second, path=broken),
        replace(third, height=99),
        *rest,
    )

    checked = check_pictures(replace(painted, images=images), decode=False)

    assert len(checked.images) == 3
    assert [Path(fault.file).name for fault in checked.faults] == ["gone.png", "broken.jpg", "2.png"]
    assert "no such file" in checked.faults[0].what
    assert "64 x 64 pixels, but is annotated as 64 x 99" in checked.faults[2].what


def test_a_truncated_picture_is_found_by_decoding(
    painted: Annotations, make_record: Callable[..., ImageRecord], tmp_path: Path
) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    annotations = replace(painted, images=(make_record(path, (64, 64), [], []),))

    shallow = check_pictures(annotations, decode=False)
    deep = check_pictures(annotations, decode=True)

    assert not shallow.faults
    assert "truncated" in deep.faults[0].what
    assert deep.images == ()


def test_a_wrong_size_is_one_fault_however_many_boxes_lie_beyond_it(painted: Annotations) -> None:
    first, second, *_ = painted.images
    faults: list[Fault] = []
    builders = [RecordBuilder(first.path, 1, 96, 32, "a.json", faults)]
    builders.append(RecordBuilder(second.path, 2, second.height, second.width, "a.json", faults))
    for builder in builders:
        builder.add((10, 10, 300, 70), 0, f"annotation {builder.image_id}1")
        builder.add((400, 10, 500, 70), 0, f"annotation {builder.image_id}2")
    images = tuple(builder.build() for builder in builders)

    checked = check_pictures(replace(painted, images=images, faults=tuple(faults)), decode=False)

    assert [fault.where for fault in checked.faults] == ["annotation 21", "annotation 22", ""]
    assert "128 x 96 pixels, but is annotated as 32 x 96" in checked.faults[2].what


def test_sizes_that_a_format_does_not_state_are_filled_in(painted: Annotations) -> None:
    unsized = replace(painted, images=(replace(painted.images[0], height=0, width=0),))

    checked = check_pictures(unsized, decode=True)

    assert (checked.images[0].height, checked.images[0].width) == (96, 128)


def test_faults_are_refused_together_and_the_first_shown(painted: Annotations) -> None:
    faults = tuple(Fault("a.json", f"annotation {number}", "is wrong") for number in range(25))

    with pytest.raises(DataError) as error:
        refuse_faults([replace(painted, faults=faults)], skip_bad=False)

    text = str(error.value)
    assert "25 faults" in text
    assert "a.json, annotation 19: is wrong" in text
    assert "annotation 20" not in text
    assert "... and 5 more" in text
    assert "--skip-bad" in text


def test_fault_of_a_picture_in_two_splits_is_listed_once_and_two_alike_in_one_split_twice(painted: Annotations) -> None:
    shared, alike = Fault("a.txt", "line 1", "is wrong"), Fault("b.txt", "line 1", "is wrong")
    splits = [replace(painted, faults=(shared, alike, alike)), replace(painted, faults=(shared,))]

    assert faults_of(splits) == (shared, alike, alike)
    assert refuse_faults(splits, skip_bad=True) == 3


def test_faults_are_counted_when_they_may_be_skipped(painted: Annotations) -> None:
    faulty = replace(painted, faults=(Fault("a", "", "b"),))

    assert refuse_faults([faulty, painted], skip_bad=True) == 1
    assert refuse_faults([painted], skip_bad=False) == 0


def test_a_clipped_box_is_used_and_refused_by_no_one(painted: Annotations) -> None:
    record, faults = built((90, 10, 120, 40))
    clipped = replace(painted, faults=tuple(faults))

    assert record.boxes_N4.tolist() == [[90, 10, 100, 40]]
    assert [fault.is_left_out for fault in faults] == [False]
    assert refuse_faults([clipped], skip_bad=False) == 0
    assert refuse_faults([clipped], skip_bad=True) == 0


def test_refused_faults_do_not_name_splits_that_are_only_clipped(painted: Annotations) -> None:
    clipped = replace(painted, faults=(Fault("a", "", "b", is_left_out=False),), source=Path("clipped"))
    broken = replace(painted, faults=(Fault("c", "", "d"),), source=Path("broken"))

    with pytest.raises(DataError, match=r"^broken: 1 fault in the data"):
        refuse_faults([clipped, broken], skip_bad=False)


@pytest.mark.parametrize(
    ("left_out", "clipped", "text"),
    [(0, 0, ""), (1, 0, "1 picture or box left out"), (3, 2, "3 pictures or boxes left out, 2 boxes clipped")],
)
def test_what_is_left_out_and_what_is_clipped_are_counted_apart(left_out: int, clipped: int, text: str) -> None:
    faults = [Fault("a", "", "b")] * left_out + [Fault("a", "", "b", is_left_out=False)] * clipped

    assert counted_faults(faults) == text
