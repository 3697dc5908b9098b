"""What a detector is shown: files, folders, patterns, videos and arrays, in the order given.

A picture is RGB, ``uint8 [H, W, 3]``.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import cv2
import numpy as np
from PIL import Image
from PIL.ImageOps import exif_transpose
from torch import Tensor

from detloom.data.reading import SUFFIXES, Picture, read_picture
from detloom.errors import DataError

__all__ = ["VIDEO_SUFFIXES", "Frame", "Source", "open_sources", "windows"]

Source: TypeAlias = str | Path | Picture | Image.Image
Item = TypeVar("Item")

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

# Decoding releases Python's lock.
READERS = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture and where it came from: a path, a path and frame number, or nothing.

    A picture that could not be read has its error instead.
    """

    picture: Picture | DataError
    source: str | None


def open_sources(sources: Source | Sequence[Source]) -> Iterator[Frame]:
    """Yield every picture in order; files are looked for now, and read as the frames are taken.

    Args:
        sources: A picture or video file, a folder of pictures, a pattern with ``*``, an RGB array
            ``uint8 [H, W, 3]``, a pillow image, or several of them.

    Raises:
        DataError: Something named is not there, or is nothing of these.
    """
    given = [sources] if isinstance(sources, str | Path | np.ndarray | Image.Image) else sources
    # A tensor is a sequence of its rows, and bytes one of numbers: neither is several sources.
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray | Tensor):
        raise DataError(_unaccepted(given))
    items: list[Path | Picture] = []
    complaints = []
    for source in given:
        try:
            items += _expanded(source)
        except DataError as error:
            complaints.append(str(error))
    if complaints:
        # A list of a thousand tensors needs to be told but once.
        raise DataError("\n".join(dict.fromkeys(complaints)))
    if not items:
        raise DataError("predict: no sources are given; name files, folders, patterns, or give arrays")
    return _frames(items)


def windows(frames: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of a size; the last may be shorter."""
    iterator = iter(frames)
    while window := list(islice(iterator, size)):
        yield window


def _expanded(source: object) -> list[Path | Picture]:
    if isinstance(source, np.ndarray):
        return [_checked_array(source)]
    if isinstance(source, Image.Image):
        return [np.asarray(exif_transpose(source).convert("RGB"), np.uint8)]
    if not isinstance(source, str | Path):
        raise DataError(_unaccepted(source))
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{path}: there is no picture in this folder; read are {', '.join(sorted(SUFFIXES))}")
        return list(found)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES | VIDEO_SUFFIXES:
            raise DataError(
                f"{path}: '{path.suffix}' is no kind of picture or video that is read; pictures are "
                f"{', '.join(sorted(SUFFIXES))}, videos {', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        return [path]
    matches = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = [each for each in matches if each.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES]
    if not found:
        raise DataError(
            f"{path}: there is no such file, folder, or picture that fits the pattern. Look for a mistake in the path."
        )
    return list(found)


def _unaccepted(source: object) -> str:
    text = (
        f"predict: a source is of type {type(source).__name__}; accepted are paths, RGB arrays uint8 [H, W, 3], "
        "pillow images, and lists of them"
    )
    if isinstance(source, Tensor):
        text += (
            "\n  A tensor [3, H, W] of values from 0 to 1 becomes one by "
            "(tensor * 255).round().byte().permute(1, 2, 0).cpu().numpy(); a batch, picture by picture."
        )
    return text


def _checked_array(array: object) -> Picture:
    picture = np.asarray(array)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise DataError(
            f"predict: an array is {picture.dtype} {list(picture.shape)}; it must be RGB, uint8 [height, width, 3]. "
            "OpenCV reads BGR: turn it around with array[..., ::-1]."
        )
    return picture


def _frames(items: Sequence[Path | Picture]) -> Iterator[Frame]:
    with ThreadPoolExecutor(READERS) as readers:
        for window in windows(items, 4 * READERS):
            pending = [None if _is_video(item) else readers.submit(_read, item) for item in window]
            for item, frame in zip(window, pending, strict=True):
                if frame is not None:
                    yield frame.result()
                elif isinstance(item, Path):
                    yield from _video(item)


def _read(item: Path | Picture) -> Frame:
    if not isinstance(item, Path):
        return Frame(item, None)
    try:
        return Frame(read_picture(item), str(item))
    except DataError as error:
        return Frame(error, str(item))


def _is_video(item: Path | Picture) -> bool:
    return isinstance(item, Path) and item.suffix.lower() in VIDEO_SUFFIXES


def _video(path: Path) -> Iterator[Frame]:
    """Yield the frames of a video one by one, numbered from 0."""
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while True:
            is_read, frame = video.read()
            if not is_read:
                break
            yield Frame(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8), f"{path}#{number}")
            number += 1
        if number == 0:
            yield Frame(
                DataError(f"{path}: no frame of this video can be decoded", "Convert it to MP4 (H.264)."), str(path)
            )
    finally:
        video.release()
