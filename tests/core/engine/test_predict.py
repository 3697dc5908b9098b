"""Prediction from every kind of source, in order, with boxes in pixels of the picture."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from detloom.detector import Detector
from detloom.engine.predict import stream, write_predictions
from detloom.engine.sources import Source
from detloom.errors import ArtifactError, DataError, RecipeError, TrainingError
from detloom.structures import Detections, Predictions

Picture = NDArray[np.uint8]


@pytest.fixture
def detector(colours: ModuleType) -> Detector:
    made: Detector = colours.colour_detector()
    return made


def predict(detector: Detector, sources: Any, **settings: Any) -> list[Detections]:
    return detector.predict(sources, **settings)


def picture(
    *cells: tuple[int, int], size: tuple[int, int] = (64, 64), colour: tuple[int, int, int] = (255, 0, 0)
) -> Picture:
    """Return a black picture with 8 x 8 squares in given rows and columns of cells."""
    canvas = np.zeros((*size, 3), np.uint8)
    for row, column in cells:
        canvas[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = colour
    return canvas


def boxes(found: Detections) -> list[list[float]]:
    return found.boxes_N4.tolist()


def test_array_gives_a_box_in_its_own_pixels(detector: Detector) -> None:
    (found,) = predict(detector, picture((2, 3)), image_size=64)

    assert boxes(found) == [[24, 16, 32, 24]]
    assert found.labels_N.tolist() == [0]
    assert (found.names, found.image_size, found.source) == (("red", "green"), (64, 64), None)


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (40, 64)])
def test_boxes_leave_the_letterbox(detector: Detector, size: tuple[int, int]) -> None:
    (found,) = predict(detector, picture((1, 2), size=size), image_size=128)

    # Cells of the enlarged picture are quarters of the square; together they are the square.
    edges_N4 = found.boxes_N4
    assert [*edges_N4[:, :2].amin(0).tolist(), *edges_N4[:, 2:].amax(0).tolist()] == [16, 8, 24, 16]


def test_boxes_in_the_padding_are_left_out(detector: Detector) -> None:
    detector.recipe = None
    narrow = np.full((64, 60, 3), (255, 0, 0), np.uint8)

    (found,) = predict(detector, narrow, image_size=64, score=0.0)

    assert (found.boxes_N4[:, 2:] > found.boxes_N4[:, :2]).all()
    assert found.boxes_N4[:, 2].max() <= 60


def test_order_is_that_of_the_sources_whatever_their_sizes(detector: Detector) -> None:
    given = [picture((0, i % 4), size=(64, 32 + 32 * (i % 2))) for i in range(7)]

    found = predict(detector, given, image_size=64, batch=4)

    assert [boxes(each)[0][0] for each in found] == [0, 8, 16, 24, 0, 8, 16]


def test_pictures_of_one_size_share_a_batch(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a folded copy, the record of batches is that of the detector itself.
    monkeypatch.setattr(detector, "fuse", lambda: detector)

    predict(detector, [picture()] * 5, image_size=64, batch=4)

    assert detector.backbone.batches == [(4, 3, 64, 64), (1, 3, 64, 64)]


def test_files_folders_and_patterns_are_read_in_order(detector: Detector, tmp_path: Path) -> None:
    for index, name in enumerate(["b.png", "a.png", "c.bmp", "notes.txt"]):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no picture")
        else:
            Image.fromarray(picture((0, index))).save(tmp_path / name)

    folder = predict(detector, tmp_path, image_size=64)
    pattern = predict(detector, f"{tmp_path}/*.png", image_size=64)
    several = predict(detector, [tmp_path / "c.bmp", Image.fromarray(picture((0, 5)))], image_size=64)

    assert [Path(str(each.source)).name for each in folder] == ["a.png", "b.png", "c.bmp"]
    assert [boxes(each)[0][0] for each in pattern] == [8, 0]
    assert [boxes(each)[0][0] for each in several] == [16, 40]


@pytest.mark.parametrize(("one_to_one", "count"), [(False, 1), (True, 2)])
def test_what_a_one_to_one_head_finds_is_not_suppressed(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, one_to_one: bool, count: int
) -> None:
    head = detector.head
    decode = head.decode

    def decode_large(maps: Any) -> Predictions:
        # Boxes of three cells a side: those of neighbours overlap by a half.
        found = decode(maps)
        return replace(found, boxes_BP4=found.boxes_BP4 + torch.tensor([-8.0, -8.0, 8.0, 8.0]))

    monkeypatch.setattr(head, "decode", decode_large)
    head.traits = replace(head.traits, one_to_one=one_to_one)

    (found,) = predict(detector, picture((2, 3), (2, 4)), image_size=64, overlap=0.4)

    assert len(found) == count


def test_video_is_streamed_frame_by_frame(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for column in range(6):
        writer.write(cv2.cvtColor(picture((3, column)), cv2.COLOR_RGB2BGR))
    writer.release()

    frames = stream(detector, path, image_size=64, batch=2)
    shown, first = next(frames)
    others = [found for _, found in frames]

    assert shown.shape == (64, 64, 3)
    assert [each.source for each in (first, *others)] == [f"{path}#{number}" for number in range(6)]
    assert [boxes(each)[0][0] for each in (first, *others)] == [0, 8, 16, 24, 32, 40]


def test_broken_files_are_named_together_after_the_others(detector: Detector, tmp_path: Path) -> None:
    for name in ("bad.png", "worse.jpg", "broken.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    Image.fromarray(picture((0, 0))).save(tmp_path / "good.png")
    seen: list[str | None] = []
    sources = [tmp_path / name for name in ("bad.png", "worse.jpg", "broken.mp4", "good.png")]

    with pytest.raises(
        DataError, match=r"3 sources cannot be read(.|\n)*bad\.png(.|\n)*worse\.jpg(.|\n)*broken\.mp4"
    ) as caught:
        seen.extend(found.source for _, found in stream(detector, sources, image_size=64))

    assert str(caught.value).count("skip") == 1, "the advice is for all of them"

    assert seen == [str(tmp_path / "good.png")]


def test_broken_files_are_reported_and_left_out_where_asked(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    Image.fromarray(picture((0, 0))).save(tmp_path / "good.png")
    reported: list[DataError] = []

    found = predict(detector, tmp_path, image_size=64, on_bad=reported.append)

    assert len(found) == 1
    assert "bad.png" in str(reported[0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.jpg", "no such file, folder, or picture"),
        ("*.jpg", "no such file, folder, or picture"),
        ("empty", "no picture in this folder"),
        ("table.csv", "'.csv' is no kind of picture or video"),
    ],
)
def test_missing_sources_are_named_before_any_work(
    detector: Detector, tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").touch()

    with pytest.raises(DataError, match=message):
        predict(detector, [picture(), tmp_path / source], image_size=64)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)]
)
def test_array_of_another_form_is_described(detector: Detector, array: Any) -> None:
    with pytest.raises(DataError, match=r"must be RGB, uint8 \[height, width, 3\]"):
        predict(detector, array)


def test_no_source_and_no_path_are_errors(detector: Detector) -> None:
    with pytest.raises(DataError, match="no sources are given"):
        predict(detector, [])


@pytest.mark.parametrize("source", [3, None, b"a.jpg", [3], [[3]], {1: "a.jpg"}])
def test_source_of_another_type_is_told_once_with_what_is_accepted(detector: Detector, source: object) -> None:
    with pytest.raises(DataError, match=r"^predict: a source is of type \w+; accepted are paths, RGB arrays .*$"):
        predict(detector, source)


@pytest.mark.parametrize("source", [torch.zeros(20, 64, 64), [torch.zeros(3, 64, 64)] * 5])
def test_tensor_is_told_once_how_it_becomes_a_picture(detector: Detector, source: object) -> None:
    with pytest.raises(DataError, match="of type Tensor") as caught:
        predict(detector, source)

    assert str(caught.value).count("of type Tensor") == 1
    assert "(tensor * 255).round().byte().permute(1, 2, 0).cpu().numpy()" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": 2}, "'score' is 2: it must be a number of at least 0 and at most 1"),
        ({"score": "x"}, "'score' is \"x\": it must be a number of"),
        ({"score": -1}, "'score' is -1: it must be a number of at least 0"),
        ({"overlap": 1.5}, "'overlap' is 1.5"),
        ({"max_detections": 0}, "'max_detections' is 0"),
        ({"batch": 0}, "'batch' is 0"),
        ({"agnostic": "x"}, "'agnostic' is \"x\""),
        ({"image_size": (64,)}, r"'image_size' is \[64\]: it must be a whole number .*, or an array of 2"),
        ({"image_size": 10**9}, "'image_size' is 1000000000: it must be a whole number of at least 32 and at most"),
        ({"precision": "int8"}, "'precision' is 'int8'; it must be one of float32, bfloat16, float16"),
        ({"classes": "red"}, r"'classes' is 'red'; give a list of names or indices, as in \['red'\]"),
        ({"classes": 1}, r"'classes' is 1; give a list"),
    ],
)
def test_setting_out_of_its_range_is_refused_as_in_a_recipe(
    detector: Detector, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^predict: {message}[^\n]*$"):
        predict(detector, picture(), **settings)


def test_numbers_of_numpy_are_numbers(detector: Detector) -> None:
    (found,) = predict(detector, picture((2, 3)), image_size=np.int64(64), score=np.float32(0.5))

    assert boxes(found) == [[24, 16, 32, 24]]


def test_classes_are_chosen_by_name_or_index(detector: Detector) -> None:
    both = picture((0, 0)) + picture((1, 1), colour=(0, 255, 0))

    assert predict(detector, both, image_size=64, classes=["green"])[0].labels_N.tolist() == [1]
    assert predict(detector, both, image_size=64, classes=[0])[0].labels_N.tolist() == [0]
    with pytest.raises(RecipeError, match="Did you mean 'green'"):
        predict(detector, both, classes=["gren"])
    with pytest.raises(RecipeError, match="indices from 0 to 1"):
        predict(detector, both, classes=[2])


@pytest.mark.parametrize("size", [65, (64, 65)])
def test_size_that_does_not_suit_the_strides_is_refused(detector: Detector, size: int | tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match="multiples of its largest stride, 8; the nearest is 64 x"):
        predict(detector, picture(), image_size=size)


@pytest.mark.parametrize(
    "lack", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_lack_of_memory_says_what_to_lower(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, lack: RuntimeError
) -> None:
    def fail(*_: object) -> None:
        raise lack

    monkeypatch.setattr(detector.backbone, "forward", fail)
    monkeypatch.setattr(detector, "fuse", lambda: detector)

    with pytest.raises(TrainingError, match=r"4 pictures of 64 x 64 at once: .*\n  Lower \[predict\] batch, .* to 2,"):
        predict(detector, [picture()] * 4, image_size=64)


@pytest.mark.parametrize("device", ["cuda:99", "tpuu"])
def test_device_that_is_not_there_is_named_with_those_that_are(detector: Detector, device: str) -> None:
    with pytest.raises(RecipeError, match=rf"device '{device}' cannot be used here: (.|\n)*At hand are: cpu"):
        predict(detector, picture(), image_size=64, device=device)


def test_detector_stays_in_its_mode(detector: Detector) -> None:
    detector.train()

    predict(detector, picture(), image_size=64)

    assert detector.training
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_half_precision_finds_the_same(detector: Detector) -> None:
    (found,) = predict(detector, picture((2, 3)), image_size=64, precision="bfloat16")

    assert boxes(found) == [[24, 16, 32, 24]]


def test_written_files_hold_what_was_found(detector: Detector, tmp_path: Path) -> None:
    Image.fromarray(picture((2, 3))).save(tmp_path / "cell.png")
    sources: list[Source] = [tmp_path / "cell.png", tmp_path / "cell.png", picture()]

    paths = write_predictions(tmp_path / "out", stream(detector, sources, image_size=64))

    rows = json.loads(paths[0].read_text())
    assert [path.name for path in paths] == ["predictions.json", "cell.jpg", "cell-0001.jpg", "picture-0002.jpg"]
    assert all(path.exists() for path in paths)
    assert rows[0]["source"] == str(tmp_path / "cell.png")
    assert rows[0]["detections"][0]["class"] == "red"
    assert rows[0]["detections"][0]["box"] == [24, 16, 32, 24]
    assert (rows[2]["source"], rows[2]["detections"], rows[2]["picture"]) == (None, [], "picture-0002.jpg")


def test_json_alone_is_written_where_asked(detector: Detector, tmp_path: Path) -> None:
    paths = write_predictions(tmp_path, stream(detector, picture(), image_size=64), pictures=False)

    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    assert json.loads(paths[0].read_text())[0]["picture"] is None


def test_what_was_found_is_written_though_a_source_is_broken(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")

    with pytest.raises(DataError, match=r"bad\.png"):
        write_predictions(tmp_path / "out", stream(detector, [picture((2, 3)), tmp_path / "bad.png"], image_size=64))

    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 1


def test_directory_that_cannot_be_made_is_named(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ArtifactError, match="cannot be made"):
        write_predictions(tmp_path / "file" / "out", stream(detector, picture(), image_size=64))


def test_real_pictures_are_read_in_full(detector: Detector, shared: Callable[[str], Path]) -> None:
    folder = shared("data/bccd/images")

    found = predict(detector, f"{folder}/BloodImage_0000*.jpg", image_size=64, score=0.0)

    assert len(found) == len(list(folder.glob("BloodImage_0000*.jpg")))
    assert all(each.image_size == (480, 640) for each in found)
    assert torch.isfinite(found[0].boxes_N4).all()
