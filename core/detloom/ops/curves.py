"""Precision and recall over confidence, from detections that are known to be right or wrong.

Shape letters: N detections, G objects, T overlap thresholds, C classes, R recall thresholds,
S confidence thresholds.
Average precision with 101 recalls as COCO has it (Lin et al. 2014), with the area under the
interpolated curve that YOLO's evaluations report (Wang et al. 2022, published code's definition).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curves", "precision_recall"]

Floats = NDArray[np.float64]

RECALLS = np.linspace(0, 1, 101)
CONFIDENCES = np.linspace(0, 1, 1000)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What a class gains and pays as the confidence threshold falls.

    Attributes:
        recalls_R: Recall axis of ``precision_CR``.
        precision_CR: Best precision at a recall or more, at the first overlap threshold.
        ap_CT: Area under the precision-recall curve at each overlap threshold.
        confidences_S: Confidence axis of the next two.
        precision_CS: Precision of the detections above a confidence, at the first overlap threshold.
        recall_CS: Their recall.
        objects_C: Number of objects of each class; rows of classes without any are zeros.
    """

    recalls_R: Floats
    precision_CR: Floats
    ap_CT: Floats
    confidences_S: Floats
    precision_CS: Floats
    recall_CS: Floats
    objects_C: NDArray[np.int64]

    @property
    def f1_CS(self) -> Floats:
        """Return the harmonic mean of precision and recall."""
        product_CS, total_CS = self.precision_CS * self.recall_CS, self.precision_CS + self.recall_CS
        return 2 * product_CS / np.maximum(total_CS, 1e-16)

    @property
    def best(self) -> int:
        """Return the index of the confidence with the highest F1, as a mean over classes with objects."""
        has_objects_C = self.objects_C > 0
        return int(self.f1_CS[has_objects_C].mean(0).argmax()) if has_objects_C.any() else 0


def precision_recall(
    is_right_NT: NDArray[np.bool_],
    scores_N: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    target_labels_G: NDArray[np.integer],
    num_classes: int,
    *,
    recall_end: float | None = None,
) -> Curves:
    """Return the curves of all classes.

    Args:
        is_right_NT: Whether a detection found an object, at each overlap threshold.
        scores_N: Confidences.
        labels_N: Class indices.
        target_labels_G: Class index of each object.
        num_classes: Number of classes.
        recall_end: Recall at which precision is taken to reach 0; None: 0.01 after the last recall.
    """
    num_thresholds = is_right_NT.shape[1]
    objects_C = np.bincount(target_labels_G.astype(np.int64), minlength=num_classes)
    precision_CR = np.zeros((num_classes, len(RECALLS)))
    ap_CT = np.zeros((num_classes, num_thresholds))
    precision_CS = np.zeros((num_classes, len(CONFIDENCES)))
    recall_CS = np.zeros_like(precision_CS)

    order_N = np.argsort(-scores_N, kind="stable")
    is_right_NT, scores_N, labels_N = is_right_NT[order_N], scores_N[order_N], labels_N[order_N]
    for label in np.flatnonzero(objects_C):
        is_mine_N = labels_N == label
        if not is_mine_N.any():
            continue
        right_NT = is_right_NT[is_mine_N].cumsum(0)
        recall_NT = right_NT / objects_C[label]
        precision_NT = right_NT / np.arange(1, len(right_NT) + 1)[:, None]
        # Confidence falls along N; interpolation wants it to rise.
        rising_N = -scores_N[is_mine_N]
        recall_CS[label] = np.interp(-CONFIDENCES, rising_N, recall_NT[:, 0], left=0)
        precision_CS[label] = np.interp(-CONFIDENCES, rising_N, precision_NT[:, 0], left=1)
        for threshold in range(num_thresholds):
            curve_R = _interpolated(recall_NT[:, threshold], precision_NT[:, threshold], recall_end)
            ap_CT[label, threshold] = ((curve_R[1:] + curve_R[:-1]) / 2 * np.diff(RECALLS)).sum()
            if threshold == 0:
                precision_CR[label] = curve_R
    return Curves(RECALLS, precision_CR, ap_CT, CONFIDENCES, precision_CS, recall_CS, objects_C)


def _interpolated(recall_N: Floats, precision_N: Floats, recall_end: float | None) -> Floats:
    """Return the envelope of a curve at the 101 recalls."""
    end = recall_N[-1] + 0.01 if recall_end is None else recall_end
    recall_N = np.concatenate(([0.0], recall_N, [end]))
    precision_N = np.concatenate(([1.0], precision_N, [0.0]))
    envelope_N = np.maximum.accumulate(precision_N[::-1])[::-1]
    return np.interp(RECALLS, recall_N, envelope_N)
