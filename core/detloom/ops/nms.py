"""Predictions to detections: threshold, best boxes first, greedy suppression of overlaps.

Greedy suppression takes rows from the best score down, so what it keeps of the first rows never
depends on the rows after them. Rows are therefore taken in blocks, together with what was kept so
far, until enough boxes are kept: the result is that of suppressing all rows at once, and the work
grows with the boxes kept and not with the square of the rows.

Shape letters: B images, P priors, C classes, R rows (a box and one label), K kept rows.
Scores and limits as in YOLOv7 (Wang et al. 2022) and its published evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from detloom.structures import Predictions

__all__ = ["Kept", "suppress"]

# Thresholds on logits are taken a little lower, and scores compared exactly afterwards.
MARGIN = 1e-5

# Rows of an image that are compared at once: small where every comparison counts, larger where
# every block is a question to the device.
BLOCK_ON_CPU = 512
BLOCK_ELSEWHERE = 2048

# Apple's GPUs; the few rows above the threshold go to the CPU there.
WITHOUT_FLOAT64 = ("mps",)

# Classes lie this many pixels apart, or more for larger pictures. YOLOv7 moves them in float32; so
# do we while that rounds boxes by less than 1/32 pixel, for borderline overlaps to fall as published.
SPACING = 4096.0
MOST_CLASSES_IN_FLOAT32 = 128


@dataclass(frozen=True, slots=True)
class Kept:
    """Boxes that were kept, image after image, best first within an image.

    Attributes:
        boxes_K4: In pixels of the network's input, not clipped.
        scores_K: In [0, 1].
        labels_K: Class indices.
        image_K: Index into the batch, ascending.
        num_images: Batch size; images without boxes count.
    """

    boxes_K4: Tensor
    scores_K: Tensor
    labels_K: Tensor
    image_K: Tensor
    num_images: int

    def per_image(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return boxes, scores and labels of each image, on the CPU."""
        counts = torch.bincount(self.image_K, minlength=self.num_images).tolist()
        columns = (self.boxes_K4.cpu(), self.scores_K.cpu(), self.labels_K.cpu())
        return list(zip(*(torch.split(column, counts) for column in columns), strict=True))


@dataclass(frozen=True, slots=True)
class _Rows:
    boxes_R4: Tensor
    scores_R: Tensor
    labels_R: Tensor
    image_R: Tensor

    def __getitem__(self, index_K: Tensor) -> "_Rows":
        columns = (self.boxes_R4, self.scores_R, self.labels_R, self.image_R)
        return _Rows(*(column.index_select(0, index_K) for column in columns))

    def to(self, device: str) -> "_Rows":
        return _Rows(*(each.to(device) for each in (self.boxes_R4, self.scores_R, self.labels_R, self.image_R)))

    def __len__(self) -> int:
        return self.scores_R.shape[0]


def suppress(
    predictions: Predictions,
    *,
    score: float,
    overlap: float | None,
    max_detections: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
    candidates: int = 30000,
) -> Kept:
    """Return the boxes of a batch that score above a threshold and do not repeat a better one.

    They are on the device of the predictions, or on the CPU where that device has no float64.

    A score is objectness times class probability; without an objectness the class probability, and
    with an objectness and a single class the objectness alone.

    Args:
        predictions: Decoded predictions of the lead levels.
        score: Rows must score above this.
        overlap: Rows that overlap a better one by more than this IoU are dropped; None drops none of
            them, for heads that find each object once.
        max_detections: Boxes kept of an image.
        multi_label: Whether a box may appear with several labels; else with its best alone.
        agnostic: Whether boxes of different classes suppress one another.
        classes: Class indices to keep; None keeps all.
        candidates: Rows of an image that enter the suppression, the best ones.
    """
    rows = _rows(predictions, score, multi_label=multi_label, classes=classes)
    if overlap is None:
        return _kept(rows, _best(rows, max_detections), predictions.num_images)
    if rows.scores_R.device.type in WITHOUT_FLOAT64:
        rows = rows.to("cpu")
    apart_R4 = _apart(rows, predictions.num_classes, agnostic=agnostic)
    keep = _keep_by_image if rows.scores_R.device.type == "cpu" else _keep_together
    kept_K = keep(
        apart_R4,
        rows,
        predictions.num_images,
        overlap=overlap,
        max_detections=max_detections,
        candidates=candidates,
    )
    return _kept(rows, kept_K, predictions.num_images)


def _kept(rows: _Rows, kept_K: Tensor, num_images: int) -> Kept:
    kept = rows[kept_K]
    return Kept(kept.boxes_R4, kept.scores_R, kept.labels_R, kept.image_R, num_images)


