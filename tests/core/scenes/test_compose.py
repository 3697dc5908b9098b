"""Drawn pictures: the same from the same numbers, with boxes that fit what is seen."""

import numpy as np
import pytest

from detloom.scenes import CLASSES, draw_scene
from detloom.scenes.compose import _paste, _Placed
from detloom.scenes.relief import Sprite


def test_a_scene_depends_on_its_random_numbers_alone() -> None:
    first, again, other = (draw_scene(np.random.default_rng(seed)) for seed in (4, 4, 5))

    assert np.array_equal(first.picture_HW3, again.picture_HW3)
    assert np.array_equal(first.boxes_N4, again.boxes_N4)
    assert first.picture_HW3.shape != other.picture_HW3.shape or not np.array_equal(
        first.picture_HW3, other.picture_HW3
    )


@pytest.mark.parametrize("seed", range(6))
def test_boxes_lie_inside_the_picture_and_are_not_tiny(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed))

    height, width = scene.picture_HW3.shape[:2]
    assert scene.picture_HW3.dtype == np.uint8
    assert (scene.boxes_N4[:, :2] >= 0).all()
    assert (scene.boxes_N4[:, 2:] <= (width, height)).all()
    assert (scene.boxes_N4[:, 2:] - scene.boxes_N4[:, :2] >= 8).all()
    assert ((scene.labels_N >= 0) & (scene.labels_N < len(CLASSES))).all()


def test_visible_pixels_are_fewer_than_the_box_has() -> None:
    scene = draw_scene(np.random.default_rng(3))

    sides = scene.boxes_N4[:, 2:] - scene.boxes_N4[:, :2]
    assert len(scene.area_N) > 0
    assert (scene.area_N <= sides.prod(axis=1)).all()


def test_pictures_differ_in_shape_and_in_what_they_show() -> None:
    scenes = [draw_scene(np.random.default_rng([1, index])) for index in range(24)]

    assert {label for scene in scenes for label in scene.labels_N.tolist()} == set(range(len(CLASSES)))
    assert len({scene.picture_HW3.shape for scene in scenes}) == 3


def test_what_is_pasted_later_hides_what_lies_below() -> None:
    square = Sprite(
        np.ones((4, 4, 3), dtype=np.float32), np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    )
    picture = np.zeros((10, 10, 3), dtype=np.float32)
    owner = np.full((10, 10), -1, dtype=np.int16)

    _paste(picture, owner, _Placed(square, 4, 4, label=0), 0, 0.5)
    _paste(picture, owner, _Placed(square, 6, 4, label=1), 1, 0.5)

    assert np.count_nonzero(owner == 0) == 8
    assert np.count_nonzero(owner == 1) == 16
    assert picture.sum() == 24 * 3


def test_a_thing_half_outside_keeps_its_whole_size_for_the_share_that_is_seen() -> None:
    square = Sprite(
        np.ones((4, 4, 3), dtype=np.float32), np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    )
    thing = _Placed(square, 0, 4, label=0)
    owner = np.full((10, 10), -1, dtype=np.int16)

    _paste(np.zeros((10, 10, 3), dtype=np.float32), owner, thing, 0, 0.5)

    assert thing.pixels == 16
    assert np.count_nonzero(owner == 0) == 8
