"""Evaluation from pictures to metrics, and the report of where a detector is wrong."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from detloom.assembly import build
from detloom.data.records import Annotations, ImageRecord
from detloom.detector import Detector
from detloom.engine.evaluate import evaluate
from detloom.engine.report import confusion, curves
from detloom.errors import DataError, RecipeError
from detloom.interfaces import Evaluator, Metrics
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe
from detloom.structures import Detections

NAMES = ("red", "green")
COLOURS = np.array([(255, 0, 0), (0, 255, 0)], np.uint8)

Rows = Sequence[tuple[float, float, float, float, int]]


class Recorder(Evaluator):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: Mapping[int, Detections] = {}

    def evaluate(self, detections: Mapping[int, Detections]) -> Metrics:
        self.given = detections
        return Metrics({"AP": 0.5, "APs": float("nan")}, {name: {"AP": 0.5, "AP50": 0.5} for name in NAMES})


def record(rows: Rows, *, crowds: Sequence[int] = (), path: Path = Path("none.png")) -> ImageRecord:
    boxes_N4 = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return ImageRecord(
        path=path,
        image_id=1,
        height=64,
        width=64,
        boxes_N4=boxes_N4,
        labels_N=np.array([row[4] for row in rows], np.int64),
        is_crowd_N=np.array([i in crowds for i in range(len(rows))], np.bool_),
        area_N=(boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1),
        annotation_ids_N=np.arange(len(rows)),
    )


def annotations(*images: ImageRecord, names: tuple[str, ...] = NAMES) -> Annotations:
    return Annotations(names, images, (), tuple(range(1, len(names) + 1)), Path("here"))


def detections(rows: Rows, scores: Sequence[float]) -> Detections:
    boxes_N4 = torch.tensor([row[:4] for row in rows]).reshape(-1, 4)
    labels_N = torch.tensor([row[4] for row in rows], dtype=torch.int64)
    return Detections(boxes_N4, torch.tensor(scores), labels_N, NAMES, (64, 64))


@pytest.fixture
def split(tmp_path: Path) -> Annotations:
    """Return three pictures of a red and a green cell each; the last picture is empty."""
    images = []
    for index in range(3):
        rows: list[tuple[float, float, float, float, int]] = []
        if index < 2:
            rows = [(8 * index, 0, 8 * index + 8, 8, 0), (16, 16, 24, 24, 1)]
        canvas = np.zeros((64, 64, 3), np.uint8)
        for x1, y1, x2, y2, label in rows:
            canvas[int(y1) : int(y2), int(x1) : int(x2)] = COLOURS[label]
        Image.fromarray(canvas).save(tmp_path / f"{index}.png")
        images.append(record(rows, path=tmp_path / f"{index}.png"))
    return annotations(*images)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("yolov7-tiny", {"data.image_size": 64, "data.workers": 0, "predict.batch": 2})


@pytest.fixture
def detector(colours: ModuleType, recipe: Recipe) -> Detector:
    made: Detector = colours.colour_detector(recipe)
    return made


@pytest.mark.parametrize("evaluator", ["pycocotools", "hotcoco"])
def test_detector_that_sees_all_scores_one(
    detector: Detector, split: Annotations, recipe: Recipe, evaluator: str
) -> None:
    chosen = recipe.with_overrides({"evaluator.use": evaluator})

    metrics = evaluate(detector, split, chosen)

    assert metrics.summary["AP"] == pytest.approx(1)
    assert set(metrics.per_class) == set(NAMES)


def test_every_picture_is_given_with_its_boxes_and_all_their_labels(detector: Detector, split: Annotations) -> None:
    recorder = Recorder()

    evaluate(detector, split, evaluator=recorder, score=0.0)

    assert sorted(recorder.given) == [0, 1, 2]
    assert len(recorder.given[2]) == 64 * 2
    assert recorder.given[1].boxes_N4[0].tolist() in ([8, 0, 16, 8], [16, 16, 24, 24])
    assert recorder.given[0].source == str(split.images[0].path)


def test_progress_counts_batches(detector: Detector, split: Annotations) -> None:
    seen: list[tuple[int, int]] = []

    evaluate(detector, split, evaluator=Recorder(), progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 2), (2, 2)]


def test_detector_stays_as_it_was(detector: Detector, split: Annotations) -> None:
    detector.train()

    evaluate(detector, split, evaluator=Recorder())

    assert detector.training


def test_recipe_without_evaluator_is_told_what_there_is(detector: Detector, split: Annotations, recipe: Recipe) -> None:
    tables = {name: table for name, table in recipe.tables.items() if name != "evaluator"}

    with pytest.raises(RecipeError, match=r"add \[evaluator\] with `use`, one of: .*pycocotools"):
        evaluate(detector, split, Recipe(recipe.name, tables, recipe.origins, recipe.summary))


def test_other_classes_are_named(detector: Detector, split: Annotations) -> None:
    other = annotations(*split.images, names=("a", "b", "c"))

    with pytest.raises(DataError, match=r"has 3 classes \(a, b, c\), but the detector has 2 \(red, green\)"):
        evaluate(detector, other)


def test_as_many_classes_of_other_names_are_refused(detector: Detector, split: Annotations) -> None:
    other = annotations(*split.images, names=("red", "blue"))

    with pytest.raises(DataError, match=r"has 2 classes \(red, blue\), but the detector has 2 \(red, green\)"):
        evaluate(detector, other)


def test_classes_in_another_order_are_found_under_their_names(
    detector: Detector, split: Annotations, recipe: Recipe
) -> None:
    turned = [replace(image, labels_N=1 - image.labels_N) for image in split.images]

    metrics = evaluate(detector, annotations(*turned, names=("green", "red")), recipe)

    assert metrics.summary["AP"] == pytest.approx(1)


def test_classes_without_names_go_by_their_place(detector: Detector, split: Annotations, recipe: Recipe) -> None:
    detector.names = ("0", "1")

    assert evaluate(detector, split, recipe).summary["AP"] == pytest.approx(1)


def test_detector_without_recipe_asks_for_one(colours: ModuleType, split: Annotations) -> None:
    with pytest.raises(RecipeError, match="has no recipe"):
        evaluate(colours.colour_detector(), split)


def test_report_has_numbers_and_pictures(detector: Detector, split: Annotations, tmp_path: Path) -> None:
    evaluate(detector, split, evaluator=Recorder(), report=tmp_path / "run")

    content = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert content["summary"] == {"AP": 0.5, "APs": None}
    assert content["best_f1"]["recall"] == {"red": 1, "green": 1}
    assert content["confusion"]["counts"] == [[2, 0, 0], [0, 2, 0], [0, 0, 0]]
    for name in ("precision-recall.png", "confusion.png"):
        assert Image.open(tmp_path / "run" / name).size > (300, 300)


def test_confusion_pairs_boxes_whatever_their_classes() -> None:
    truth = record([(0, 0, 20, 20, 0), (30, 30, 50, 50, 1), (0, 40, 10, 50, 0)])
    found = detections(
        [(0, 0, 20, 20, 1), (30, 30, 50, 50, 1), (50, 0, 60, 10, 0), (0, 40, 10, 50, 0)], [0.9, 0.8, 0.7, 0.1]
    )

    counts_KK = confusion({0: found}, annotations(truth), score=0.5)

    assert counts_KK.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0]]


def test_confusion_takes_the_closest_pair_first() -> None:
    truth = record([(0, 0, 20, 20, 0)])
    found = detections([(0, 0, 20, 16, 1), (0, 0, 20, 20, 0)], [0.9, 0.8])

    counts_KK = confusion({0: found}, annotations(truth), score=0.5)

    assert counts_KK.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = annotations(record([(0, 0, 20, 20, 0), (30, 30, 64, 64, 0)], crowds=[1]))
    found = {0: detections([(35, 35, 45, 45, 0), (0, 0, 20, 20, 0)], [0.9, 0.8])}

    assert confusion(found, truth, score=0.5).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert curves(found, truth)[0].objects_C.tolist() == [1, 0]
    assert curves(found, truth)[0].ap_C[0] == pytest.approx(1)


def test_images_without_detections_count_as_missed() -> None:
    truth = annotations(record([(0, 0, 20, 20, 0)]), record([(0, 0, 20, 20, 0)]))
    found = {0: detections([(0, 0, 20, 20, 0)], [0.9])}

    assert confusion(found, truth, score=0.5).tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert curves(found, truth)[1].recall_C[0] == pytest.approx(0.5)


def test_second_detection_takes_the_object_left_over() -> None:
    truth = annotations(record([(0, 0, 20, 20, 0), (0, 4, 20, 24, 0)]))
    found = {0: detections([(0, 1, 20, 21, 0), (0, 0, 20, 20, 0)], [0.9, 0.8])}

    _, best = curves(found, truth)

    assert best.recall_C[0] == pytest.approx(1)


def test_average_precision_of_the_report_is_that_of_the_metrics() -> None:
    generator = np.random.default_rng(0)

    def rows(count: int) -> list[tuple[float, float, float, float, int]]:
        corner_N2, size_N2 = generator.integers(0, 32, (count, 2)), generator.integers(8, 32, (count, 2))
        labels_N1 = generator.integers(0, 2, (count, 1))
        return [(*row[:4], int(row[4])) for row in np.hstack((corner_N2, corner_N2 + size_N2, labels_N1)).tolist()]

    # More than a hundred detections of a class, crowds of either class, and a picture without objects.
    images = [record(rows(count), crowds=range(0, count, 5)) for count in (30, 12, 0)]
    truth = annotations(*images)
    found = {
        index: detections(rows(count), sorted(generator.random(count).round(2).tolist(), reverse=True))
        for index, count in enumerate((300, 40, 20))
    }

    metrics = build(Kind.EVALUATOR, {"use": "pycocotools"}, truth).evaluate(found)

    expected = [metrics.per_class[name]["AP50"] for name in NAMES]
    assert curves(found, truth)[0].ap_C.tolist() == pytest.approx(expected)
