"""Pictures at network scale, kept in memory where they fit.

The cache is one anonymous block of memory that worker processes inherit and fill together, so that
each picture is decoded once, by whoever needs it first.
"""

import mmap
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from detloom.data.letterbox import Letterbox, scaled
from detloom.data.reading import Picture, read_picture
from detloom.data.records import ImageRecord

__all__ = ["PictureStore", "free_memory"]

CACHE_SHARE = 0.25


class PictureStore:
    """Pictures of records, each scaled so that it just fits the canvas.

    Args:
        images: The records; their annotated sizes are what the pictures must have.
        canvas: Height and width in pixels.
        cache: ``ram`` keeps every picture once read, ``off`` none; ``auto`` keeps them if all fit in a
            quarter of the memory that is free now.
    """

    def __init__(
        self,
        images: Sequence[ImageRecord],
        canvas: tuple[int, int],
        cache: Literal["auto", "ram", "off"] = "auto",
    ) -> None:
        self.images = images
        self.canvas = canvas
        self.sizes = [Letterbox.fit((record.height, record.width), canvas).resized for record in images]
        lengths = np.array([height * width * 3 for height, width in self.sizes], np.int64)
        self.num_bytes = int(lengths.sum())
        # Memory is shared with workers by inheritance, which needs a fork.
        can_share = "fork" in multiprocessing.get_all_start_methods()
        fits = self.num_bytes <= CACHE_SHARE * free_memory()
        self.is_cached = cache == "ram" or (cache == "auto" and fits and can_share)
        if self.is_cached:
            self._starts = np.concatenate(([0], lengths.cumsum()))
            self._pixels = np.frombuffer(mmap.mmap(-1, max(self.num_bytes, 1)), np.uint8)
            self._is_filled = np.frombuffer(mmap.mmap(-1, max(len(images), 1)), np.uint8)

    def load(self, index: int) -> Picture:
        """Return a picture at network scale; not to be written to."""
        if not self.is_cached:
            return self._read(index)
        slot = self._pixels[self._starts[index] : self._starts[index + 1]].reshape(*self.sizes[index], 3)
        if not self._is_filled[index]:
            slot[:] = self._read(index)
            self._is_filled[index] = 1
        return slot

    def _read(self, index: int) -> Picture:
        record = self.images[index]
        size = self.sizes[index]
        return scaled(read_picture(record.path, size=(record.height, record.width), reduce_to=max(size)), size)


def free_memory() -> int:
    """Return the bytes that may be taken now: of the machine, and of the container where one limits it."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return max(available, 0)
