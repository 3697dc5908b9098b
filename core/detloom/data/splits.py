"""From a path to annotations: which format reads it, what is held out, and which part is learned from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detloom.building import build
from detloom.data.faults import check_pictures, listed_faults
from detloom.data.records import Annotations, ImageRecord
from detloom.data.settings import DataSettings, part_complaint
from detloom.errors import DataError
from detloom.interfaces import Dataset
from detloom.kinds import Kind
from detloom.recipe import USE
from detloom.workshop import Workshop, workshop

__all__ = ["hold_out", "open_dataset", "open_split", "open_splits", "take_part"]

ARTIFACT = ".safetensors"
NEAREST_PARENTS = 3
"""Folders above a path among which its data set is looked for, for a message."""


def open_split(
    path: str | Path,
    split: str,
    table: Mapping[str, Any] | None = None,
    *,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shop: Workshop | None = None,
) -> Annotations:
    """Read a split of a data set and check that its pictures are there.

    Args:
        path: The data set's folder or file.
        split: Name of the split.
        table: A recipe's ``[dataset]``; without ``use``, the one format that recognises the path reads it.
        decode: Decode every picture in full; else look at the headers.
        progress: Called with the pictures looked at so far, and all of them.
        shop: Where formats are looked up; the environment's workshop when not given.

    Raises:
        DataError: There is nothing that a format recognises, or it has no such split.
        RecipeError: The table names no format, or its settings are wrong.
    """
    return check_pictures(open_dataset(path, table, shop=shop).read(split), decode=decode, progress=progress)


def open_splits(
    path: str | Path,
    data: DataSettings,
    table: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shop: Workshop | None = None,
) -> tuple[Annotations, Annotations]:
    """Return what to learn from and what to measure on, as the settings say.

    Raises:
        DataError: The path cannot be read, the splits have different classes, or there is no such part.
        RecipeError: The table names no format, or its settings are wrong.
    """
    train = open_split(path, data.train, table, decode=decode, progress=progress, shop=shop)
    if data.holdout:
        train, val = hold_out(train, data.holdout, seed)
        return take_part(train, data), val
    try:
        val = open_split(path, data.val, table, decode=decode, progress=progress, shop=shop)
    except DataError as error:
        raise DataError(
            f"{error}\n  Without a split to measure on, keep a part of '{data.train}' for it: "
            f"--set data.holdout=0.2, or holdout = 0.2 in [data].{_also(train)}"
        ) from error
    if train.names != val.names:
        only = sorted(set(train.names) ^ set(val.names))
        raise DataError(
            f"{path}: the splits '{data.train}' and '{data.val}' must have the same classes in the same order; "
            + (f"only one of them has {', '.join(only)}" if only else "the order differs")
            + f". Correct the list of classes in one of them.{_also(train, val)}"
        )
    return take_part(train, data), val


def hold_out(annotations: Annotations, fraction: float, seed: int) -> tuple[Annotations, Annotations]:
    """Divide a split in two: what is left to learn from, and a random part of it to measure on.

    Raises:
        DataError: One of the two would be empty.
    """
    images = annotations.images
    count = round(len(images) * fraction)
    if not 0 < count < len(images):
        raise DataError(
            f"{annotations.source}: a holdout of {fraction:g} takes {count} of {len(images)} pictures; "
            "both parts need at least one. Change holdout in [data]."
        )
    held = set(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    kept = tuple(record for index, record in enumerate(images) if index not in held)
    # Faults are counted once, with the part that is learned from.
    return replace(annotations, images=kept), replace(annotations, images=_chosen(images, held), faults=())


def take_part(annotations: Annotations, data: DataSettings) -> Annotations:
    """Return the part of a split that the settings name, in the split's order; all faults stay with it.

    The order depends on ``part_seed`` alone: parts of equal fraction and seed have no picture in common, and a smaller
    fraction's first part lies within a larger one's.

    Raises:
        DataError: There is no such part, or it has no picture.
    """
    if complaint := part_complaint(data):
        raise DataError(f"{annotations.source}: {complaint} in [data]")
    images = annotations.images
    if data.fraction == 1:
        return annotations
    start, end = (round(len(images) * min(data.fraction * part, 1)) for part in (data.part, data.part + 1))
    if start == end:
        raise DataError(
            f"{annotations.source}: part {data.part} of {data.fraction:g} of {len(images)} pictures has none; "
            "raise fraction in [data]"
        )
    chosen = np.random.default_rng(data.part_seed).permutation(len(images))[start:end]
    return replace(annotations, images=_chosen(images, set(chosen.tolist())))


def open_dataset(path: str | Path, table: Mapping[str, Any] | None = None, *, shop: Workshop | None = None) -> Dataset:
    """Return the reader of a path.

    Raises:
        DataError: The path does not exist, or none or several formats recognise it.
        RecipeError: The table names no format, or its settings are wrong.
    """
    if not isinstance(path, str | Path):
        raise DataError(f"data: {path!r} is no path; give the folder or file of a data set, as text or a Path.")
    path, shop = Path(path), shop or workshop()
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder. Give the folder or file of a data set.")
    settings = dict(table or {})
    if USE not in settings:
        settings[USE] = _recognised(path, shop)
    dataset: Dataset = build(Kind.DATASET, settings, path, shop=shop)
    return dataset


def _also(*parts: Annotations) -> str:
    """Return the faults of splits that were read before another mistake, on lines of their own."""
    faults = [fault for part in parts for fault in part.faults]
    sources = ", ".join(dict.fromkeys(str(part.source) for part in parts if part.faults))
    return f"\n{sources}: {listed_faults(faults)}" if faults else ""


def _recognised(path: Path, shop: Workshop) -> str:
    found = _formats_of(path, shop)
    if len(found) == 1:
        return found[0]
    remedy = f"Say which: use = NAME in [dataset], one of {', '.join(shop.names(Kind.DATASET))}."
    if found:
        raise DataError(f"{path}: looks like {' and like '.join(found)}. {remedy}")
    if path.suffix == ARTIFACT:
        raise DataError(f"{path}: this is an artifact, which holds no pictures. Give the folder or file of a data set.")
    for parent in path.absolute().parents[:NEAREST_PARENTS]:
        if _formats_of(parent, shop):
            where = next((each for each in path.parents if each.absolute() == parent), parent)
            raise DataError(f"{path}: this is a part of a data set, not the whole. Did you mean {where}?")
    content = ", ".join(sorted(each.name for each in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise DataError(f"{path}: no dataset format recognises this ({content or 'an empty folder'}). {remedy}")


def _formats_of(path: Path, shop: Workshop) -> list[str]:
    return [name for name in shop.names(Kind.DATASET) if shop.component(Kind.DATASET, name).recognises(path)]


def _chosen(images: Sequence[ImageRecord], indices: set[int]) -> tuple[ImageRecord, ...]:
    return tuple(record for index, record in enumerate(images) if index in indices)
