"""Batches for training and evaluation.

What a batch holds depends on the seed, the epoch and its position alone, never on the number of
workers or processes: a run that resumes repeats it exactly, and N processes see the batches of one.

Shape letters: B images, H and W rows and columns.
"""

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detloom.data.augment import Augmenter
from detloom.data.letterbox import FILL, Letterbox
from detloom.data.reading import read_picture
from detloom.data.records import Annotations, ImageRecord
from detloom.data.settings import AugmentSettings, size_complaint
from detloom.data.store import PictureStore
from detloom.errors import DataError, DetloomError
from detloom.structures import Targets

__all__ = ["Batch", "Loader", "num_workers"]

# Separate streams of random numbers for one seed.
ORDER, SIZE, SAMPLE = 1, 2, 3

MOST_AUTOMATIC_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and objects.

    Attributes:
        images_BCHW: RGB from 0 to 255, uint8, channels last in memory.
        targets: The objects; crowds are left out.
        indices: Position of each picture among the annotations; of a mosaic, of its first.
        letterboxes: In evaluation, where each picture lies; empty in training.
    """

    images_BCHW: Tensor
    targets: Targets
    indices: tuple[int, ...]
    letterboxes: tuple[Letterbox, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on another device."""
        return replace(
            self,
            images_BCHW=self.images_BCHW.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a device can copy from while it computes."""
        targets = replace(
            self.targets,
            boxes_T4=self.targets.boxes_T4.pin_memory(),
            labels_T=self.targets.labels_T.pin_memory(),
            image_T=self.targets.image_T.pin_memory(),
        )
        return replace(self, images_BCHW=self.images_BCHW.pin_memory(), targets=targets)


def num_workers(workers: int | Literal["auto"], device: torch.device | str, world: int = 1) -> int:
    """Return how many processes each of ``world`` training processes should have for its batches.

    Where the network itself runs on the processor it uses every core, and others would slow its
    threads down far more than they help: they wait for one another at each operation.
    """
    if workers != "auto":
        return workers
    if torch.device(device).type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_AUTOMATIC_WORKERS, (cores - 1) // world)


class Loader:
    """Batches of a split, epoch by epoch.

    Args:
        annotations: What to read; every picture has a size.
        image_size: Height and width of the network's input, or the side of a square.
        batch_size: Pictures of a batch, over all processes together.
        augment: How training samples vary; None gives letterboxed pictures in a fixed order.
        stride: The largest stride of the network; sizes are multiples of it.
        seed: Of everything random.
        epochs: Length of the run, from which the last epochs without mosaic are counted.
        workers: Processes that prepare batches; 0 prepares them in this one.
        cache: See ``PictureStore``; evaluation reads each picture once an epoch and keeps none.
        rectangular: In evaluation, batch pictures by shape and cut the canvas to them.
        rank: Which of the processes this is.
        world: Number of processes; each takes its share of every batch.
        pin_memory: Put batches where a device can copy from while it computes.

    Raises:
        DataError: There are no pictures, or the batch cannot be shared among the processes.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        image_size: int | tuple[int, int],
        batch_size: int,
        augment: AugmentSettings | None = None,
        stride: int = 32,
        seed: int = 0,
        epochs: int | None = None,
        workers: int = 0,
        cache: Literal["auto", "ram", "off"] = "auto",
        rectangular: bool = False,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        canvas = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        _check(annotations, canvas, batch_size, stride, world, is_training=augment is not None)
        self.annotations = annotations
        self.batch_size = batch_size
        self.augment = augment
        self._plan = _Plan()
        images = annotations.images
        if augment is None:
            groups = _evaluation_groups(images, batch_size, is_sorted=rectangular)
            groups = [share for group in groups if (share := group[rank::world])]
            self._batches: _TrainingBatches | _EvaluationBatches = _EvaluationBatches(
                images, canvas, groups, stride=stride if rectangular else None
            )
        else:
            self._batches = _TrainingBatches(
                PictureStore(images, canvas, cache),
                augment,
                batch_size=batch_size,
                stride=stride,
                seed=seed,
                epochs=epochs,
                share=slice(rank * batch_size // world, (rank + 1) * batch_size // world),
            )
        can_fork = "fork" in multiprocessing.get_all_start_methods()
        self._loader: DataLoader[Batch | DetloomError] = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            # Else it draws from the global generator, whose state a resumed run must find unchanged.
            generator=torch.Generator(),
            # Workers inherit the cache.
            multiprocessing_context="fork" if workers and can_fork else None,
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self._batches)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from one of them on.

        Raises:
            DataError: A picture cannot be read.
        """
        self._plan.batches = [(epoch, position) for position in range(start_batch, len(self))]
        for batch in self._loader:
            if isinstance(batch, DetloomError):
                raise batch
            yield batch


class _Plan(Sampler[tuple[int, int]]):
    """Which batches come next: epoch and position of each."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _TrainingBatches(Dataset[Batch | DetloomError]):
    """Makes any batch of any epoch."""

    def __init__(
        self,
        store: PictureStore,
        augment: AugmentSettings,
        *,
        batch_size: int,
        stride: int,
        seed: int,
        epochs: int | None,
        share: slice,
    ) -> None:
        self.augmenter = Augmenter(store, augment)
        self.settings = augment
        self.canvas = store.canvas
        self.num_images = len(store.images)
        self.batch_size = batch_size
        self.stride = stride
        self.seed = seed
        self.epochs = epochs
        self.share = share
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def __getitem__(self, key: tuple[int, int]) -> Batch | DetloomError:
        # An error raised in a worker would arrive wrapped in the worker's traceback.
        try:
            return self.batch(*key)
        except DetloomError as error:
            return error

    def batch(self, epoch: int, position: int) -> Batch:
        """Return this process's share of a batch."""
        size = self.size_of(epoch, position)
        first = position * self.batch_size
        places = range(first, first + self.batch_size)[self.share]
        order = self.order_of(epoch)
        compose = self.epochs is None or epoch < self.epochs - self.settings.mosaic_off_epochs
        # NumPy asks for large pages, which torch does not: touching new memory is what costs here.
        canvas_BHWC = np.empty((len(places), *size, 3), np.uint8)
        boxes, labels = [], []
        for slot, place in enumerate(places):
            generator = np.random.default_rng((self.seed, SAMPLE, epoch, place))
            sample = self.augmenter.sample(order[place], size, generator, compose=compose, out=canvas_BHWC[slot])
            boxes.append(torch.from_numpy(sample.boxes_N4))
            labels.append(torch.from_numpy(sample.labels_N))
        targets = Targets.from_lists(boxes, labels, size)
        images_BCHW = torch.from_numpy(canvas_BHWC).permute(0, 3, 1, 2)
        return Batch(images_BCHW, targets, tuple(order[place] for place in places))

    def order_of(self, epoch: int) -> list[int]:
        """Return the shuffled pictures, those that come first once more where the last batch is not full."""
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, ORDER, epoch)).permutation(self.num_images)
            # All batches have one size, as those of several processes must, and no picture is left out.
            self._order = (epoch, np.resize(order, len(self) * self.batch_size).tolist())
        return self._order[1]

    def size_of(self, epoch: int, position: int) -> tuple[int, int]:
        """Return the size of a batch, the same in every process."""
        spread = self.settings.multi_scale
        if not spread:
            return self.canvas
        ratio = np.random.default_rng((self.seed, SIZE, epoch, position)).uniform(1 - spread, 1 + spread)
        height, width = (max(round(side * ratio / self.stride), 1) * self.stride for side in self.canvas)
        return height, width


