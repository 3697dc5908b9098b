"""Matches of one picture, as they are computed, drawn and written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detloom.assembly import assemble
from detloom.data.records import Annotations, ImageRecord
from detloom.detector import Detector
from detloom.errors import DataError, RecipeError
from detloom.explain.matches import Explained, explain, find_image, title_of
from detloom.explain.page import page
from detloom.explain.sheet import PANEL, sheet
from detloom.pictures import write_picture
from detloom.structures import Role

BOXES = [[16.0, 8.0, 48.0, 40.0], [70.0, 20.0, 100.0, 60.0], [0.0, 0.0, 128.0, 64.0]]


def record(path: Path, *, is_crowd: tuple[bool, ...] = (False, False, True)) -> ImageRecord:
    write_picture(path, np.full((64, 128, 3), 90, np.uint8))
    return ImageRecord(
        path=path,
        image_id=1,
        height=64,
        width=128,
        boxes_N4=np.array(BOXES, np.float32),
        labels_N=np.array([0, 1, 1]),
        is_crowd_N=np.array(is_crowd),
        area_N=np.ones(3, np.float32),
        annotation_ids_N=np.arange(3),
    )


def detector(**overrides: object) -> Detector:
    torch.manual_seed(0)
    settings = {"data.image_size": 128, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return assemble("yolov7-tiny", settings, names=("coin", "</script>"))


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Explained:
    place = tmp_path_factory.mktemp("pictures") / "one.png"
    tables: list[dict[str, Any]] = [{"use": "atss"}, {"use": "yolov7", "candidates": 20}]
    return explain(detector(neck__auxiliary=[128, 256, 512]), record(place), tables)


def test_auxiliary_outputs_on_some_levels_are_of_these_levels(tmp_path: Path) -> None:
    drawn = explain(detector(neck__auxiliary=[0, 64, 0]), record(tmp_path / "one.png"), [{"use": "atss"}])

    assert 8 in {match.stride for match in drawn.methods[0].matches}
    assert {match.stride for match in drawn.methods[1].matches} == {16}


def test_each_assigner_speaks_for_lead_and_auxiliary(explained: Explained) -> None:
    assert [(each.title, each.role) for each in explained.methods] == [
        ("atss", Role.LEAD),
        ("atss", Role.AUXILIARY),
        ("yolov7 (candidates 20)", Role.LEAD),
        ("yolov7 (candidates 20)", Role.AUXILIARY),
    ]
    assert all(each.matches for each in explained.methods)


def test_detector_without_auxiliary_levels_has_lead_matches_alone(tmp_path: Path) -> None:
    found = explain(detector(), record(tmp_path / "one.png"), [{"use": "atss"}])

    assert [each.role for each in found.methods] == [Role.LEAD]


def test_boxes_lie_on_the_canvas_and_crowds_are_left_out(explained: Explained) -> None:
    # The picture is half as high as the canvas: 32 rows of grey above it.
    assert explained.boxes == ((16, 40, 48, 72), (70, 52, 100, 92))
    assert explained.labels == ("coin", "</script>")


def test_matches_of_atss_lie_inside_their_objects(explained: Explained) -> None:
    for match in explained.methods[0].matches:
        x1, y1, x2, y2 = explained.boxes[match.target]
        assert x1 < match.center[0] < x2
        assert y1 < match.center[1] < y2
        # Centres are those of cells, and each cell has three anchors.
        assert match.center[0] % match.stride == match.stride / 2
        assert match.place in {0, 1, 2}


def test_detector_is_left_in_its_mode_with_its_statistics(tmp_path: Path) -> None:
    given = detector().eval()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}

    explain(given, record(tmp_path / "one.png"), [{"use": "yolov7"}])

    assert not any(module.training for module in given.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())


def test_wrong_setting_of_an_assigner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="candidates must be at least 1, got 0"):
        explain(detector(), record(tmp_path / "one.png"), [{"use": "atss", "candidates": 0}])


def test_title_names_what_is_inside() -> None:
    table = {"use": "coarse-to-fine", "inner": {"use": "atss", "candidates": 5}, "bound": "none"}

    assert title_of(table) == "coarse-to-fine (atss (candidates 5), bound none)"


def test_sheet_has_a_panel_for_each_method_and_level(explained: Explained) -> None:
    picture = sheet(explained)

    assert picture.shape[1] > 3 * PANEL
    assert picture.shape[0] > 4 * PANEL
    # Something is drawn: a pale grey picture on white has no colours of its own.
    assert int(np.ptp(picture.astype(int), axis=2).max()) > 100


def test_page_holds_every_match_and_no_open_tag_of_a_name(explained: Explained) -> None:
    text = page(explained)

    found = re.search(r"const data = (\{.*\});", text)
    assert found is not None
    data = json.loads(found[1].replace("<\\/", "</"))
    assert [len(each["matches"]) for each in data["methods"]] == [len(each.matches) for each in explained.methods]
    assert data["labels"] == ["coin", "</script>"]
    assert text.count("</script>") == 1
    assert "http://www.w3.org/2000/svg" in text
    assert not re.search(r"(src|href)=[\"']http", text)


def test_picture_is_found_by_name_or_stem_and_a_wrong_one_gets_a_suggestion(tmp_path: Path) -> None:
    only = record(tmp_path / "one.png")
    annotations = Annotations(("coin", "key"), (only,), (), (1, 2), tmp_path)

    assert find_image(annotations, "one") is only
    assert find_image(annotations, "one.png") is only
    assert find_image(annotations, None) is only
    with pytest.raises(DataError, match=r"called 'on.png'. Did you mean 'one.png'"):
        find_image(annotations, "on.png")