def _rows(predictions: Predictions, score: float, *, multi_label: bool, classes: Sequence[int] | None) -> _Rows:
    """Return every row above the threshold, image after image."""
    boxes_BP4, logits_BPC, objectness_BP = (
        predictions.boxes_BP4,
        predictions.class_logits_BPC,
        predictions.objectness_BP,
    )
    num_priors, num_classes = predictions.boxes_BP4.shape[1], predictions.num_classes
    floor = _logit(score * (1 - MARGIN))
    # No row scores above its objectness, or above its best class: most priors leave here.
    likely_BP = (logits_BPC.amax(-1) if objectness_BP is None else objectness_BP) > floor
    # One flat index is several times faster than a pair: `index_select` copies whole rows.
    place_R = likely_BP.flatten().nonzero()[:, 0]
    objectness_R = None if objectness_BP is None else objectness_BP.flatten().index_select(0, place_R).sigmoid()

    if num_classes == 1 and objectness_R is not None:
        scores_R, labels_R = objectness_R, torch.zeros_like(place_R)
    else:
        logits_RC = logits_BPC.flatten(0, 1).index_select(0, place_R)
        if multi_label:
            least_R1 = logits_RC.new_full((1, 1), floor)
            if objectness_R is not None:
                least_R1 = (score * (1 - MARGIN) / objectness_R).clamp(max=1).logit()[:, None]
            cell_R = (logits_RC > least_R1).flatten().nonzero()[:, 0]
            row_R, labels_R = cell_R.div(num_classes, rounding_mode="floor"), cell_R % num_classes
            place_R = place_R.index_select(0, row_R)
            scores_R = logits_RC.flatten().index_select(0, cell_R).sigmoid()
            objectness_R = None if objectness_R is None else objectness_R.index_select(0, row_R)
        else:
            best_R, labels_R = logits_RC.max(-1)
            scores_R = best_R.sigmoid()
        if objectness_R is not None:
            scores_R = scores_R * objectness_R

    boxes_R4 = boxes_BP4.flatten(0, 1).index_select(0, place_R)
    # The sum of a box is finite where all its sides are.
    wanted_R = (scores_R > score) & boxes_R4.sum(-1).isfinite()
    if classes is not None:
        wanted_R &= torch.isin(labels_R, torch.as_tensor(list(classes), dtype=labels_R.dtype, device=labels_R.device))
    image_R = place_R.div(num_priors, rounding_mode="floor")
    return _Rows(boxes_R4, scores_R, labels_R, image_R)[wanted_R.nonzero()[:, 0]]


def _apart(rows: _Rows, num_classes: int, *, agnostic: bool) -> Tensor:
    """Return the boxes moved, in float64, so that those of different images or classes cannot overlap."""
    boxes_R4, labels_R = rows.boxes_R4, rows.labels_R
    if not len(rows):
        return boxes_R4.double()
    low, high = boxes_R4.aminmax()
    spacing = (high - low + 1).clamp(min=SPACING)
    if agnostic:
        num_classes, moved_R4 = 1, boxes_R4.double()
    elif num_classes <= MOST_CLASSES_IN_FLOAT32:
        moved_R4 = (boxes_R4 + (labels_R * spacing)[:, None]).double()
    else:
        moved_R4 = boxes_R4.double() + (labels_R * spacing.double())[:, None]
    return moved_R4 + (rows.image_R * (num_classes * spacing.double()))[:, None]


def _keep_by_image(
    apart_R4: Tensor, rows: _Rows, num_images: int, *, overlap: float, max_detections: int, candidates: int
) -> Tensor:
    """Return the indices of the kept rows; one image after another.

    On a CPU, comparing rows of different images costs more than a turn for each image.
    """
    kept = []
    start = 0
    for count in torch.bincount(rows.image_R, minlength=num_images).tolist():
        scores_R = rows.scores_R[start : start + count]
        order_R = start + scores_R.topk(min(count, candidates)).indices
        kept_K = order_R[:0]
        for block_R in torch.split(order_R, BLOCK_ON_CPU):
            pool_R = torch.cat((kept_K, block_R))
            kept_K = pool_R[nms(apart_R4[pool_R], rows.scores_R[pool_R].double(), overlap)[:max_detections]]
            if len(kept_K) == max_detections:
                break
        kept.append(kept_K)
        start += count
    return torch.cat(kept)


def _keep_together(
    apart_R4: Tensor, rows: _Rows, num_images: int, *, overlap: float, max_detections: int, candidates: int
) -> Tensor:
    """Return the same for all images at once: fewer, larger steps, for accelerators."""
    order_R, rank_R = _ranked(rows.scores_R, rows.image_R)
    most = min(candidates, int(rank_R.max()) + 1) if len(rows) else 0
    kept_K = order_R[:0]
    for start in range(0, most, BLOCK_ELSEWHERE):
        full_B = torch.bincount(rows.image_R[kept_K], minlength=num_images) == max_detections
        now_R = (rank_R >= start) & (rank_R < min(start + BLOCK_ELSEWHERE, candidates)) & ~full_B[rows.image_R[order_R]]
        block_R = order_R[now_R]
        pool_R = torch.cat((kept_K, block_R))
        found_K = pool_R[nms(apart_R4[pool_R], rows.scores_R[pool_R].double(), overlap)]
        by_image_K, rank_K = _ranked(rows.scores_R[found_K], rows.image_R[found_K])
        kept_K = found_K[by_image_K[rank_K < max_detections]]
    return kept_K


def _best(rows: _Rows, max_detections: int) -> Tensor:
    """Return the indices of the best rows of each image; of equal ones the first."""
    order_R, rank_R = _ranked(rows.scores_R, rows.image_R)
    return order_R[rank_R < max_detections]


def _ranked(scores_R: Tensor, image_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order by image and falling score, and each place's rank within its image."""
    by_score_R = scores_R.argsort(descending=True, stable=True)
    order_R = by_score_R[image_R[by_score_R].argsort(stable=True)]
    image_R = image_R[order_R]
    first_R = torch.searchsorted(image_R, image_R)
    return order_R, torch.arange(len(order_R), device=order_R.device) - first_R


def _logit(probability: float) -> float:
    return -math.inf if probability <= 0 else math.log(probability) - math.log1p(-probability)
