"""The letterbox against the published geometry and golden files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detloom.data.letterbox import FILL, Letterbox
from detloom.data.records import ImageRecord
from detloom.data.store import PictureStore

SIDES = st.integers(1, 3000)


def golden_picture(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng([height, width, 5]).integers(
        0, 256, (max(height // 16, 2), max(width // 16, 2), 3), np.uint8
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_every_golden_picture_is_placed_and_painted_the_same(shared: Callable[[str], Path]) -> None:
    golden = json.loads(shared("golden/post/letterbox-shared.json").read_text())
    # OpenCV, which makes the pictures too, rounds otherwise on other processors. The first row is a picture as it is.
    same_rounding = hashlib.sha256(golden_picture(480, 640).tobytes()).hexdigest() == golden["rows"][0]["sha256"]

    for row in golden["rows"]:
        height, width = row["image_hw"]
        letterbox = Letterbox.fit(
            (height, width),
            row["new_shape"],
            stride=row["stride"] if row["auto"] else None,
            enlarge=row["scaleup"],
        )
        # The published letterbox interpolates where a picture shrinks, too; see docs/decisions/resampling.md.
        resized = cv2.resize(golden_picture(height, width), letterbox.resized[::-1], interpolation=cv2.INTER_LINEAR)
        canvas = letterbox.apply(np.asarray(resized, np.uint8))

        assert list(canvas.shape[:2]) == row["result_hw"]
        assert letterbox.ratio == pytest.approx(row["ratio_wh"][0])
        assert list(letterbox.padding) == row["pad_wh"]
        assert canvas.mean() == pytest.approx(row["mean"], rel=1e-3)
        left, top = (round(side - 0.1) for side in row["pad_wh"])
        wanted = np.full_like(canvas, 114)
        wanted[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
        assert (canvas == wanted).all()
        if same_rounding:
            assert hashlib.sha256(canvas.tobytes()).hexdigest() == row["sha256"]


def test_golden_boxes_come_back_to_the_picture(shared: Callable[[str], Path]) -> None:
    golden = np.load(shared("golden/post/letterbox-shared.npz"))

    for number in range(6):
        height, width = golden[f"scale_original_hw{number}"].tolist()
        letterbox = Letterbox.fit((height, width), 640)
        boxes_N4 = letterbox.boxes_to_picture(torch.from_numpy(golden[f"scale_in{number}"]))

        torch.testing.assert_close(boxes_N4, torch.from_numpy(golden[f"scale_out{number}"]), rtol=1e-5, atol=1e-3)


@given(SIDES, SIDES, st.sampled_from([320, 640, (256, 512)]))
def test_boxes_return_to_where_they_were(height: int, width: int, canvas: int | tuple[int, int]) -> None:
    letterbox = Letterbox.fit((height, width), canvas)
    boxes_N4 = torch.tensor([[0.0, 0.0, width, height], [width / 4, height / 4, width / 2, height / 2]])

    returned_N4 = letterbox.boxes_to_picture(letterbox.boxes_to_canvas(boxes_N4))

    torch.testing.assert_close(returned_N4, boxes_N4, rtol=1e-4, atol=1e-2 / letterbox.ratio)


@given(SIDES, SIDES)
def test_a_picture_never_reaches_beyond_its_canvas(height: int, width: int) -> None:
    letterbox = Letterbox.fit((height, width), 320)

    left, top = letterbox.corner
    new_height, new_width = letterbox.resized

    assert left >= 0
    assert top >= 0
    assert left + new_width <= 320
    assert top + new_height <= 320


def test_shrinking_averages_so_that_fine_stripes_become_grey() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::4] = 200

    canvas = Letterbox.fit((128, 128), 32).apply(stripes)

    assert (canvas == 50).all()


@pytest.mark.parametrize(("size", "image_size"), [((96, 128), 64), ((60, 150), 96), ((40, 30), 64)])
def test_training_and_evaluation_scale_a_picture_alike(
    size: tuple[int, int], image_size: int, tmp_path: Path, make_record: Callable[..., ImageRecord]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    record = make_record(tmp_path / "a.png", size, [], [])
    letterbox = Letterbox.fit(size, image_size)
    left, top = letterbox.corner
    height, width = letterbox.resized

    trained = PictureStore((record,), (image_size, image_size)).load(0)

    assert (letterbox.apply(picture)[top : top + height, left : left + width] == trained).all()


def test_what_is_not_picture_is_grey() -> None:
    canvas = Letterbox.fit((50, 100), 64).apply(np.zeros((50, 100, 3), np.uint8))

    assert (canvas[:16] == FILL).all()
    assert (canvas[16:48] == 0).all()
    assert (canvas[48:] == FILL).all()


def test_boxes_follow_the_pixels_of_a_picture() -> None:
    picture = np.zeros((300, 500, 3), np.uint8)
    picture[60:180, 100:350] = 255
    letterbox = Letterbox.fit((300, 500), 320)

    rows, columns = np.nonzero(letterbox.apply(picture)[..., 0] == 255)
    box = letterbox.boxes_to_canvas(torch.tensor([[100.0, 60.0, 350.0, 180.0]]))[0]

    assert box.tolist() == pytest.approx([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1)
