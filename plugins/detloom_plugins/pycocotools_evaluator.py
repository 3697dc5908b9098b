"""COCO's metrics by pycocotools, the reference implementation.

Average precision over overlaps of 0.5 to 0.95 and 101 recalls; crowd regions neither found nor
missed; sizes by annotated area (Lin et al. 2014, Microsoft COCO; cocodataset.org, detection evaluation).
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detloom.data.records import Annotations
from detloom.hookspecs import hookimpl
from detloom.interfaces import Evaluator, Metrics
from detloom.structures import Detections
from detloom_plugins.coco_columns import Columns, metrics_of

__all__ = ["PycocotoolsEvaluator"]


class PycocotoolsEvaluator(Evaluator):
    """Detections against annotations, as pycocotools counts."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations
        with _silence():
            self._truth = _coco(Columns.of_annotations(annotations), annotations)

    def evaluate(self, detections: Mapping[int, Detections]) -> Metrics:
        """Return the metrics of detections by index of the image among the annotations."""
        from pycocotools.cocoeval import COCOeval

        with _silence():
            found = _coco(Columns.of_detections(detections, self._annotations), self._annotations)
            evaluation = COCOeval(self._truth, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
        counted = evaluation.eval
        return metrics_of(np.asarray(counted["precision"]), np.asarray(counted["recall"]), self._annotations.names)


def _coco(columns: Columns, annotations: Annotations) -> Any:
    """Return pycocotools' own form of a split."""
    from pycocotools.coco import COCO

    coco = COCO()
    rows = zip(
        columns.image_N.tolist(),
        columns.label_N.tolist(),
        columns.box_N4.tolist(),
        columns.area_N.tolist(),
        columns.is_crowd_N.tolist(),
        columns.score_N.tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "score")
    coco.dataset = {
        "images": [{"id": index} for index in range(len(annotations.images))],
        "categories": [{"id": index, "name": name} for index, name in enumerate(annotations.names, 1)],
        # Ids start at 1: an annotation with id 0 counts as not found.
        "annotations": [{"id": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(rows, 1)],
    }
    coco.createIndex()
    return coco


def _silence() -> contextlib.AbstractContextManager[object]:
    """Return a context in which pycocotools' progress lines go nowhere."""
    return contextlib.redirect_stdout(io.StringIO())


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the evaluator."""
    register("pycocotools", PycocotoolsEvaluator)
