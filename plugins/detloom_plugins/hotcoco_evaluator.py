"""COCO's metrics by hotcoco, a compiled implementation: the numbers of pycocotools, much sooner.

Equality with pycocotools is held by tests on real annotations (Lin et al. 2014, Microsoft COCO;
cocodataset.org, detection evaluation).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detloom.data.records import Annotations
from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Evaluator, Metrics
from detloom.structures import Detections
from detloom_plugins.coco_columns import Columns, metrics_of

__all__ = ["HotcocoEvaluator"]


class HotcocoEvaluator(Evaluator):
    """Detections against annotations, as hotcoco counts."""

    def __init__(self, annotations: Annotations) -> None:
        try:
            from hotcoco import COCO
        except ImportError as error:
            raise PluginError(
                "evaluator 'hotcoco': the hotcoco package is not installed; `pip install hotcoco` installs it, "
                "evaluator.use = 'pycocotools' does without"
            ) from error
        self._annotations = annotations
        columns = Columns.of_annotations(annotations)
        self._truth = COCO.from_arrays(
            images=[{"id": index} for index in range(len(annotations.images))],
            categories=[{"id": index, "name": name} for index, name in enumerate(annotations.names, 1)],
            image_ids=columns.image_N,
            category_ids=columns.label_N,
            boxes=columns.box_N4,
            ids=np.arange(1, len(columns) + 1),
            area=columns.area_N,
            iscrowd=columns.is_crowd_N,
        )

    def evaluate(self, detections: Mapping[int, Detections]) -> Metrics:
        """Return the metrics of detections by index of the image among the annotations."""
        from hotcoco import COCOeval

        columns = Columns.of_detections(detections, self._annotations)
        found = self._truth.load_res(
            np.column_stack((columns.image_N, columns.box_N4, columns.score_N, columns.label_N)).astype(np.float64)
        )
        evaluation = COCOeval(self._truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        counted = evaluation.eval or {}
        return metrics_of(np.asarray(counted["precision"]), np.asarray(counted["recall"]), self._annotations.names)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the evaluator."""
    register("hotcoco", HotcocoEvaluator)
