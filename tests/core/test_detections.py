"""What becomes of detections outside: COCO rows, supervision, notebooks."""

import builtins
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detloom.errors import DataError, DetloomError
from detloom.structures import Detections


def detections(source: str | None = None, names: tuple[str, ...] = ("cat", "dog")) -> Detections:
    return Detections(
        boxes_N4=torch.tensor([[1.0, 2, 11, 22], [0.12345, 0, 4, 4]]),
        scores_N=torch.tensor([0.9, 0.123456]),
        labels_N=torch.tensor([1, 0]),
        names=names,
        image_size=(30, 40),
        source=source,
    )


def test_coco_rows_have_corner_width_and_height() -> None:
    rows = detections().to_coco(7, [18, 21])

    assert rows[0] == {"image_id": 7, "category_id": 21, "bbox": [1, 2, 10, 20], "score": 0.9}
    assert rows[1] == {"image_id": 7, "category_id": 18, "bbox": [0.123, 0, 3.877, 4], "score": 0.12346}


def test_coco_categories_count_from_one_where_none_are_given() -> None:
    assert [row["category_id"] for row in detections().to_coco(1)] == [2, 1]


@pytest.mark.parametrize("ids", [[18], [18, 21, 30]])
def test_coco_categories_must_be_as_many_as_classes(ids: list[int]) -> None:
    with pytest.raises(
        DataError, match=rf"category_ids has {len(ids)} ids for 2 classes \(cat, dog\); give one for each"
    ):
        detections().to_coco(7, ids)


def test_supervision_has_the_same_boxes_and_names() -> None:
    found = detections().to_supervision()

    assert found.xyxy[0].tolist() == [1, 2, 11, 22]
    assert found.class_id is not None
    assert found.class_id.tolist() == [1, 0]
    assert list(found.data["class_name"]) == ["dog", "cat"]


def test_nothing_found_is_nothing_for_supervision() -> None:
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ("cat",), (5, 5))

    assert len(empty.to_supervision()) == 0
    assert empty.to_coco(1) == []


def test_missing_supervision_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(DetloomError, match=r"pip install 'detloom\[supervision\]'"):
        detections().to_supervision()


def test_notebook_shows_a_table_with_names_escaped() -> None:
    shown = detections(names=("a<b", "dog"))._repr_html_()

    assert "2 detections in a picture (40 x 30)" in shown
    assert "<td>dog</td><td>0.900</td><td>1.0</td><td>2.0</td><td>11.0</td><td>22.0</td>" in shown
    assert "a&lt;b" in shown
    assert "<img" not in shown


def test_notebook_shows_the_picture_where_it_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)

    shown = detections(str(path))._repr_html_()

    assert re.search(r'<img [^>]*src="data:image/jpeg;base64,', shown)


@pytest.mark.parametrize("content", [b"broken", None])
def test_notebook_shows_the_table_where_the_file_has_changed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cat.png"
    if content is not None:
        path.write_bytes(content)

    shown = detections(str(path))._repr_html_()

    assert "<img" not in shown
    assert "<td>dog</td>" in shown


def test_notebook_says_how_many_boxes_it_leaves_out() -> None:
    many = Detections(torch.zeros(50, 4), torch.ones(50), torch.zeros(50, dtype=torch.int64), ("cat",), (5, 5))

    assert "and 30 more" in many._repr_html_()
