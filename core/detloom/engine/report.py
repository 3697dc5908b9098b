"""Where a detector is right and wrong on a split: curves, confusions, and their pictures.

Shape letters: N detections and G objects (of an image, or of the split where they are joined),
C classes, K classes and the background.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from detloom.data.records import Annotations, ImageRecord
from detloom.durable import write_text
from detloom.interfaces import Metrics
from detloom.ops.curves import BestUse, Curves, best_use, precision_recall
from detloom.pictures import make_directory, write_picture
from detloom.plots import plot_confusion, plot_precision_recall
from detloom.structures import Detections

__all__ = ["confusion", "curves", "write_report"]

OVERLAP = 0.5
# COCO looks at no more detections than this of a class in a picture.
MOST_OF_A_CLASS = 100
# A detection that lies in a crowd of its class by this share of its area is neither right nor wrong.
CROWD_SHARE = 0.5


def write_report(
    directory: Path, metrics: Metrics, detections: Mapping[int, Detections], annotations: Annotations
) -> None:
    """Write ``evaluation.json``, ``precision-recall.png`` and ``confusion.png``.

    The confusion is counted at the score with the best F1, which the JSON file gives.

    Raises:
        ArtifactError: A file cannot be written.
    """
    make_directory(directory)
    found, best = curves(detections, annotations)
    counts_KK = confusion(detections, annotations, score=best.score)
    content = {
        "summary": {name: _number(value) for name, value in metrics.summary.items()},
        "per_class": {
            name: {key: _number(value) for key, value in values.items()} for name, values in metrics.per_class.items()
        },
        "best_f1": {
            "score": _number(best.score),
            "precision": {name: _number(best.precision_C[i]) for i, name in enumerate(annotations.names)},
            "recall": {name: _number(best.recall_C[i]) for i, name in enumerate(annotations.names)},
        },
        "confusion": {"annotated": [*annotations.names, "background"], "counts": counts_KK.tolist()},
    }
    write_text(directory / "evaluation.json", json.dumps(content, indent=1) + "\n")
    write_picture(directory / "precision-recall.png", plot_precision_recall(found, annotations.names))
    write_picture(directory / "confusion.png", plot_confusion(counts_KK, annotations.names, best.score))


def curves(
    detections: Mapping[int, Detections], annotations: Annotations, *, overlap: float = OVERLAP
) -> tuple[Curves, BestUse]:
    """Return precision over recall of each class at an overlap, and the best score to show from.

    The best detection takes the object of its class that it overlaps most, then the next takes
    among those left; the hundred best of a class in a picture count, as COCO has it.
    """
    is_right, scores, labels, targets = [], [], [], []
    for index, image in enumerate(annotations.images):
        truth = image.labels_N[~image.is_crowd_N]
        targets.append(truth)
        if index not in detections or not len(detections[index]):
            continue
        found = detections[index]
        iou_NG, is_counted_N = _overlaps(found, image)
        labels_N, scores_N = found.labels_N.cpu().numpy(), found.scores_N.cpu().numpy()
        is_among_best_N = _rank_in_class(labels_N) < MOST_OF_A_CLASS
        pairs = (iou_NG >= overlap) & (labels_N[:, None] == truth[None]) & is_among_best_N[:, None]
        is_right_N = np.zeros(len(found), bool)
        # Detections come best first.
        is_right_N[[n for n, _ in _one_to_one(pairs, iou_NG, by_row=True)]] = True
        is_counted_N = (is_counted_N | is_right_N) & is_among_best_N
        is_right.append(is_right_N[is_counted_N])
        scores.append(scores_N[is_counted_N])
        labels.append(labels_N[is_counted_N])
    columns = (
        np.concatenate([np.zeros(0, bool), *is_right]),
        np.concatenate([np.zeros(0, np.float32), *scores]),
        np.concatenate([np.zeros(0, np.int64), *labels]),
        np.concatenate([np.zeros(0, np.int64), *targets]),
        len(annotations.names),
    )
    return precision_recall(*columns), best_use(*columns)


def confusion(
    detections: Mapping[int, Detections], annotations: Annotations, *, score: float, overlap: float = OVERLAP
) -> NDArray[np.int64]:
    """Return ``[K, K]`` counts: rows as annotated, columns as detected, the background last.

    Pairs are made by overlap, whatever their classes; what is left over pairs with the background.
    """
    background = len(annotations.names)
    counts_KK = np.zeros((background + 1, background + 1), np.int64)
    for index, image in enumerate(annotations.images):
        truth = image.labels_N[~image.is_crowd_N]
        is_missed_G = np.ones(len(truth), bool)
        if index in detections and len(detections[index]):
            iou_NG, is_counted_N = _overlaps(detections[index], image)
            is_shown_N = detections[index].scores_N.cpu().numpy() >= score
            labels_N = detections[index].labels_N.cpu().numpy()
            pairs = _one_to_one((iou_NG >= overlap) & is_shown_N[:, None], iou_NG, by_row=False)
            for n, g in pairs:
                counts_KK[truth[g], labels_N[n]] += 1
                is_missed_G[g] = is_shown_N[n] = False
            np.add.at(counts_KK[background], labels_N[is_shown_N & is_counted_N], 1)
        np.add.at(counts_KK[:, background], truth[is_missed_G], 1)
    return counts_KK


def _overlaps(found: Detections, image: ImageRecord) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the IoU with each object, and which detections do not lie in a crowd of their class."""
    # In float64: a box at exactly the overlap asked for is found.
    boxes_N4 = found.boxes_N4.cpu().double()
    truth_G4 = torch.from_numpy(image.boxes_N4).double()
    is_crowd_G = image.is_crowd_N
    iou_NG = box_iou(boxes_N4, truth_G4[~is_crowd_G]).numpy()
    if not is_crowd_G.any():
        return iou_NG, np.ones(len(found), bool)
    crowds_G4 = truth_G4[is_crowd_G]
    low_NG2 = torch.maximum(boxes_N4[:, None, :2], crowds_G4[None, :, :2])
    high_NG2 = torch.minimum(boxes_N4[:, None, 2:], crowds_G4[None, :, 2:])
    common_NG = (high_NG2 - low_NG2).clamp(min=0).prod(-1)
    share_NG = common_NG / (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(-1)[:, None].clamp(min=1e-9)
    is_mine_NG = found.labels_N.cpu().numpy()[:, None] == image.labels_N[is_crowd_G][None]
    return iou_NG, ~((share_NG.numpy() >= CROWD_SHARE) & is_mine_NG).any(1)


def _rank_in_class(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many detections of the same class come before each."""
    order_N = np.argsort(labels_N, kind="stable")
    sorted_N = labels_N[order_N]
    rank_N = np.empty(len(labels_N), np.int64)
    rank_N[order_N] = np.arange(len(labels_N)) - np.searchsorted(sorted_N, sorted_N)
    return rank_N


def _one_to_one(
    is_allowed_NG: NDArray[np.bool_], iou_NG: NDArray[np.float64], *, by_row: bool
) -> list[tuple[int, int]]:
    """Pair greedily: row by row with the largest overlap left, or by overlap alone."""
    rows, columns = is_allowed_NG.nonzero()
    closest_first = -iou_NG[rows, columns]
    order = np.lexsort((closest_first, rows) if by_row else (rows, closest_first))
    pairs = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def _number(value: float) -> float | None:
    """Return a number that JSON has."""
    return None if math.isnan(value) else round(float(value), 6)
