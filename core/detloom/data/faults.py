"""What can be wrong with annotations and pictures; the same rules for every format.

Shape letter: N boxes of one image.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from detloom.data.reading import read_picture, stored_and_seen_size
from detloom.data.records import Annotations, Fault, ImageRecord
from detloom.errors import DataError

__all__ = [
    "RecordBuilder",
    "as_number",
    "check_pictures",
    "counted_faults",
    "faults_of",
    "listed_faults",
    "refuse_faults",
]

TOLERANCE = 1.0
"""Pixels by which a box may reach beyond its picture and be clipped without a word."""

NUM_SHOWN = 20


def as_number(value: object) -> float:
    """Return a number read from a file; NaN for anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


@dataclass(slots=True)
class RecordBuilder:
    """Collects the boxes of one picture and refuses the wrong ones.

    Attributes:
        path: The picture.
        image_id: The data set's own id, or the position where it has none.
        height: Pixels, as annotated.
        width: Pixels, as annotated.
        file: The file that holds the annotations, for faults.
        faults: Where faults are added.
    """

    path: Path
    image_id: int
    height: int
    width: int
    file: str
    faults: list[Fault]
    _boxes: list[tuple[float, ...]] = field(default_factory=list, init=False)
    _rows: list[tuple[int, bool, float, int]] = field(default_factory=list, init=False)
    _seen: set[tuple[float, ...]] = field(default_factory=set, init=False)

    def add(
        self,
        box: Sequence[float],
        label: int,
        where: str,
        *,
        is_crowd: bool = False,
        area: float | None = None,
        annotation_id: int | None = None,
    ) -> None:
        """Add a box, or a fault that says why it cannot be used.

        A box that reaches beyond the picture is clipped; by more than a pixel, that is a fault, too.

        Args:
            box: xyxy in pixels of the picture.
            label: Class index.
            where: What a fault calls this box: its annotation id, line or object.
            is_crowd: Whether it stands for a crowd.
            area: The mask's area; the box's where it is None.
            annotation_id: The data set's own id; the position, from 1, where it is None.
        """
        x0, y0, x1, y1 = (float(value) for value in box)
        shown = f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}] (xyxy)"
        if not all(math.isfinite(value) for value in (x0, y0, x1, y1)):
            self._refuse(where, f"the box has a coordinate that is no finite number: {shown}")
            return
        if x1 <= x0 or y1 <= y0:
            self._refuse(where, f"the box has no area: {shown}")
            return
        # float32 is what is kept: a box must have an area there, too.
        limits = (self.width, self.height) * 2
        inside = [min(max(value, 0.0), limit) for value, limit in zip((x0, y0, x1, y1), limits, strict=True)]
        clipped = tuple(np.array(inside, np.float32).tolist())
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            what = f"the box lies outside the picture of {self.width} x {self.height}: {shown}"
            self.faults.append(Fault(self.file, where, what, of_size=self.path))
            return
        beyond = max(clipped[0] - x0, clipped[1] - y0, x1 - clipped[2], y1 - clipped[3])
        if beyond > TOLERANCE:
            what = (
                f"the box reaches {beyond:g} pixels beyond the picture of {self.width} x {self.height}: {shown}; "
                "it is clipped"
            )
            self.faults.append(Fault(self.file, where, what, is_left_out=False, of_size=self.path))
        row = (label, is_crowd, *clipped)
        if row in self._seen:
            self._refuse(where, f"the same box of the same class stands there already: {shown}")
            return
        self._seen.add(row)
        own_area = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        is_area = area is not None and math.isfinite(area) and area >= 0
        self._boxes.append(clipped)
        self._rows.append(
            (
                label,
                is_crowd,
                area if is_area and area is not None else own_area,
                len(self._rows) + 1 if annotation_id is None else annotation_id,
            )
        )

    def build(self) -> ImageRecord:
        """Return the picture and its sound boxes."""
        return ImageRecord(
            path=self.path,
            image_id=self.image_id,
            height=self.height,
            width=self.width,
            boxes_N4=np.array(self._boxes, np.float32).reshape(-1, 4),
            labels_N=np.array([row[0] for row in self._rows], np.int64),
            is_crowd_N=np.array([row[1] for row in self._rows], np.bool_),
            area_N=np.array([row[2] for row in self._rows], np.float32),
            annotation_ids_N=np.array([row[3] for row in self._rows], np.int64),
        )

    def _refuse(self, where: str, what: str) -> None:
        self.faults.append(Fault(self.file, where, what))


