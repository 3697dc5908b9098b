"""Precision over recall, and the score at which a detector is best used.

Average precision as COCO defines it (Lin et al. 2014; cocodataset.org, detection evaluation): the
mean, over 101 recalls, of the best precision at that recall or a higher one. F1 is van Rijsbergen's
(Information Retrieval, 1979, chapter 7).

Shape letters: N detections, G objects, C classes, R recalls; M detections of one class, K of them right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BestUse", "Curves", "best_use", "precision_recall"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Precision over recall of each class.

    Attributes:
        recalls_R: From 0 to 1.
        precision_CR: Best precision at a recall or more; zeros where it is never reached.
        objects_C: Number of objects of each class; rows of classes without any are zeros.
    """

    recalls_R: Floats
    precision_CR: Floats
    objects_C: Integers

    @property
    def ap_C(self) -> Floats:
        """Return the average precision of each class."""
        means_C: Floats = self.precision_CR.mean(1)
        return means_C


@dataclass(frozen=True, slots=True, eq=False)
class BestUse:
    """The least score to show so that F1, as a mean over classes with objects, is highest.

    Attributes:
        score: Detections that score this much or more are shown; 1 where nothing is right.
        precision_C: Of the detections shown; not a number where a class has none.
        recall_C: Not a number where a class has no objects.
    """

    score: float
    precision_C: Floats
    recall_C: Floats


def precision_recall(
    is_right_N: NDArray[np.bool_],
    scores_N: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    target_labels_G: NDArray[np.integer],
    num_classes: int,
) -> Curves:
    """Return the curves of all classes.

    Args:
        is_right_N: Whether a detection found an object.
        scores_N: By which detections are ranked; equal ones keep their order.
        labels_N: Class indices.
        target_labels_G: Class index of each object.
        num_classes: Number of classes.
    """
    objects_C = np.bincount(target_labels_G, minlength=num_classes)
    precision_CR = np.zeros((num_classes, len(RECALLS)))
    order_N, starts_C = _by_class(scores_N, labels_N, num_classes)
    for label, right_M in enumerate(np.split(is_right_N[order_N], starts_C[1:])):
        # Precision peaks where one more object is found: the k-th is found at this rank.
        rank_K = right_M.nonzero()[0] + 1
        if not objects_C[label] or not len(rank_K):
            continue
        found_K = np.arange(1, len(rank_K) + 1)
        best_K = np.maximum.accumulate((found_K / rank_K)[::-1])[::-1]
        needed_R = np.searchsorted(found_K / objects_C[label], RECALLS)
        reached = int(np.searchsorted(needed_R, len(best_K)))
        precision_CR[label, :reached] = best_K[needed_R[:reached]]
    return Curves(RECALLS, precision_CR, objects_C)


def best_use(
    is_right_N: NDArray[np.bool_],
    scores_N: NDArray[np.floating],
    labels_N: NDArray[np.integer],
    target_labels_G: NDArray[np.integer],
    num_classes: int,
) -> BestUse:
    """Return the best score to show detections from; the arguments are those of ``precision_recall``.

    F1 of a class is twice its right detections over its detections and objects together. Every score
    that occurs is tried.
    """
    objects_C = np.bincount(target_labels_G, minlength=num_classes)
    order_N, starts_C = _by_class(scores_N, labels_N, num_classes)
    label_N, right_N = labels_N[order_N], is_right_N[order_N].astype(np.int64)
    before_C = np.concatenate(([0], right_N.cumsum()))[starts_C]
    rank_N = np.arange(1, len(order_N) + 1) - starts_C[label_N]
    counted_N = objects_C[label_N] > 0
    f1_N = np.where(
        counted_N, 2 * (right_N.cumsum() - before_C[label_N]) / np.maximum(rank_N + objects_C[label_N], 1), 0
    )
    # What each detection adds to its class, summed from the best score down, is the sum over classes.
    gain_N = np.empty_like(f1_N)
    gain_N[order_N] = np.where(rank_N == 1, f1_N, f1_N - np.roll(f1_N, 1))
    falling_N = np.argsort(-scores_N, kind="stable")
    ranked_N = scores_N[falling_N]
    # Detections of one score are shown together.
    ends = np.flatnonzero(np.append(ranked_N[1:] != ranked_N[:-1], True)[: len(ranked_N)])
    sums = gain_N[falling_N].cumsum()[ends]
    score = float(ranked_N[ends[sums.argmax()]]) if len(sums) and sums.max() > 0 else 1.0

    is_shown_N = scores_N >= score
    shown_C = np.bincount(labels_N[is_shown_N], minlength=num_classes)
    right_C = np.bincount(labels_N[is_shown_N & is_right_N], minlength=num_classes)
    return BestUse(score, _ratio(right_C, shown_C), _ratio(right_C, objects_C))


def _by_class(
    scores_N: NDArray[np.floating], labels_N: NDArray[np.integer], num_classes: int
) -> tuple[NDArray[np.intp], Integers]:
    """Return the order by class and falling score, and where each class starts in it."""
    order_N = np.lexsort((-scores_N, labels_N))
    return order_N, np.searchsorted(labels_N[order_N], np.arange(num_classes))


def _ratio(part_C: Integers, whole_C: Integers) -> Floats:
    return np.where(whole_C > 0, part_C / np.maximum(whole_C, 1), np.nan)
