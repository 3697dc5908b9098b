"""Annotations and detections as the columns that COCO evaluators read, and their arrays as metrics.

Images are known by their index among the annotations, classes by their index plus 1, boxes as
corner, width and height in pixels of the picture.

Shape letters: N boxes of the whole split, T overlap thresholds, R recall thresholds, C classes,
S size ranges (all, small, medium, large), D limits on detections (1, 10, 100).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detloom.data.records import Annotations
from detloom.errors import DataError
from detloom.interfaces import Metrics
from detloom.structures import Detections

__all__ = ["Columns", "metrics_of"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SIZES = ("", "s", "m", "l")
LIMITS = (1, 10, 100)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Boxes of a split, annotated or detected.

    Attributes:
        image_N: Index of the image.
        label_N: Class index, plus 1.
        box_N4: Corner, width, height.
        area_N: By which boxes count as small, medium or large.
        is_crowd_N: 0 or 1.
        score_N: Ones for annotations.
    """

    image_N: Integers
    label_N: Integers
    box_N4: Floats
    area_N: Floats
    is_crowd_N: Integers
    score_N: Floats

    @classmethod
    def of_annotations(cls, annotations: Annotations) -> Self:
        """Collect the annotated boxes."""
        images = annotations.images
        boxes_N4 = _joined([image.boxes_N4 for image in images], 4)
        return cls(
            image_N=np.repeat(np.arange(len(images), dtype=np.int64), [len(image.labels_N) for image in images]),
            label_N=_joined([image.labels_N for image in images]).astype(np.int64) + 1,
            box_N4=_with_sizes(boxes_N4),
            area_N=_joined([image.area_N for image in images]),
            is_crowd_N=_joined([image.is_crowd_N for image in images]).astype(np.int64),
            score_N=np.ones(len(boxes_N4)),
        )

    @classmethod
    def of_detections(cls, detections: Mapping[int, Detections], annotations: Annotations) -> Self:
        """Collect the detected boxes.

        Raises:
            DataError: An index or a label lies outside the annotations.
        """
        indices = sorted(detections)
        found = [detections[index] for index in indices]
        box_N4 = _with_sizes(_joined([each.boxes_N4.cpu().numpy() for each in found], 4))
        label_N = _joined([each.labels_N.cpu().numpy() for each in found]).astype(np.int64)
        if indices and not 0 <= indices[0] <= indices[-1] < len(annotations.images):
            raise DataError(
                f"evaluation of {annotations.source}: detections are given for image {indices[-1]}, but the split has "
                f"{len(annotations.images)} images; keys are indices among the annotations' images, from 0"
            )
        if len(label_N) and not 0 <= label_N.min() <= label_N.max() < len(annotations.names):
            raise DataError(
                f"evaluation of {annotations.source}: detections have class index {label_N.max()}, but the split has "
                f"{len(annotations.names)} classes: {', '.join(annotations.names)}; was the detector trained on others?"
            )
        return cls(
            image_N=np.repeat(np.array(indices, dtype=np.int64), [len(each) for each in found]),
            label_N=label_N + 1,
            box_N4=box_N4,
            area_N=box_N4[:, 2] * box_N4[:, 3],
            is_crowd_N=np.zeros(len(label_N), dtype=np.int64),
            score_N=_joined([each.scores_N.cpu().numpy() for each in found]),
        )

    def __len__(self) -> int:
        return len(self.image_N)


def metrics_of(precision_TRCSD: Floats, recall_TCSD: Floats, names: tuple[str, ...]) -> Metrics:
    """Return COCO's twelve numbers and those of each class; entries of -1 were not measured."""
    summary = {
        "AP": _mean(precision_TRCSD[:, :, :, 0, 2]),
        "AP50": _mean(precision_TRCSD[0, :, :, 0, 2]),
        "AP75": _mean(precision_TRCSD[5, :, :, 0, 2]),
        **{f"AP{size}": _mean(precision_TRCSD[:, :, :, i, 2]) for i, size in enumerate(SIZES) if size},
        **{f"AR{limit}": _mean(recall_TCSD[:, :, 0, i]) for i, limit in enumerate(LIMITS)},
        **{f"AR{size}": _mean(recall_TCSD[:, :, i, 2]) for i, size in enumerate(SIZES) if size},
    }
    per_class = {
        name: {"AP": _mean(precision_TRCSD[:, :, i, 0, 2]), "AP50": _mean(precision_TRCSD[0, :, i, 0, 2])}
        for i, name in enumerate(names)
    }
    return Metrics(summary, per_class)


def _mean(values: Floats) -> float:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else float("nan")


def _with_sizes(boxes_N4: Floats) -> Floats:
    return np.concatenate((boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]), axis=1)


def _joined(columns: list[NDArray[np.float32] | NDArray[np.int64] | NDArray[np.bool_]], width: int = 0) -> Floats:
    shape = (-1, width) if width else (-1,)
    return np.concatenate([np.zeros((0, width) if width else 0), *(column.reshape(shape) for column in columns)])
