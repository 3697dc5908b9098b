"""Small data sets made of painted rectangles."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from detloom.data.records import Annotations, ImageRecord

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))

MakeRecord = Callable[..., ImageRecord]
MakeAnnotations = Callable[..., Annotations]


def record_of(
    path: Path, size: tuple[int, int], boxes: Sequence[Sequence[float]], labels: Sequence[int], image_id: int = 1
) -> ImageRecord:
    boxes_N4: NDArray[np.float32] = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageRecord(
        path=path,
        image_id=image_id,
        height=size[0],
        width=size[1],
        boxes_N4=boxes_N4,
        labels_N=np.array(labels, np.int64),
        is_crowd_N=np.zeros(len(boxes_N4), np.bool_),
        area_N=np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1).astype(np.float32),
        annotation_ids_N=np.arange(1, len(boxes_N4) + 1),
    )


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    """Six pictures of several shapes, each with one rectangle of its own colour and label on black."""
    folder = tmp_path_factory.mktemp("painted")
    shapes = ((96, 128), (128, 96), (64, 64), (60, 150), (200, 160), (90, 120))
    boxes = (
        (30, 20, 90, 70),
        (10, 30, 60, 100),
        (16, 16, 48, 48),
        (20, 10, 120, 50),
        (40, 40, 120, 160),
        (0, 0, 60, 45),
    )
    records = []
    for label, (shape, box, colour) in enumerate(zip(shapes, boxes, COLOURS, strict=True)):
        picture = np.zeros((*shape, 3), np.uint8)
        picture[box[1] : box[3], box[0] : box[2]] = colour
        path = folder / f"{label}.png"
        cv2.imwrite(str(path), picture[..., ::-1])
        records.append(record_of(path, shape, [box], [label], image_id=label + 1))
    names = tuple("abcdef")
    return Annotations(names, tuple(records), (), tuple(range(1, 7)), folder)


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """Return a function that makes a record of a path, a size, boxes and labels."""
    return record_of
