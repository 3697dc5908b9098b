"""Time evaluators: ``python benchmarks/evaluation.py [--images N] [--boxes N] [--only NAME ...]``.

Synthetic pictures with 80 classes and crowds; detections near the annotated boxes and elsewhere.
Times are those of ``Evaluator.evaluate``, the conversion of detections included. faster-coco-eval is
measured beside them where it is installed; it is no component.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from detloom.data.records import Annotations, ImageRecord
from detloom.structures import Detections
from detloom_plugins.coco_columns import Columns
from detloom_plugins.hotcoco_evaluator import HotcocoEvaluator
from detloom_plugins.pycocotools_evaluator import PycocotoolsEvaluator

CLASSES, SIDE, OBJECTS = 80, 640, 7


def synthetic(images: int, boxes: int, generator: np.random.Generator) -> tuple[Annotations, dict[int, Detections]]:
    """Return annotations and about ``boxes`` detections in each image."""
    names = tuple(f"class {index}" for index in range(CLASSES))
    records, found = [], {}
    for index in range(images):
        count = int(generator.integers(0, 2 * OBJECTS))
        size_N2 = np.exp(generator.uniform(2, 5.5, (count, 2)))
        corner_N2 = generator.uniform(0, 1, (count, 2)) * (SIDE - size_N2)
        boxes_N4 = np.concatenate((corner_N2, corner_N2 + size_N2), axis=1).astype(np.float32)
        labels_N = generator.integers(0, CLASSES, count)
        records.append(
            ImageRecord(
                path=Path(f"{index}.jpg"),
                image_id=index,
                height=SIDE,
                width=SIDE,
                boxes_N4=boxes_N4,
                labels_N=labels_N,
                is_crowd_N=generator.random(count) < 0.01,
                area_N=size_N2.prod(1).astype(np.float32),
                annotation_ids_N=np.arange(count),
            )
        )
        near = generator.integers(0, count, boxes // 2) if count else np.zeros(0, np.int64)
        moved_N4 = boxes_N4[near] + generator.normal(0, 6, (len(near), 4))
        corner_N2 = generator.uniform(0, SIDE - 60, (boxes - len(near), 2))
        anywhere_N4 = np.concatenate((corner_N2, corner_N2 + generator.uniform(8, 60, corner_N2.shape)), axis=1)
        labels = np.concatenate((labels_N[near], generator.integers(0, CLASSES, len(anywhere_N4))))
        scores = np.sort(generator.random(len(labels)))[::-1].copy()
        all_N4 = torch.from_numpy(np.concatenate((moved_N4, anywhere_N4))).float()
        found[index] = Detections(
            all_N4, torch.from_numpy(scores).float(), torch.from_numpy(labels), names, (SIDE, SIDE)
        )
    return Annotations(names, tuple(records), (), tuple(range(1, CLASSES + 1)), Path("synthetic")), found


def by_faster_coco_eval(annotations: Annotations, found: dict[int, Detections]) -> float:
    """Return the AP by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    def loaded(columns: Columns) -> COCO:
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
        return COCO(
            {
                "images": [{"id": index} for index in range(len(annotations.images))],
                "categories": [{"id": index, "name": name} for index, name in enumerate(annotations.names, 1)],
                "annotations": [{"id": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(rows, 1)],
            }
        )

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(
            loaded(Columns.of_annotations(annotations)), loaded(Columns.of_detections(found, annotations)), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=["pycocotools", "faster-coco-eval", "hotcoco"])
    arguments = parser.parse_args()
    annotations, found = synthetic(arguments.images, arguments.boxes, np.random.default_rng(0))
    hotcoco, pycocotools = HotcocoEvaluator(annotations), PycocotoolsEvaluator(annotations)
    ways: dict[str, Callable[[], float]] = {
        "pycocotools": lambda: pycocotools.evaluate(found).summary["AP"],
        "faster-coco-eval": lambda: by_faster_coco_eval(annotations, found),
        "hotcoco": lambda: hotcoco.evaluate(found).summary["AP"],
    }
    print(f"{len(annotations.images)} images, {sum(len(each) for each in found.values())} detections")
    print(f"{'evaluator':>18} {'seconds':>8}  AP")
    for name in arguments.only:
        start = time.perf_counter()
        precision = ways[name]()
        print(f"{name:>18} {time.perf_counter() - start:8.2f}  {precision:.12f}")


if __name__ == "__main__":
    main()
