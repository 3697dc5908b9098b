"""The data of the first command: a COCO folder, written whole or not at all."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from detloom import scenes
from detloom.errors import DataError
from detloom.scenes import CLASSES, write_scenes


def test_the_folder_is_coco_and_its_pictures_are_there(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "new" / "tables", train=3, val=2, unseen=1)

    train = json.loads((folder / "annotations" / "train.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in train["categories"]] == list(CLASSES)
    assert len(train["images"]) == 3
    for image in train["images"]:
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    ids = {image["id"] for image in train["images"]}
    assert {row["image_id"] for row in train["annotations"]} <= ids
    assert len(list((folder / "images").iterdir())) == 5
    assert len(list((folder / "unseen").iterdir())) == 1


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first = write_scenes(tmp_path / "a", train=2, val=1, unseen=1, seed=7)
    second = write_scenes(tmp_path / "b", train=2, val=1, unseen=1, seed=7)

    files = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    assert len(files) == 2 + 1 + 1 + 3


def test_no_picture_of_one_part_is_in_another(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "a", train=2, val=2, unseen=2)

    contents = [path.read_bytes() for path in folder.rglob("*.jpg")]
    assert len(set(contents)) == 6


def test_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "a", train=1, val=1, unseen=1)
    before = (folder / "images" / "train_0000.jpg").stat().st_mtime_ns

    write_scenes(tmp_path / "a", train=1, val=1, unseen=1)

    assert (folder / "images" / "train_0000.jpg").stat().st_mtime_ns == before


def test_a_folder_of_other_numbers_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", train=1, val=1, unseen=1)

    with pytest.raises(DataError, match=r"a: exists, and was drawn with other numbers\.\n  Name a folder"):
        write_scenes(tmp_path / "a", train=2, val=1, unseen=1)


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")

    with pytest.raises(DataError, match="exists, and was not drawn here"):
        write_scenes(tmp_path, train=1, val=1)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "a", train=4, val=1, unseen=1, report=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_away_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".scenes.{ended.pid}.partial/images").mkdir(parents=True)
    (tmp_path / f".scenes.{os.getppid()}.partial").mkdir()
    (tmp_path / f".other.{ended.pid}.partial").mkdir()

    write_scenes(tmp_path / "scenes", train=1, val=1, unseen=0)

    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"scenes", f".scenes.{os.getppid()}.partial", f".other.{ended.pid}.partial"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(DataError, match=r"file/a: the pictures cannot be written: not a directory\.\n  Choose"):
        write_scenes(tmp_path / "file" / "a", train=1, val=1)


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    write_scenes(tmp_path / "a", train=2, val=1, unseen=1, report=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_public_names_are_sorted_and_exist() -> None:
    assert scenes.__all__ == sorted(scenes.__all__)
    assert all(hasattr(scenes, name) for name in scenes.__all__)
