"""Reading pictures of every common kind as RGB.

A picture is ``uint8 [H, W, 3]``. The EXIF orientation is applied, unless the annotations say that
they describe the picture as it is stored.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from detloom.errors import DataError, reason

__all__ = ["SUFFIXES", "Picture", "picture_size", "read_picture", "stored_and_seen_size"]

Picture = NDArray[np.uint8]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# The last four of the eight orientations lie on their side.
FIRST_SIDEWAYS = 5

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
NATIVE_STARTS = (JPEG_START, PNG_START, b"II*\x00", b"MM\x00*")

REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


def picture_size(path: Path) -> tuple[int, int]:
    """Return height and width of a picture as it is to be seen, from its header alone.

    Raises:
        DataError: The file is missing or is no picture.
    """
    return stored_and_seen_size(path)[1]


def stored_and_seen_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return height and width of a picture as it is stored, and as it is to be seen.

    Raises:
        DataError: The file is missing or is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({_reason(error)})", ADVICE) from error
    return (height, width), (width, height) if _is_sideways(orientation) else (height, width)


def read_picture(path: Path, *, size: tuple[int, int] | None = None, reduce_to: int = 0) -> Picture:
    """Read a picture as RGB, ``uint8 [H, W, 3]``.

    Sixteen bits become the upper eight, transparency is dropped, palettes and CMYK are converted.

    Args:
        path: The file.
        size: Height and width that the annotations state. Where the stored picture has them and the
            turned one has not, the annotations describe the stored one, and it is not turned.
        reduce_to: A JPEG whose longer side is at least twice this may be decoded at a half, a quarter
            or an eighth of its size, which is several times faster; 0 never does.

    Raises:
        DataError: The file is missing, broken, truncated, or of another size.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)})", ADVICE) from error
    flags = cv2.IMREAD_COLOR_RGB
    if reduce_to and size is not None and content.startswith(JPEG_START):
        flags |= next((flag for factor, flag in REDUCED if max(size) >= factor * reduce_to), 0)
    picture = _decode(path, content, flags)
    if size is None:
        return picture
    factor = next((factor for factor, flag in REDUCED if flags & flag), 1)
    expected = (-(-size[0] // factor), -(-size[1] // factor))
    if picture.shape[:2] != expected and picture.shape[1::-1] == expected:
        picture = _decode(path, content, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture.shape[:2] != expected:
        height, width = picture.shape[0] * factor, picture.shape[1] * factor
        raise DataError(
            f"{path}: is {width} x {height} pixels, but is annotated as {size[1]} x {size[0]}",
            "Correct the annotation, or leave the picture out with skip_bad.",
        )
    return picture


ADVICE = "Restore the file, or leave it out with skip_bad."


def _decode(path: Path, content: bytes, flags: int) -> Picture:
    if not content.startswith(NATIVE_STARTS):
        return _decode_otherwise(path, content, flags)
    # OpenCV fills what is missing of a truncated file with grey and says nothing.
    if content.startswith(JPEG_START) and not content.rstrip(b"\x00").endswith(JPEG_END):
        _demand_whole(path, content)
    if content.startswith(PNG_START) and PNG_END not in content[-64:]:
        _demand_whole(path, content)
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({_reason(error)})", ADVICE) from error
    if picture is None:
        raise DataError(f"{path}: cannot be decoded; it is broken or truncated", ADVICE)
    return np.asarray(picture, np.uint8)


def _decode_otherwise(path: Path, content: bytes, flags: int) -> Picture:
    try:
        with Image.open(io.BytesIO(content)) as image:
            turned = image if flags & cv2.IMREAD_IGNORE_ORIENTATION else _turned(image)
            return np.asarray(turned.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({_reason(error)})", ADVICE) from error


def _demand_whole(path: Path, content: bytes) -> None:
    """Refuse a truncated file, accept one with something after its end."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is truncated or broken ({_reason(error)})", ADVICE) from error


def _turned(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _is_sideways(orientation: object) -> bool:
    return isinstance(orientation, int) and FIRST_SIDEWAYS <= orientation <= FIRST_SIDEWAYS + 3


def _reason(error: Exception) -> str:
    # pillow names the object that it was given.
    return "its content is of no known format" if isinstance(error, UnidentifiedImageError) else reason(error)
