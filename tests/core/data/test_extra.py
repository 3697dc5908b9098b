"""Transforms of albumentations by name."""

import numpy as np
import pytest

from detloom.data.augment import Augmenter
from detloom.data.extra import ExtraTransforms
from detloom.data.records import Annotations
from detloom.data.settings import AugmentSettings, ExtraTransform
from detloom.data.store import PictureStore
from detloom.errors import RecipeError


def extra(*tables: dict[str, object]) -> ExtraTransforms:
    return ExtraTransforms([ExtraTransform.model_validate(table) for table in tables], min_side=2.0)


def test_boxes_follow_the_picture_and_keep_their_labels() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:20, 5:25] = 255
    boxes_N4 = np.array([[5, 10, 25, 20], [30, 0, 60, 40]], np.float32)

    flipped, boxes, labels = extra({"use": "HorizontalFlip", "p": 1.0}).apply(
        picture, boxes_N4, np.array([7, 3]), np.random.default_rng(0)
    )

    assert (flipped[10:20, 35:55] == 255).all()
    assert boxes.tolist() == [[35, 10, 55, 20], [0, 0, 30, 40]]
    assert labels.tolist() == [7, 3]


def test_pictures_without_boxes_pass() -> None:
    picture = np.zeros((40, 60, 3), np.uint8)

    _, boxes, labels = extra({"use": "Blur", "p": 1.0}).apply(
        picture, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.random.default_rng(0)
    )

    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_a_seed_decides_what_happens(painted: Annotations) -> None:
    settings = AugmentSettings.model_validate({"extra": ({"use": "GaussNoise", "p": 1.0},)})
    augmenter = Augmenter(PictureStore(painted.images, (64, 64), "ram"), settings)

    first = augmenter.sample(0, (64, 64), np.random.default_rng(1)).picture
    augmenter.sample(1, (64, 64), np.random.default_rng(5))
    again = augmenter.sample(0, (64, 64), np.random.default_rng(1)).picture
    other = augmenter.sample(0, (64, 64), np.random.default_rng(2)).picture

    assert (first == again).all()
    assert (first != other).any()


def test_an_unknown_transform_gets_a_suggestion() -> None:
    with pytest.raises(
        RecipeError, match=r"extra\[0\]: albumentations has no transform 'Blurr'\. Did you mean 'Blur'\?"
    ):
        extra({"use": "Blurr"})


def test_a_name_that_is_no_transform_is_refused() -> None:
    with pytest.raises(RecipeError, match="no transform 'Compose'"):
        extra({"use": "Compose"})


@pytest.mark.parametrize("table", [{"use": "Blur", "strength": 3}, {"use": "Blur", "blur_limit": "much"}])
def test_a_wrong_setting_of_a_transform_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"extra\[1\]: Blur cannot take its settings"):
        extra({"use": "ToGray"}, table)


def test_a_transform_that_changes_the_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="only transforms that keep both can be used here"):
        extra({"use": "RandomCrop", "height": 50, "width": 50})
