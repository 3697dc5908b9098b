"""Reading pictures of every kind."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from detloom.data.reading import picture_size, read_picture
from detloom.errors import DataError


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    x = np.linspace(0, 255, width)[None, :, None]
    y = np.linspace(0, 255, height)[:, None, None]
    return np.broadcast_to(np.concatenate((x + 0 * y, y + 0 * x, 255 - x + 0 * y), -1), (height, width, 3)).astype(
        np.uint8
    )


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_every_format_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, Image.fromarray(gradient()), f"a.{suffix}")

    picture = read_picture(path)

    assert picture.dtype == np.uint8
    assert picture.shape == (48, 64, 3)
    assert np.abs(picture.astype(int) - gradient()).mean() < 12


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_mode_of_png_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    path = saved(tmp_path, image, "a.png")

    picture = read_picture(path)

    expected = np.asarray(image.convert("RGB"))
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    flat = np.zeros((32, 32, 3), np.uint8)
    flat[:] = (200, 40, 90)
    path = saved(tmp_path, Image.fromarray(flat).convert("CMYK"), "a.jpg", quality=95)

    picture = read_picture(path)

    assert np.abs(picture.mean((0, 1)) - (200, 40, 90)).max() < 6


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    deep = (np.arange(32 * 32, dtype=np.uint16) * 64).reshape(32, 32)
    path = saved(tmp_path, Image.fromarray(deep), "a.png")

    picture = read_picture(path)

    assert np.abs(picture[..., 0].astype(int) - (deep >> 8)).max() <= 1


def with_orientation(folder: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(folder, Image.fromarray(gradient()), f"{orientation}.jpg", exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_header_says(tmp_path: Path, orientation: int) -> None:
    path = with_orientation(tmp_path, orientation)
    turned = ImageOps.exif_transpose(Image.open(path))

    picture = read_picture(path)

    assert np.abs(picture.astype(int) - np.asarray(turned)).max() <= 8
    assert picture.shape[:2] == ((64, 48) if orientation >= 5 else (48, 64))
    assert picture_size(path) == picture.shape[:2]


def test_annotations_of_the_stored_picture_keep_it_unturned(tmp_path: Path) -> None:
    path = with_orientation(tmp_path, 6)

    picture = read_picture(path, size=(48, 64))

    assert picture.shape == (48, 64, 3)
    assert np.abs(picture.astype(int) - gradient()).mean() < 4


def test_a_picture_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(gradient()), "a.png")

    with pytest.raises(DataError, match=r"a\.png: is 64 x 48 pixels, but is annotated as 65 x 48"):
        read_picture(path, size=(48, 65))


@pytest.mark.parametrize(("height", "width", "expected"), [(640, 480, 2), (1601, 1203, 4), (2600, 2000, 8)])
def test_large_jpegs_may_be_decoded_smaller(tmp_path: Path, height: int, width: int, expected: int) -> None:
    path = saved(tmp_path, Image.fromarray(gradient(height, width)), "a.jpg")

    picture = read_picture(path, size=(height, width), reduce_to=320)

    assert picture.shape[:2] == (-(-height // expected), -(-width // expected))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(DataError, match=rf"a\.{suffix}"):
        read_picture(path)


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(gradient()), "a.jpg")
    path.write_bytes(path.read_bytes() + b"camera maker's notes")

    assert read_picture(path).shape == (48, 64, 3)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff\xd9", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"IEND\xaeB`\x82"]
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"a\.jpg"):
        read_picture(path)
    with pytest.raises(DataError, match=r"a\.jpg"):
        picture_size(path)


def test_a_file_of_another_kind_is_told_without_the_object_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a. b.jpg"
    path.write_bytes(b"no picture")

    for read in (read_picture, picture_size):
        with pytest.raises(DataError, match=r"\(its content is of no known format\)\. Restore the file") as caught:
            read(path)
        assert "<" not in str(caught.value)
        assert caught.value.what.endswith("known format)")
        assert str(copy.copy(caught.value)) == str(caught.value), "as workers send it"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read \(no such file"):
        read_picture(tmp_path / "gone.jpg")
