"""Annotations as every reader returns them, before any picture is opened.

Shape letter: N boxes of one image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Annotations", "Fault", "ImageRecord"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a data set.

    Attributes:
        file: The file that holds the mistake.
        where: Annotation id, line number, or object; empty where the file as a whole is meant.
        what: What is wrong, and what was found.
        is_left_out: Whether the picture or box is not used; a box that was clipped is.
        of_size: The picture whose annotated size the fault rests on, as a box beyond it does; else nothing.
    """

    file: str
    where: str
    what: str
    is_left_out: bool = True
    of_size: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One picture and its boxes.

    Attributes:
        path: The picture.
        image_id: The data set's own id, or the position where it has none.
        height: Pixels, as annotated; 0 where the format does not say.
        width: Pixels, as annotated; 0 where the format does not say.
        boxes_N4: xyxy in pixels of the picture, float32.
        labels_N: Class indices from 0, int64.
        is_crowd_N: Regions that stand for a crowd: never learned, ignored in evaluation as COCO does.
        area_N: Area by which COCO sorts objects into small, medium and large, float32; the mask's
            area where the format has it, else the box's.
        annotation_ids_N: The data set's own ids, int64, or positions from 1 where it has none.
    """

    path: Path
    image_id: int
    height: int
    width: int
    boxes_N4: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    is_crowd_N: NDArray[np.bool_]
    area_N: NDArray[np.float32]
    annotation_ids_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """A split of a data set.

    Attributes:
        names: Class names by index.
        images: Pictures in a fixed order; those without objects are kept.
        faults: Everything found wrong; the images and boxes concerned are not in ``images``, but for
            boxes that were clipped.
        category_ids: The data set's own id of each class index, for results in its terms.
        source: The file or folder that was read.
    """

    names: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    faults: tuple[Fault, ...]
    category_ids: tuple[int, ...]
    source: Path
