"""The reference evaluator by hand: what counts as found, missed and ignored."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from detloom.data.records import Annotations, ImageRecord
from detloom.errors import DataError
from detloom.interfaces import Evaluator
from detloom.structures import Detections
from detloom_plugins.hotcoco_evaluator import HotcocoEvaluator
from detloom_plugins.pycocotools_evaluator import PycocotoolsEvaluator

NAMES = ("cat", "dog")
SUMMARY = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]

Rows = Sequence[tuple[float, float, float, float, int]]


def annotations(*images: Rows, crowds: Sequence[int] = ()) -> Annotations:
    """Return images of boxes and labels; ``crowds`` are positions in the first image."""
    records = []
    for index, rows in enumerate(images):
        boxes_N4 = np.array([row[:4] for row in rows], dtype=np.float32).reshape(-1, 4)
        sizes_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
        records.append(
            ImageRecord(
                path=Path(f"{index}.jpg"),
                image_id=index,
                height=200,
                width=200,
                boxes_N4=boxes_N4,
                labels_N=np.array([row[4] for row in rows], dtype=np.int64),
                is_crowd_N=np.array([index == 0 and i in crowds for i in range(len(rows))], dtype=np.bool_),
                area_N=sizes_N2.prod(1),
                annotation_ids_N=np.arange(len(rows), dtype=np.int64),
            )
        )
    return Annotations(NAMES, tuple(records), (), (1, 2), Path("here"))


def detections(rows: Rows, scores: Sequence[float] | None = None) -> Detections:
    """Return boxes with labels and scores, 0.9 when not given."""
    boxes_N4 = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    labels_N = torch.tensor([row[4] for row in rows], dtype=torch.int64)
    scores_N = torch.tensor(scores if scores is not None else [0.9] * len(rows))
    return Detections(boxes_N4, scores_N, labels_N, NAMES, (200, 200))


@pytest.fixture(params=[PycocotoolsEvaluator, HotcocoEvaluator])
def evaluator(request: pytest.FixtureRequest) -> type[Evaluator]:
    """Return each evaluator: what is true of one is true of the other."""
    found: type[Evaluator] = request.param
    return found


def test_perfect_detections_score_one(evaluator: type[PycocotoolsEvaluator]) -> None:
    rows = [(10.0, 10, 30, 30, 0), (50, 50, 100, 100, 1)]

    metrics = evaluator(annotations(rows)).evaluate({0: detections(rows)})

    assert list(metrics.summary) == SUMMARY
    assert metrics.summary["AP"] == pytest.approx(1)
    assert metrics.per_class == {name: pytest.approx({"AP": 1, "AP50": 1}) for name in NAMES}


def test_overlap_of_three_quarters_counts_for_half_of_the_thresholds(evaluator: type[PycocotoolsEvaluator]) -> None:
    truth, found = [(0.0, 0, 100, 100, 0)], [(0.0, 0, 77, 100, 0)]

    summary = evaluator(annotations(truth)).evaluate({0: detections(found)}).summary

    # 0.50, 0.55, ..., 0.75 of the ten thresholds lie below 0.77.
    assert summary["AP"] == pytest.approx(0.6)
    assert (summary["AP50"], summary["AP75"]) == pytest.approx((1, 1))


def test_second_box_on_an_object_is_a_mistake(evaluator: type[PycocotoolsEvaluator]) -> None:
    truth = [(0.0, 0, 50, 50, 0), (100, 100, 150, 150, 0)]
    found = [truth[0], truth[0], truth[1]]

    summary = evaluator(annotations(truth)).evaluate({0: detections(found, [0.9, 0.8, 0.7])}).summary

    # Precision is 1 up to recall 0.5 (51 of 101 points), then 2/3.
    assert summary["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_boxes_inside_a_crowd_are_ignored(evaluator: type[PycocotoolsEvaluator]) -> None:
    truth = [(0.0, 0, 50, 50, 0), (100, 100, 200, 200, 0)]
    found = [(110.0, 110, 130, 130, 0), (150, 150, 170, 170, 0), truth[0]]

    summary = evaluator(annotations(truth, crowds=[1])).evaluate({0: detections(found, [0.9, 0.8, 0.7])}).summary

    assert summary["AP"] == pytest.approx(1)


def test_sizes_go_by_area(evaluator: type[PycocotoolsEvaluator]) -> None:
    truth = [(0.0, 0, 20, 20, 0), (30, 30, 80, 80, 0), (90, 90, 190, 190, 0)]

    summary = evaluator(annotations(truth)).evaluate({0: detections(truth[:2])}).summary

    assert (summary["APs"], summary["APm"], summary["APl"]) == pytest.approx((1, 1, 0))


def test_class_without_objects_is_not_a_number(evaluator: type[PycocotoolsEvaluator]) -> None:
    rows = [(10.0, 10, 60, 60, 0)]

    metrics = evaluator(annotations(rows)).evaluate({0: detections([*rows, (0, 0, 9, 9, 1)], [0.9, 0.8])})

    assert math.isnan(metrics.per_class["dog"]["AP"])
    assert math.isnan(metrics.summary["APs"])
    assert metrics.summary["AP"] == pytest.approx(1)


@pytest.mark.parametrize("given", [{}, {0: detections([])}])
def test_nothing_found_scores_zero(evaluator: type[PycocotoolsEvaluator], given: dict[int, Detections]) -> None:
    metrics = evaluator(annotations([(10.0, 10, 60, 60, 0)])).evaluate(given)

    assert metrics.summary["AP"] == 0
    assert metrics.per_class["cat"]["AP50"] == 0


def test_nothing_annotated_is_not_a_number(evaluator: type[PycocotoolsEvaluator]) -> None:
    metrics = evaluator(annotations([], [])).evaluate({1: detections([(10.0, 10, 60, 60, 0)])})

    assert all(math.isnan(value) for value in metrics.summary.values())


def test_detections_on_an_image_without_objects_are_mistakes(evaluator: type[PycocotoolsEvaluator]) -> None:
    rows = [(10.0, 10, 60, 60, 0)]

    summary = evaluator(annotations(rows, [])).evaluate({0: detections(rows, [0.5]), 1: detections(rows)}).summary

    assert summary["AP"] == pytest.approx(0.5)


def test_evaluator_prints_nothing(evaluator: type[PycocotoolsEvaluator], capfd: pytest.CaptureFixture[str]) -> None:
    evaluator(annotations([(10.0, 10, 60, 60, 0)])).evaluate({})

    assert capfd.readouterr() == ("", "")


def test_image_outside_the_split_is_named(evaluator: type[PycocotoolsEvaluator]) -> None:
    with pytest.raises(DataError, match="given for image 3, but the split has 1 images"):
        evaluator(annotations([])).evaluate({3: detections([])})


def test_class_outside_the_split_is_named(evaluator: type[PycocotoolsEvaluator]) -> None:
    with pytest.raises(DataError, match="class index 2, but the split has 2 classes: cat, dog"):
        evaluator(annotations([])).evaluate({0: detections([(0.0, 0, 5, 5, 2)])})
