"""Curves by hand and against the golden files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detloom.ops.curves import precision_recall


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("prefix", "recall_end"), [("v7", None), ("v5", 1.0)])
def test_curves_equal_the_golden_ones(
    shared: Callable[[str], Path], seed: int, prefix: str, recall_end: float | None
) -> None:
    golden = np.load(shared(f"golden/post/metrics-seed{seed}.npz"))
    classes = golden[f"{prefix}_classes"]

    curves = precision_recall(
        golden["tp"],
        golden["conf"],
        golden["pred_class"].astype(np.int64),
        golden["target_class"].astype(np.int64),
        int(classes.max()) + 1,
        recall_end=recall_end,
    )

    np.testing.assert_allclose(curves.ap_CT[classes], golden[f"{prefix}_ap"], rtol=1e-9)
    np.testing.assert_allclose(curves.precision_CS[classes, curves.best], golden[f"{prefix}_precision"], rtol=1e-9)
    np.testing.assert_allclose(curves.recall_CS[classes, curves.best], golden[f"{prefix}_recall"], rtol=1e-9)
    np.testing.assert_allclose(curves.f1_CS[classes, curves.best], golden[f"{prefix}_f1"], rtol=1e-9)


def test_precision_at_a_recall_is_the_best_still_to_come() -> None:
    is_right_NT = np.array([[True], [False], [True]])

    curves = precision_recall(is_right_NT, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), np.zeros(2, int), 1)

    assert curves.precision_CR[0, 49] == pytest.approx(1)
    assert curves.precision_CR[0, 50] == pytest.approx(2 / 3)
    assert curves.precision_CR[0, 100] == pytest.approx(2 / 3)


def test_class_without_objects_or_detections_is_zero() -> None:
    nothing = np.zeros((0, 1), bool)

    curves = precision_recall(nothing, np.zeros(0), np.zeros(0, int), np.array([1]), 3)

    assert curves.ap_CT.tolist() == [[0], [0], [0]]
    assert curves.objects_C.tolist() == [0, 1, 0]
    assert curves.best == 0


def test_best_confidence_separates_right_from_wrong() -> None:
    is_right_NT = np.array([[True], [True], [False], [False]])

    curves = precision_recall(is_right_NT, np.array([0.9, 0.8, 0.3, 0.2]), np.zeros(4, int), np.zeros(2, int), 1)

    assert 0.3 < curves.confidences_S[curves.best] <= 0.8
