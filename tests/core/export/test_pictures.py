"""Pictures to calibrate and to measure on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detloom.data.letterbox import Letterbox
from detloom.data.reading import read_picture
from detloom.data.records import Annotations, ImageRecord
from detloom.errors import ExportError
from detloom.export.pictures import chosen, drawn

SIZE = (64, 96)


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    random = np.random.default_rng(0)
    images = []
    for index in range(12):
        path = tmp_path / f"{index}.png"
        Image.fromarray(random.integers(0, 255, (40, 30 + index, 3)).astype(np.uint8)).save(path)
        images.append(
            ImageRecord(
                path=path,
                image_id=index,
                height=40,
                width=30 + index,
                boxes_N4=np.zeros((0, 4), np.float32),
                labels_N=np.zeros(0, np.int64),
                is_crowd_N=np.zeros(0, np.bool_),
                area_N=np.zeros(0, np.float32),
                annotation_ids_N=np.zeros(0, np.int64),
            )
        )
    return Annotations(("a",), tuple(images), (), (1,), tmp_path)


def test_pictures_lie_on_the_whole_canvas_as_in_evaluation(annotations: Annotations) -> None:
    found = chosen(annotations, 3, SIZE, stride=32)

    picture = read_picture(next(each.path for each in annotations.images if each.path.name == found.names[1]))
    canvas = Letterbox.fit(picture.shape[:2], SIZE).apply(picture)
    assert found.images_BCHW.shape == (3, 3, *SIZE)
    assert found.images_BCHW.is_contiguous()
    torch.testing.assert_close(found.images_BCHW[1], torch.from_numpy(canvas).permute(2, 0, 1).float() / 255)


def test_choice_is_the_same_for_the_same_seed_alone(annotations: Annotations) -> None:
    one, again, other = (chosen(annotations, 5, SIZE, stride=32, seed=seed) for seed in (0, 0, 1))

    assert one.names == again.names != other.names
    assert one.digest == again.digest != other.digest
    assert len(set(one.names)) == len(one) == 5


def test_digest_is_that_of_names_and_pixels(annotations: Annotations) -> None:
    found = chosen(annotations, 2, SIZE, stride=32)

    pixels = (found.images_BCHW * 255).round().to(torch.uint8).numpy()
    content = b"".join(name.encode() + b"\0" + each.tobytes() for name, each in zip(found.names, pixels, strict=True))
    assert found.digest == hashlib.sha256(content).hexdigest()


def test_all_pictures_are_taken_where_there_are_fewer_than_asked_for(annotations: Annotations) -> None:
    found = chosen(annotations, 64, SIZE, stride=32)

    assert sorted(found.names) == sorted(each.path.name for each in annotations.images)
    assert found.source == f"12 of 12 pictures of {annotations.source}, seed 0"


def test_split_without_pictures_is_refused(annotations: Annotations) -> None:
    empty = Annotations(("a",), (), (), (1,), annotations.source)

    with pytest.raises(ExportError, match="there are no pictures to calibrate or measure on"):
        chosen(empty, 4, SIZE, stride=32)


def test_drawn_pictures_are_always_the_same() -> None:
    assert drawn(2, SIZE).digest == drawn(2, SIZE).digest
