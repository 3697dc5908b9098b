"""AP of resampled pictures against COCO's own evaluation of a data set that has the copies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detloom.building import build
from detloom.data.records import Annotations, ImageRecord
from detloom.interfaces import Evaluator
from detloom.kinds import Kind
from detloom.structures import Detections
from detloom.study.matches import Matches

NAMES = ("a", "b", "never")


def scene(seed: int, num_images: int = 6) -> tuple[Annotations, dict[int, Detections]]:
    """Return images with objects, crowds among them, and detections near them and elsewhere."""
    random = np.random.default_rng(seed)
    images, found = [], {}
    for index in range(num_images):
        num = int(random.integers(0, 6))
        corner = random.uniform(0, 60, (num, 2))
        boxes = np.concatenate((corner, corner + random.uniform(5, 40, (num, 2))), 1).astype(np.float32)
        labels = random.integers(0, 2, num)
        images.append(
            ImageRecord(
                Path(f"{index}.png"),
                index,
                100,
                100,
                boxes,
                labels,
                random.random(num) < 0.2,
                np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
                np.arange(num) + 1,
            )
        )
        near = boxes[random.integers(0, num, 8)] + random.normal(0, 3, (8, 4)) if num else np.zeros((0, 4))
        near = np.concatenate((np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])), 1)
        corner = random.uniform(0, 60, (130, 2))
        far = np.concatenate((corner, corner + 20), 1)
        all_boxes = np.concatenate((near, far)).astype(np.float32)
        # Different scores throughout: equal ones are ranked by the order of the copies.
        scores = np.sort(random.random(len(all_boxes)))[::-1]
        order = random.permutation(len(all_boxes))
        found[index] = Detections(
            torch.from_numpy(all_boxes[order]),
            torch.from_numpy(scores.astype(np.float32)),
            torch.from_numpy(random.choice([0, 0, 1, 2], len(all_boxes))),
            NAMES,
            (100, 100),
        )
    return Annotations(NAMES, tuple(images), (), (1, 2, 3), Path("scene")), found


def ap_of_copies(annotations: Annotations, found: dict[int, Detections], counts: list[int], evaluator: str) -> float:
    """Return AP as an evaluator has it, where each image is there as often as it counts."""
    drawn = [index for index, count in enumerate(counts) for _ in range(count)]
    copies = replace(annotations, images=tuple(annotations.images[index] for index in drawn))
    built = build(Kind.EVALUATOR, {"use": evaluator}, copies)
    assert isinstance(built, Evaluator)
    return built.evaluate({place: found[index] for place, index in enumerate(drawn)}).summary["AP"]


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_ap_is_that_of_the_evaluators(evaluator: str) -> None:
    for seed in range(5):
        annotations, found = scene(seed)

        matches = Matches.of(found, annotations)

        assert matches.ap == pytest.approx(ap_of_copies(annotations, found, [1] * 6, evaluator), abs=1e-9)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_ap_of_a_resample_is_that_of_a_data_set_with_copies(seed: int, counts: list[int]) -> None:
    annotations, found = scene(seed)

    ap = float(Matches.of(found, annotations).resampled_ap(np.array([counts, [1] * 6]))[0])

    if not sum(counts):
        assert np.isnan(ap)
        return
    expected = ap_of_copies(annotations, found, counts, "hotcoco")
    assert ap == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, found = scene(3)
    matches = Matches.of(found, annotations)
    counts_RI = np.random.default_rng(0).integers(0, 3, (20, 6))
    whole_R = matches.resampled_ap(counts_RI)

    monkeypatch.setattr("detloom.study.matches.BLOCK", 1)

    assert matches.resampled_ap(counts_RI).tolist() == whole_R.tolist()


def test_images_without_detections_and_runs_without_any_count() -> None:
    annotations, _ = scene(0)

    assert Matches.of({}, annotations).ap == 0
