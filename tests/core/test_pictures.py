"""Pictures with boxes, sheets of pictures, plots, and their files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from detloom.errors import ArtifactError
from detloom.ops.curves import precision_recall
from detloom.pictures import colour, draw, font, grid, make_directory, shortened, text_on, write_picture
from detloom.plots import plot_confusion, plot_precision_recall
from detloom.structures import Detections

Picture = NDArray[np.uint8]


def detections(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (120, 160)) -> Detections:
    return Detections(
        torch.tensor(boxes).reshape(-1, 4),
        torch.linspace(0.9, 0.5, len(boxes)),
        torch.zeros(len(boxes), dtype=torch.int64),
        ("thing",),
        size,
    )


def plain(height: int = 120, width: int = 160) -> Picture:
    return np.full((height, width, 3), 127, np.uint8)


def coloured(picture: Picture) -> NDArray[np.bool_]:
    """Return where a picture has the first class's colour."""
    found: NDArray[np.bool_] = (picture == colour(0)).all(-1)
    return found


def test_box_is_drawn_where_it_is() -> None:
    drawn = coloured(draw(plain(), detections((40, 50, 90, 100))))

    assert drawn[70, 40]
    assert drawn[70, 89]
    assert drawn[99, 60]
    assert not drawn[70, 60]


def test_picture_itself_is_left_alone() -> None:
    picture = plain()

    draw(picture, detections((40, 50, 90, 100)))

    assert (picture == 127).all()


def test_small_picture_is_enlarged_for_its_labels() -> None:
    drawn = draw(plain(60, 80), detections((10, 10, 40, 40), size=(60, 80)), enlarge_to=320)

    assert drawn.shape == (240, 320, 3)
    assert coloured(drawn)[100, 40]


def test_large_picture_is_not_enlarged() -> None:
    assert draw(plain(400, 500), detections(), enlarge_to=320).shape == (400, 500, 3)


def test_label_stays_inside_the_picture() -> None:
    drawn = draw(plain(), detections((0, 0, 160, 120)))

    corner = drawn[:20, :60]
    assert coloured(corner).mean() > 0.3


def test_labels_of_two_boxes_in_one_place_do_not_cover_each_other() -> None:
    one = coloured(draw(plain(), detections((40, 50, 90, 100)))).sum()

    two = coloured(draw(plain(), detections((40, 50, 90, 100), (40, 50, 90, 100)))).sum()

    assert two > one * 1.4


def test_boxes_outside_and_without_extent_are_drawn_at_the_edge() -> None:
    drawn = draw(plain(), detections((-50, -50, -10, -10), (500, 500, 600, 600), (30, 30, 30, 30)))

    assert drawn.shape == (120, 160, 3)


def test_nothing_found_draws_nothing() -> None:
    assert (draw(plain(), detections()) == 127).all()


def test_first_colours_differ_and_their_text_reads() -> None:
    colours = np.array([colour(index) for index in range(8)]).astype(int)

    distance = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(8, dtype=int)
    assert distance.min() > 60
    for each in colours.tolist():
        brightness = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (each, text_on((each[0], each[1], each[2])))]
        assert abs(brightness[0] - brightness[1]) > 90


def test_sheet_holds_all_pictures_with_titles() -> None:
    sheet = grid([plain()] * 5, titles=["a"] * 5, columns=3, cell=(100, 120), gap=10)

    assert sheet.shape == (2 * (100 + 24 + 10) + 10, 3 * (120 + 10) + 10, 3)
    assert (sheet[10 + 24 + 50, 10 + 60] == 127).all()


def test_sheet_of_nothing_is_white() -> None:
    assert (grid([]) == 255).all()


def test_long_text_is_cut_at_its_start() -> None:
    letters = font(12)

    cut = shortened("a/very/long/path/to/picture.jpg", letters, 100)

    assert cut.startswith("...")
    assert cut.endswith("picture.jpg")
    assert letters.getlength(cut) <= 100


def test_heading_is_cut_at_its_end() -> None:
    letters = font(12)

    cut = shortened("coarse-to-fine (candidates 20)", letters, 100, keep="start")

    assert cut.startswith("coarse-to")
    assert cut.endswith("...")
    assert letters.getlength(cut) <= 100


def test_each_line_of_a_title_is_cut_for_itself() -> None:
    long = grid([plain()], titles=[f"{'a' * 99} one\nlead"], cell=(100, 120))
    other = grid([plain()], titles=[f"{'a' * 99} two\nlead"], cell=(100, 120))
    under = grid([plain()], titles=[f"{'a' * 99} two\nauxiliary"], cell=(100, 120))

    assert (long == other).all()
    assert long.shape[0] - grid([plain()], titles=["a"], cell=(100, 120)).shape[0] == 24
    assert (long != under).any()


def test_written_picture_is_the_same(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)

    write_picture(tmp_path / "a.png", picture)

    assert (np.asarray(Image.open(tmp_path / "a.png")) == picture).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'.xyz' is no picture format"):
        write_picture(tmp_path / "a.xyz", plain())


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_picture(tmp_path / "nowhere" / "a.png", plain())


def test_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ArtifactError, match="cannot be made"):
        make_directory(tmp_path / "file" / "below")


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_plots_are_made_for_any_number_of_classes(classes: int) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, 300)
    names = [f"class number {index}" for index in range(classes)]
    curves = precision_recall(generator.random(300) < 0.7, generator.random(300), labels, labels, classes)
    counts = generator.integers(0, 9, (classes + 1, classes + 1))

    for plot in (plot_precision_recall(curves, names), plot_confusion(counts, names, 0.25)):
        assert plot.dtype == np.uint8
        assert min(plot.shape[:2]) > 150
        assert plot.std() > 5


def test_plots_of_nothing_are_empty_frames() -> None:
    nothing = np.zeros(0, int)
    curves = precision_recall(np.zeros(0, bool), np.zeros(0), nothing, nothing, 2)

    assert plot_precision_recall(curves, ["a", "b"]).shape[2] == 3
    assert plot_confusion(np.zeros((3, 3), int), ["a", "b"], 0.5).shape[2] == 3