class _EvaluationBatches(Dataset[Batch | DetloomError]):
    """Makes letterboxed batches."""

    def __init__(
        self,
        images: Sequence[ImageRecord],
        canvas: tuple[int, int],
        groups: list[list[int]],
        *,
        stride: int | None,
    ) -> None:
        self.images = images
        self.canvas = canvas
        self.groups = groups
        self.stride = stride

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> Batch | DetloomError:
        try:
            return self.batch(self.groups[key[1]])
        except DetloomError as error:
            return error

    def batch(self, indices: list[int]) -> Batch:
        """Return pictures in the middle of the smallest canvas allowed."""
        records = [self.images[index] for index in indices]
        size = self.size_of(records)
        letterboxes = tuple(Letterbox.fit((record.height, record.width), size) for record in records)
        images_BHWC = torch.full((len(records), *size, 3), FILL, dtype=torch.uint8)
        canvas_BHWC = images_BHWC.numpy()
        boxes, labels = [], []
        for slot, (record, letterbox) in enumerate(zip(records, letterboxes, strict=True)):
            picture = read_picture(record.path, size=(record.height, record.width))
            letterbox.paint_(canvas_BHWC[slot], picture)
            is_learned_N = ~record.is_crowd_N
            boxes.append(letterbox.boxes_to_canvas(torch.from_numpy(record.boxes_N4[is_learned_N])))
            labels.append(torch.from_numpy(record.labels_N[is_learned_N]))
        targets = Targets.from_lists(boxes, labels, size)
        return Batch(images_BHWC.permute(0, 3, 1, 2), targets, tuple(indices), letterboxes)

    def size_of(self, records: Sequence[ImageRecord]) -> tuple[int, int]:
        """Return the canvas; with a stride, the smallest that holds these pictures at full scale."""
        if self.stride is None:
            return self.canvas
        stride = self.stride
        resized_B2 = np.array([Letterbox.fit((each.height, each.width), self.canvas).resized for each in records])
        height, width = (-(-resized_B2.max(0) // stride) * stride).tolist()
        return height, width


def _evaluation_groups(images: Sequence[ImageRecord], batch_size: int, *, is_sorted: bool) -> list[list[int]]:
    order = list(range(len(images)))
    if is_sorted:
        order.sort(key=lambda index: images[index].height / images[index].width)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _start_worker(worker: int) -> None:  # noqa: ARG001 - what DataLoader calls
    # One core each: the workers are the parallelism.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _check(
    annotations: Annotations,
    canvas: tuple[int, int],
    batch_size: int,
    stride: int,
    world: int,
    *,
    is_training: bool,
) -> None:
    if not annotations.images:
        raise DataError(f"{annotations.source}: there are no pictures to use. `detloom check` lists what is wrong.")
    if complaint := size_complaint(canvas, stride):
        raise DataError(f"[data] {complaint}")
    if batch_size < 1 or (is_training and batch_size % world):
        raise DataError(
            f"[train] batch: {batch_size} pictures cannot be shared evenly among {world} processes; "
            f"take a multiple of {world}."
        )
