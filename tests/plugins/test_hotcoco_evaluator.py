"""The fast evaluator has the numbers of the reference, on real annotations and on odd ones."""

import builtins
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detloom.data.records import Annotations, ImageRecord
from detloom.errors import PluginError
from detloom.structures import Detections
from detloom_plugins.hotcoco_evaluator import HotcocoEvaluator
from detloom_plugins.pycocotools_evaluator import PycocotoolsEvaluator

SPLITS = [
    "data/bccd/annotations/val.json",
    "data/coco-mini/annotations/instances_train.json",
    "data/coco-mini/annotations/instances_val.json",
]


def read(path: Path) -> Annotations:
    """Return the boxes of a COCO file as they stand."""
    content = json.loads(path.read_text())
    ids = [category["id"] for category in content["categories"]]
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    images = []
    for image in content["images"]:
        mine = rows[image["id"]]
        boxes_xywh_N4 = np.array([row["bbox"] for row in mine]).reshape(-1, 4)
        corner_N2, size_N2 = boxes_xywh_N4[:, :2], boxes_xywh_N4[:, 2:]
        images.append(
            ImageRecord(
                path=Path(image["file_name"]),
                image_id=image["id"],
                height=image["height"],
                width=image["width"],
                boxes_N4=np.concatenate((corner_N2, corner_N2 + size_N2), axis=1).astype(np.float32),
                labels_N=np.array([ids.index(row["category_id"]) for row in mine], dtype=np.int64),
                is_crowd_N=np.array([row.get("iscrowd", 0) for row in mine], dtype=np.bool_),
                area_N=np.array([row["area"] for row in mine], dtype=np.float32),
                annotation_ids_N=np.array([row["id"] for row in mine], dtype=np.int64),
            )
        )
    names = tuple(category["name"] for category in content["categories"])
    return Annotations(names, tuple(images), (), tuple(ids), path)


def perturbed(annotations: Annotations, generator: np.random.Generator) -> dict[int, Detections]:
    """Return detections near the annotated boxes and elsewhere, with equal scores among them."""
    found = {}
    for index, image in enumerate(annotations.images):
        which_N = generator.integers(0, max(len(image.labels_N), 1), 4 * len(image.labels_N))
        boxes_N4 = image.boxes_N4[which_N]
        size_N4 = np.tile(boxes_N4[:, 2:] - boxes_N4[:, :2], 2)
        moved_N4 = boxes_N4 + generator.normal(0, 0.08, boxes_N4.shape) * size_N4
        labels_N = image.labels_N[which_N].copy()
        is_wrong_N = generator.random(len(labels_N)) < 0.1
        labels_N[is_wrong_N] = generator.integers(0, len(annotations.names), int(is_wrong_N.sum()))
        scores_N = np.sort(generator.random(len(labels_N)).round(2))[::-1].copy()
        found[index] = Detections(
            torch.from_numpy(moved_N4).float(),
            torch.from_numpy(scores_N).float(),
            torch.from_numpy(labels_N),
            annotations.names,
            (image.height, image.width),
        )
    return found


def synthetic(generator: np.random.Generator) -> Annotations:
    """Return small, crowded images, some empty, with crowd regions and areas that differ from the boxes'."""
    images = []
    for index in range(3):
        count = int(generator.integers(0, 6))
        corner_N2 = generator.integers(0, 100, (count, 2))
        size_N2 = generator.integers(1, 120, (count, 2))
        images.append(
            ImageRecord(
                path=Path(f"{index}.png"),
                image_id=index,
                height=240,
                width=240,
                boxes_N4=np.concatenate((corner_N2, corner_N2 + size_N2), axis=1).astype(np.float32),
                labels_N=generator.integers(0, 3, count),
                is_crowd_N=generator.random(count) < 0.3,
                area_N=(size_N2.prod(1) * generator.uniform(0.3, 1, count)).astype(np.float32),
                annotation_ids_N=np.arange(count),
            )
        )
    return Annotations(("a", "b", "c"), tuple(images), (), (1, 2, 3), Path("synthetic"))


def assert_same(annotations: Annotations, found: Mapping[int, Detections]) -> None:
    """Compare every number of both evaluators, to the last bit but a few."""
    fast = HotcocoEvaluator(annotations).evaluate(found)
    reference = PycocotoolsEvaluator(annotations).evaluate(found)
    assert dict(fast.summary) == pytest.approx(dict(reference.summary), rel=1e-12, nan_ok=True)
    for name, values in reference.per_class.items():
        assert dict(fast.per_class[name]) == pytest.approx(dict(values), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_real_annotations_give_the_same_numbers(shared: Callable[[str], Path], split: str, seed: int) -> None:
    annotations = read(shared(split))

    found = perturbed(annotations, np.random.default_rng(seed))

    assert_same(annotations, found)


def test_more_than_a_hundred_boxes_of_an_image_give_the_same_numbers(shared: Callable[[str], Path]) -> None:
    annotations = read(shared(SPLITS[0]))
    generator = np.random.default_rng(0)

    found = {index: each for index, each in perturbed(annotations, generator).items() if len(each) > 40}
    many = {
        index: Detections(
            each.boxes_N4.repeat(5, 1) + torch.randn(len(each) * 5, 4, generator=torch.manual_seed(index)),
            each.scores_N.repeat(5).sort(descending=True).values,
            each.labels_N.repeat(5),
            each.names,
            each.image_size,
        )
        for index, each in found.items()
    }

    assert max(len(each) for each in many.values()) > 300
    assert_same(annotations, many)


@given(seed=st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_odd_annotations_give_the_same_numbers(seed: int) -> None:
    generator = np.random.default_rng(seed)
    annotations = synthetic(generator)

    found = perturbed(annotations, generator)

    assert_same(annotations, {index: each for index, each in found.items() if generator.random() < 0.8})


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "hotcoco":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)

    with pytest.raises(PluginError, match=r"pip install hotcoco.*'pycocotools' does without"):
        HotcocoEvaluator(synthetic(np.random.default_rng(0)))
