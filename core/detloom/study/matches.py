"""What each detection of a run was worth on each picture, kept so that AP can be counted again on other pictures.

A detection's fate at COCO's ten overlaps depends on its own picture alone; AP depends on all of them, by the ranking.
So the fates are found once, as two masks of ten bits for each detection, and AP of any choice of pictures, each as
often as one likes, needs sums alone.

Matching and AP are COCO's (Lin et al. 2014; cocodataset.org, detection evaluation): of each class the hundred best
detections of a picture, best first, each taking the object left that it overlaps most; crowds are neither right nor
wrong; AP is the mean over 101 recalls of the best precision at that recall or a higher one.

Shape letters: I images, N detections, G objects and M detections of one class in one image, T overlaps, C classes,
R resamples, K right detections of one class at one overlap.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from detloom.data.records import Annotations, ImageRecord
from detloom.durable import read_tensors, write_tensors
from detloom.errors import ArtifactError
from detloom.structures import Detections

__all__ = ["OVERLAPS", "Matches", "Weights", "matches_file"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Weights = Literal["last", "best"]
"""Which artifact of a run is measured."""

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_OF_A_CLASS = 100
ALMOST = 1 - 1e-10
# Entries of one resampled block, so that any number of resamples takes the memory of a few.
BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The detections of one run on a split, and which of them are right.

    Attributes:
        pictures: Paths of the images.
        names: Class names by index.
        objects_IC: Objects of each class in each image, crowds left out.
        image_N: Index of the image, ascending.
        label_N: Class index.
        score_N: Descending within an image.
        boxes_N4: xyxy in pixels of the picture.
        right_N: Bit t is set where the detection takes an object at overlap t.
        ignored_N: Bit t is set where it is neither right nor wrong.
        source: Digest of the artifact that the detections are of; empty where there is none.
    """

    pictures: tuple[str, ...]
    names: tuple[str, ...]
    objects_IC: Integers
    image_N: Integers
    label_N: Integers
    score_N: NDArray[np.float32]
    boxes_N4: NDArray[np.float32]
    right_N: Integers
    ignored_N: Integers
    source: str = ""

    @classmethod
    def of(cls, detections: Mapping[int, Detections], annotations: Annotations, *, source: str = "") -> Self:
        """Match the detections of a split, by index of the image."""
        num_classes = len(annotations.names)
        objects = [
            np.bincount(image.labels_N[~image.is_crowd_N], minlength=num_classes) for image in annotations.images
        ]
        columns: list[tuple[NDArray[np.generic], ...]] = []
        for index, image in enumerate(annotations.images):
            if index not in detections or not len(detections[index]):
                continue
            found = detections[index]
            boxes_N4, labels_N = found.boxes_N4.cpu().numpy(), found.labels_N.cpu().numpy()
            scores_N = found.scores_N.cpu().numpy()
            right_N, ignored_N, is_kept_N = _fates(boxes_N4, labels_N, image)
            whole = (np.full(len(found), index), labels_N, scores_N, boxes_N4, right_N, ignored_N)
            columns.append(tuple(column[is_kept_N] for column in whole))
        empty = (np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 4)), np.zeros(0), np.zeros(0))
        image_N, label_N, score_N, box_N4, right, ignored = (
            np.concatenate([empty[place], *(each[place] for each in columns)]) for place in range(len(empty))
        )
        return cls(
            pictures=tuple(str(image.path) for image in annotations.images),
            names=annotations.names,
            objects_IC=np.array(objects, np.int64).reshape(-1, num_classes),
            image_N=image_N.astype(np.int64),
            label_N=label_N.astype(np.int64),
            score_N=score_N.astype(np.float32),
            boxes_N4=box_N4.astype(np.float32),
            right_N=right.astype(np.int64),
            ignored_N=ignored.astype(np.int64),
            source=source,
        )

    @property
    def ap(self) -> float:
        """Return AP on the images as they are."""
        return float(self.resampled_ap(np.ones((1, len(self.pictures)), np.int64))[0])

    def resampled_ap(self, counts_RI: Integers) -> Floats:
        """Return AP where each image counts so many times; NaN where no object is left.

        This is what COCO's evaluation gives on a data set that has copies of the images, up to the order of
        detections with equal scores.
        """
        weight_RI: Floats = counts_RI.astype(np.float64)
        objects_RC: Floats = weight_RI @ self.objects_IC
        total_RC = np.zeros_like(objects_RC)
        for label in np.flatnonzero(self.objects_IC.any(0)).tolist():
            place_M = np.flatnonzero(self.label_N == label)
            order_M = place_M[np.argsort(-self.score_N[place_M], kind="stable")]
            rows = max(1, BLOCK // max(1, len(order_M)))
            for start in range(0, len(weight_RI), rows):
                block = slice(start, start + rows)
                total_RC[block, label] = self._class_ap(order_M, weight_RI[block], objects_RC[block, label])
        has_objects_RC = objects_RC > 0
        num_R = has_objects_RC.sum(1)
        sums_R = np.where(has_objects_RC, total_RC, 0.0).sum(1)
        result: Floats = np.where(num_R > 0, sums_R / np.maximum(num_R, 1), np.nan)
        return result

    def write(self, path: Path) -> None:
        """Write them, whole or not at all.

        Raises:
            ArtifactError: The file cannot be written.
        """
        columns = {
            "objects": self.objects_IC.astype(np.int32),
            "image": self.image_N.astype(np.int32),
            "label": self.label_N.astype(np.int16),
            "score": self.score_N,
            "boxes": self.boxes_N4,
            "right": self.right_N.astype(np.int16),
            "ignored": self.ignored_N.astype(np.int16),
        }
        metadata = {
            "pictures": json.dumps(self.pictures),
            "names": json.dumps(self.names),
            "source": self.source,
        }
        write_tensors(path, {name: torch.from_numpy(column) for name, column in columns.items()}, metadata)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what was written.

        Raises:
            ArtifactError: The file is missing or broken.
        """
        tensors, metadata = read_tensors(path)
        try:
            wide = {name: tensors[name].numpy().astype(np.int64) for name in ("image", "label", "right", "ignored")}
            return cls(
                pictures=tuple(json.loads(metadata["pictures"])),
                names=tuple(json.loads(metadata["names"])),
                objects_IC=tensors["objects"].numpy().astype(np.int64),
                image_N=wide["image"],
                label_N=wide["label"],
                score_N=tensors["score"].numpy(),
                boxes_N4=tensors["boxes"].numpy(),
                right_N=wide["right"],
                ignored_N=wide["ignored"],
                source=metadata["source"],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path}: these are no matches of a run: {error!r}; remove the file") from error

    def _class_ap(self, order_M: NDArray[np.intp], weight_RI: Floats, objects_R: Floats) -> Floats:
        """Return AP of a class, a mean over overlaps; its detections come best first."""
        weight_RM = weight_RI[:, self.image_N[order_M]]
        right_M, ignored_M = self.right_N[order_M], self.ignored_N[order_M]
        everything_RM = None if ignored_M.any() else weight_RM.cumsum(1)
        result_R = np.zeros(len(weight_RI))
        for bit in range(len(OVERLAPS)):
            right_K = np.flatnonzero(right_M >> bit & 1)
            if not len(right_K):
                continue
            if everything_RM is None:
                counted_RK = (weight_RM * ~(ignored_M >> bit & 1).astype(bool)).cumsum(1)[:, right_K]
            else:
                counted_RK = everything_RM[:, right_K]
            found_RK = weight_RM[:, right_K].cumsum(1)
            precision_RK = found_RK / np.maximum(counted_RK, 1)
            best_RK = np.maximum.accumulate(precision_RK[:, ::-1], axis=1)[:, ::-1]
            # Each right detection stands for the recalls from the one before it to its own.
            recall_RK = found_RK / np.maximum(objects_R, 1)[:, None]
            reached_RK = np.searchsorted(RECALLS, recall_RK, side="right")
            result_R += (best_RK * np.diff(reached_RK, axis=1, prepend=0)).sum(1) / len(RECALLS)
        return result_R / len(OVERLAPS)


def matches_file(run: Path, weights: Weights) -> Path:
    """Return where the matches of a run's weights are kept."""
    return run / f"matches-{weights}.safetensors"


def _fates(
    boxes_N4: NDArray[np.float32], labels_N: Integers, image: ImageRecord
) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Return the masks of right and ignored overlaps, and which detections are among the best of their class."""
    right_N, ignored_N = np.zeros(len(labels_N), np.int64), np.zeros(len(labels_N), np.int64)
    is_kept_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N).tolist():
        place_M = np.flatnonzero(labels_N == label)[:MOST_OF_A_CLASS]
        is_kept_N[place_M] = True
        mine_G = np.flatnonzero(image.labels_N == label)
        if not len(mine_G):
            continue
        # Crowds last: a detection takes one only where it takes no object.
        mine_G = mine_G[np.argsort(image.is_crowd_N[mine_G], kind="stable")]
        is_crowd_G = image.is_crowd_N[mine_G]
        iou_MG = _overlaps(boxes_N4[place_M], image.boxes_N4[mine_G], is_crowd_G)
        right_N[place_M], ignored_N[place_M] = _matched(iou_MG, is_crowd_G)
    return right_N, ignored_N, is_kept_N


def _matched(iou_MG: Floats, is_crowd_G: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    least_T = np.minimum(OVERLAPS, ALMOST)
    rows_T, bits_T = np.arange(len(least_T)), 1 << np.arange(len(least_T))
    is_free_TG = np.ones((len(least_T), len(is_crowd_G)), bool)
    right_M, ignored_M = np.zeros(len(iou_MG), np.int64), np.zeros(len(iou_MG), np.int64)
    num_objects = int((~is_crowd_G).sum())
    for m in np.flatnonzero(iou_MG.max(1) >= least_T[0]).tolist():
        is_near_TG = (iou_MG[m] >= least_T[:, None]) & is_free_TG
        objects_TG = np.where(is_near_TG, iou_MG[m], -1.0)[:, :num_objects]
        is_right_T = is_near_TG[:, :num_objects].any(1)
        if num_objects:
            # Of equal overlaps the last is taken, as COCO's own evaluation does.
            taken_T = num_objects - 1 - objects_TG[:, ::-1].argmax(1)
            is_free_TG[rows_T[is_right_T], taken_T[is_right_T]] = False
        right_M[m] = bits_T[is_right_T].sum()
        ignored_M[m] = bits_T[~is_right_T & is_near_TG[:, num_objects:].any(1)].sum()
    return right_M, ignored_M


def _overlaps(boxes_M4: NDArray[np.float32], truth_G4: NDArray[np.float32], is_crowd_G: NDArray[np.bool_]) -> Floats:
    """Return IoU, and for crowds the share of the detection that lies inside; in float64, as COCO has it."""
    boxes_M4, truth_G4 = boxes_M4.astype(np.float64), truth_G4.astype(np.float64)
    low_MG2 = np.maximum(boxes_M4[:, None, :2], truth_G4[None, :, :2])
    high_MG2 = np.minimum(boxes_M4[:, None, 2:], truth_G4[None, :, 2:])
    common_MG = np.maximum(high_MG2 - low_MG2, 0).prod(-1)
    area_M, area_G = (np.asarray((each[:, 2:] - each[:, :2]).prod(-1), np.float64) for each in (boxes_M4, truth_G4))
    whole_MG = np.where(is_crowd_G[None], area_M[:, None], area_M[:, None] + area_G[None] - common_MG)
    result: Floats = common_MG / np.maximum(whole_MG, 1e-12)
    return result