def check_pictures(
    annotations: Annotations,
    *,
    decode: bool,
    threads: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Annotations:
    """Return the annotations without the pictures that are missing, broken or of another size.

    Each of these becomes a fault. Sizes that the format does not state are filled in.

    Args:
        annotations: What a reader returned.
        decode: Decode every picture in full, which finds truncated files too; else read the headers.
        threads: How many pictures are looked at at a time.
        progress: Called with the pictures looked at so far, and all of them.
    """
    with ThreadPoolExecutor(threads) as pool:
        results = []
        for result in pool.map(lambda record: _checked(record, decode=decode), annotations.images):
            results.append(result)
            if progress is not None:
                progress(len(results), len(annotations.images))
    found = [each for each in results if isinstance(each, Fault)]
    # Boxes beyond a size that is wrong itself say nothing more.
    missized = {fault.of_size for fault in found} - {None}
    return replace(
        annotations,
        images=tuple(each for each in results if isinstance(each, ImageRecord)),
        faults=(*(fault for fault in annotations.faults if fault.of_size not in missized), *found),
    )


def refuse_faults(parts: Iterable[Annotations], *, skip_bad: bool) -> int:
    """Return how many pictures and boxes of several splits are left out; without ``skip_bad`` there may be none.

    Boxes that were clipped are used, and refused by no one.

    Raises:
        DataError: Some would be left out; lists the first of them and says what to do.
    """
    parts = list(parts)
    faults = [fault for fault in faults_of(parts) if fault.is_left_out]
    if not faults or skip_bad:
        return len(faults)
    sources = ", ".join(
        dict.fromkeys(str(part.source) for part in parts if any(fault.is_left_out for fault in part.faults))
    )
    raise DataError(
        f"{sources}: {listed_faults(faults)}\n"
        "  Mend them, or go on without the pictures and boxes concerned: --skip-bad, or skip_bad = true in [data]."
    )


def faults_of(parts: Iterable[Annotations]) -> tuple[Fault, ...]:
    """Return the faults of several splits; of pictures that two of them have, once."""
    found: list[Fault] = []
    seen: set[Fault] = set()
    for part in parts:
        found += [fault for fault in part.faults if fault not in seen]
        seen.update(part.faults)
    return tuple(found)


def listed_faults(faults: Sequence[Fault]) -> str:
    """Return ``"2 faults in the data:"`` and the first of them, one a line."""
    lines = [f"  {_shown(fault)}" for fault in faults[:NUM_SHOWN]]
    if len(faults) > NUM_SHOWN:
        lines.append(f"  ... and {len(faults) - NUM_SHOWN} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join((f"{count} in the data:", *lines))


def counted_faults(faults: Iterable[Fault]) -> str:
    """Return ``"3 pictures or boxes left out, 2 boxes clipped"``, or nothing where there are no faults."""
    are_left_out = [fault.is_left_out for fault in faults]
    left_out, clipped = sum(are_left_out), len(are_left_out) - sum(are_left_out)
    parts = [f"{left_out} {'picture or box' if left_out == 1 else 'pictures or boxes'} left out"] if left_out else []
    parts += [f"{clipped} {'box' if clipped == 1 else 'boxes'} clipped"] if clipped else []
    return ", ".join(parts)


def _shown(fault: Fault) -> str:
    return f"{fault.file}, {fault.where}: {fault.what}" if fault.where else f"{fault.file}: {fault.what}"


def _checked(record: ImageRecord, *, decode: bool) -> ImageRecord | Fault:
    size = (record.height, record.width)
    try:
        stored, seen = stored_and_seen_size(record.path)
        if 0 in size:
            record = replace(record, height=seen[0], width=seen[1])
        elif size not in (stored, seen):
            return Fault(
                str(record.path),
                "",
                f"the picture has {seen[1]} x {seen[0]} pixels, but is annotated as {size[1]} x {size[0]}",
                of_size=record.path,
            )
        if decode:
            read_picture(record.path, size=(record.height, record.width))
    except DataError as error:
        return Fault(str(record.path), "", error.what.removeprefix(f"{record.path}: "))
    return record
