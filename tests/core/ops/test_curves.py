"""Curves by hand and against pycocotools."""

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from detloom.ops.curves import best_use, precision_recall

CLASSES = 3

Rows = st.lists(
    st.tuples(st.booleans(), st.integers(0, 20).map(lambda tenths: tenths / 20), st.integers(0, CLASSES - 1)),
    max_size=40,
)


def columns(rows: list[tuple[bool, float, int]]) -> tuple[Any, Any, Any]:
    """Return right or wrong, scores and labels."""
    table = np.array(rows, float).reshape(-1, 3)
    return table[:, 0].astype(bool), table[:, 1], table[:, 2].astype(np.int64)


def coco_precision_R(is_right_N: NDArray[np.bool_], scores_N: NDArray[np.float64], objects: int) -> Any:
    """Return what pycocotools makes of one class on one picture whose matches are known."""
    evaluation = COCOeval(iouType="bbox")
    settings = evaluation.params
    settings.imgIds, settings.catIds, settings.iouThrs = [0], [0], np.array([0.5])
    settings.areaRng, settings.areaRngLbl, settings.maxDets = [[0, 1e10]], ["all"], [len(scores_N)]
    evaluation._paramsEval = settings  # where `accumulate` looks for what was evaluated
    evaluation.evalImgs = [
        {
            "dtMatches": is_right_N[None].astype(float),
            "dtIgnore": np.zeros((1, len(scores_N)), bool),
            "dtScores": scores_N,
            "gtIgnore": np.zeros(objects),
        }
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][0, :, 0, 0, 0]


@given(rows=Rows, missed=st.integers(0, 5))
def test_precision_over_recall_is_that_of_pycocotools(rows: list[tuple[bool, float, int]], missed: int) -> None:
    is_right_N, scores_N, labels_N = columns(rows)
    targets_G = np.concatenate((labels_N[is_right_N], np.repeat(np.arange(CLASSES), missed)))

    curves = precision_recall(is_right_N, scores_N, labels_N, targets_G, CLASSES)

    for label in range(CLASSES):
        mine_N, objects = labels_N == label, int((targets_G == label).sum())
        if objects:
            expected_R = coco_precision_R(is_right_N[mine_N], scores_N[mine_N], objects)
            np.testing.assert_allclose(curves.precision_CR[label], expected_R, rtol=1e-12)
        assert curves.objects_C[label] == objects


@given(rows=Rows, missed=st.integers(0, 5))
def test_no_score_gives_a_better_mean_f1(rows: list[tuple[bool, float, int]], missed: int) -> None:
    is_right_N, scores_N, labels_N = columns(rows)
    targets_G = np.concatenate((labels_N[is_right_N], np.repeat(np.arange(CLASSES), missed)))

    def mean_f1(score: float) -> float:
        values = []
        for label in set(targets_G.tolist()):
            shown_N = (labels_N == label) & (scores_N >= score)
            values.append(2 * (is_right_N & shown_N).sum() / (shown_N.sum() + (targets_G == label).sum()))
        return float(np.mean(values)) if values else 0.0

    best = best_use(is_right_N, scores_N, labels_N, targets_G, CLASSES)

    assert mean_f1(best.score) == pytest.approx(max(map(mean_f1, [1.0, *scores_N])))


def test_precision_at_a_recall_is_the_best_still_to_come() -> None:
    is_right_N = np.array([True, False, True])

    curves = precision_recall(is_right_N, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), np.zeros(2, int), 1)

    assert curves.precision_CR[0, 50] == 1
    assert curves.precision_CR[0, [51, 100]].tolist() == [2 / 3, 2 / 3]
    assert curves.ap_C[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_class_without_objects_or_detections_is_zero() -> None:
    nothing = np.zeros(0, int)

    curves = precision_recall(np.zeros(0, bool), np.zeros(0), nothing, np.array([1]), 3)

    assert curves.ap_C.tolist() == [0, 0, 0]
    assert curves.objects_C.tolist() == [0, 1, 0]


def test_best_use_separates_right_from_wrong() -> None:
    is_right_N, scores_N = np.array([True, True, False, False]), np.array([0.9, 0.8, 0.3, 0.2])

    best = best_use(is_right_N, scores_N, np.zeros(4, int), np.zeros(2, int), 1)

    assert (best.score, best.precision_C.tolist(), best.recall_C.tolist()) == (0.8, [1], [1])


def test_detections_of_one_score_are_shown_together() -> None:
    is_right_N, scores_N = np.array([True, False, False, False]), np.full(4, 0.5)

    best = best_use(is_right_N, scores_N, np.zeros(4, int), np.zeros(1, int), 1)

    assert (best.score, best.precision_C.tolist()) == (0.5, [0.25])


def test_best_use_of_nothing_right_shows_nothing() -> None:
    best = best_use(np.array([False]), np.array([0.9]), np.array([0]), np.array([0]), 2)

    assert best.score == 1
    assert math.isnan(best.precision_C[0])
    assert best.recall_C[0] == 0
    assert math.isnan(best.recall_C[1])
