"""Suppression against a slow reference, by hand, and against the golden files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from detloom.ops import nms
from detloom.ops.nms import suppress
from detloom.structures import Predictions, Priors

GOLDEN = {
    "eval": {"score": 0.001, "overlap": 0.65, "multi_label": True},
    "detect": {"score": 0.25, "overlap": 0.45},
    "agnostic": {"score": 0.25, "overlap": 0.45, "agnostic": True},
    "only_class_0_2": {"score": 0.05, "overlap": 0.5, "classes": [0, 2]},
}


def predictions(boxes_BP4: Tensor, scores_BPC: Tensor, objectness_BP: Tensor | None = None) -> Predictions:
    """Return predictions with given probabilities."""
    priors = Priors.on_grids([(1, boxes_BP4.shape[1])], [8], torch.ones(1, 1, 2))
    objectness_BP = None if objectness_BP is None else objectness_BP.double().logit().float()
    return Predictions(boxes_BP4.float(), scores_BPC.double().logit().float(), objectness_BP, priors)


def random_predictions(seed: int, *, images: int, priors: int, classes: int) -> Predictions:
    """Return boxes in clusters, so that many overlap."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(images, priors, 2, generator=generator) * 60
    half = torch.rand(images, priors, 2, generator=generator) * 20 + 5
    return predictions(
        torch.cat((centers - half, centers + half), -1),
        torch.rand(images, priors, classes, generator=generator),
        torch.rand(images, priors, generator=generator),
    )


def slowly(
    found: Predictions,
    image: int,
    *,
    score: float,
    overlap: float,
    max_detections: int,
    multi_label: bool,
    agnostic: bool,
) -> list[tuple[int, int]]:
    """Return prior and label of each kept row of an image, one by one, as the definition says."""
    assert found.objectness_BP is not None
    scores_PC = found.objectness_BP[image].sigmoid()[:, None] * found.class_logits_BPC[image].sigmoid()
    rows = [(p, c) for p in range(scores_PC.shape[0]) for c in range(scores_PC.shape[1])]
    if not multi_label:
        rows = [(p, int(scores_PC[p].argmax())) for p in range(scores_PC.shape[0])]
    rows = sorted((row for row in rows if scores_PC[row] > score), key=lambda row: -float(scores_PC[row]))
    iou_PP = box_iou(found.boxes_BP4[image].double(), found.boxes_BP4[image].double())
    kept: list[tuple[int, int]] = []
    for prior, label in rows:
        if all((label != other and not agnostic) or iou_PP[prior, before] <= overlap for before, other in kept):
            kept.append((prior, label))
    return kept[:max_detections]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [80, 3, 1])
@pytest.mark.parametrize("setting", GOLDEN)
def test_rows_equal_the_golden_ones(shared: Callable[[str], Path], seed: int, classes: int, setting: str) -> None:
    golden = np.load(shared(f"golden/post/nms-seed{seed}.npz"))
    rows_BPR = torch.from_numpy(golden[f"nc{classes}_decoded"])
    half_BP2 = rows_BPR[..., 2:4] / 2
    boxes_BP4 = torch.cat((rows_BPR[..., :2] - half_BP2, rows_BPR[..., :2] + half_BP2), -1)
    options: Any = GOLDEN[setting]

    kept = suppress(predictions(boxes_BP4, rows_BPR[..., 5:], rows_BPR[..., 4]), **options)

    for image, (boxes_K4, scores_K, labels_K) in enumerate(kept.per_image()):
        expected = golden[f"nc{classes}_{setting}_image{image}"]
        assert labels_K.tolist() == expected[:, 5].tolist()
        np.testing.assert_array_equal(boxes_K4.numpy(), expected[:, :4])
        np.testing.assert_allclose(scores_K.numpy(), expected[:, 4], rtol=1e-6)


@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 4),
    multi_label=st.booleans(),
    agnostic=st.booleans(),
    max_detections=st.sampled_from([3, 300]),
)
@settings(max_examples=30, deadline=None)
def test_kept_rows_are_those_of_the_definition(
    seed: int, classes: int, multi_label: bool, agnostic: bool, max_detections: int
) -> None:
    found = random_predictions(seed, images=2, priors=25, classes=classes)
    options: Any = {"max_detections": max_detections, "multi_label": multi_label, "agnostic": agnostic}

    kept = suppress(found, score=0.1, overlap=0.4, **options).per_image()

    for image, (boxes_K4, _, labels_K) in enumerate(kept):
        expected = slowly(found, image, score=0.1, overlap=0.4, **options)
        assert labels_K.tolist() == [label for _, label in expected]
        torch.testing.assert_close(boxes_K4, found.boxes_BP4[image, [prior for prior, _ in expected]].reshape(-1, 4))


@pytest.mark.parametrize("candidates", [7, 40, 30000])
@pytest.mark.parametrize("max_detections", [1, 10, 300])
def test_blocks_and_batches_change_nothing(
    monkeypatch: pytest.MonkeyPatch, candidates: int, max_detections: int
) -> None:
    found = random_predictions(5, images=3, priors=60, classes=3)
    options: Any = {"score": 0.05, "overlap": 0.5, "multi_label": True, "candidates": candidates}
    whole = suppress(found, max_detections=max_detections, **options)

    monkeypatch.setattr(nms, "BLOCK_ON_CPU", 4)
    monkeypatch.setattr(nms, "BLOCK_ELSEWHERE", 4)
    in_blocks = suppress(found, max_detections=max_detections, **options)
    monkeypatch.setattr(nms, "_keep_by_image", nms._keep_together)
    together = suppress(found, max_detections=max_detections, **options)

    for other in (in_blocks, together):
        torch.testing.assert_close(other.boxes_K4, whole.boxes_K4)
        torch.testing.assert_close(other.scores_K, whole.scores_K)
        assert other.image_K.tolist() == whole.image_K.tolist()


@given(
    seed=st.integers(0, 10_000),
    multi_label=st.booleans(),
    max_detections=st.sampled_from([1, 3, 300]),
    with_objectness=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_without_an_overlap_the_best_rows_are_kept_as_they_are(
    seed: int, multi_label: bool, max_detections: int, with_objectness: bool
) -> None:
    found = random_predictions(seed, images=3, priors=20, classes=2)
    if not with_objectness:
        found = replace(found, objectness_BP=None)

    kept = suppress(found, score=0.3, overlap=None, max_detections=max_detections, multi_label=multi_label)

    for image, (boxes_K4, scores_K, labels_K) in enumerate(kept.per_image()):
        rows = []
        for prior in range(20):
            score_C = found.class_logits_BPC[image, prior].sigmoid()
            if found.objectness_BP is not None:
                score_C = score_C * found.objectness_BP[image, prior].sigmoid()
            labels = range(2) if multi_label else [int(score_C.argmax())]
            rows += [(-float(score_C[c]), prior, c) for c in labels if score_C[c] > 0.3]
        expected = sorted(rows)[:max_detections]
        assert labels_K.tolist() == [label for _, _, label in expected]
        assert scores_K.tolist() == pytest.approx([-score for score, _, _ in expected])
        torch.testing.assert_close(boxes_K4, found.boxes_BP4[image, [p for _, p, _ in expected]].reshape(-1, 4))


def test_of_equal_scores_the_first_priors_are_kept() -> None:
    boxes = torch.arange(8.0)[:, None].expand(8, 4)[None]

    kept = suppress(predictions(boxes, torch.full((1, 8, 1), 0.5)), score=0.1, overlap=None, max_detections=3)

    assert kept.boxes_K4[:, 0].tolist() == [0, 1, 2]


def test_rows_of_a_device_without_float64_are_compared_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def to(rows: Any, device: str) -> Any:
        seen.append(device)
        return rows

    monkeypatch.setattr(nms, "WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(nms._Rows, "to", to)
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])

    suppress(predictions(boxes, torch.tensor([[[0.1, 0.7]]])), score=0.5, overlap=0.5)

    assert seen == ["cpu"]


def test_score_is_the_objectness_where_there_is_one_class() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])

    kept = suppress(predictions(boxes, torch.tensor([[[0.1]]]), torch.tensor([[0.8]])), score=0.5, overlap=0.5)

    assert kept.scores_K.tolist() == pytest.approx([0.8])


def test_score_is_the_class_probability_where_there_is_no_objectness() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10]]])

    kept = suppress(predictions(boxes, torch.tensor([[[0.1, 0.7]]])), score=0.5, overlap=0.5)

    assert kept.scores_K.tolist() == pytest.approx([0.7])
    assert kept.labels_K.tolist() == [1]


@pytest.mark.parametrize("with_objectness", [True, False])
def test_row_at_the_threshold_itself_is_dropped(with_objectness: bool) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 0, 60, 10]]])
    found = predictions(
        boxes, torch.tensor([[[0.5, 0.1], [0.6, 0.1]]]), torch.full((1, 2), 1.0) if with_objectness else None
    )

    kept = suppress(found, score=0.5, overlap=0.5, multi_label=True)

    assert kept.boxes_K4[:, 0].tolist() == [50]


@pytest.mark.parametrize("classes", [3, 500])
def test_classes_of_a_large_picture_do_not_meet(classes: int) -> None:
    boxes = torch.tensor([[[0.0, 0, 9000, 9000], [0, 0, 9000, 9000], [4096, 4096, 9000, 9000]]])
    scores = torch.full((1, 3, classes), 0.001)
    scores[0, 0, 0], scores[0, 1, 1], scores[0, 2, 2] = 0.9, 0.8, 0.7

    kept = suppress(predictions(boxes, scores), score=0.5, overlap=0.1)

    assert kept.labels_K.tolist() == [0, 1, 2]


def test_boxes_that_are_not_finite_are_dropped_alone() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, float("inf"), 5], [0, float("nan"), 1, 1]]])

    kept = suppress(predictions(boxes, torch.full((1, 3, 2), 0.9)), score=0.5, overlap=0.5)

    assert kept.boxes_K4.tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize("keep", [nms._keep_by_image, nms._keep_together])
@pytest.mark.parametrize("multi_label", [True, False])
def test_images_without_boxes_keep_their_place(
    monkeypatch: pytest.MonkeyPatch, keep: Callable[..., Tensor], multi_label: bool
) -> None:
    monkeypatch.setattr(nms, "_keep_by_image", keep)
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(3, 2, 4)
    scores = torch.full((3, 2, 2), 0.1)
    scores[1] = 0.9

    kept = suppress(predictions(boxes, scores), score=0.5, overlap=0.5, multi_label=multi_label)

    assert [len(labels) for _, _, labels in kept.per_image()] == [0, 2 if multi_label else 1, 0]


@pytest.mark.parametrize("keep", [nms._keep_by_image, nms._keep_together])
def test_nothing_above_the_threshold_is_no_boxes(monkeypatch: pytest.MonkeyPatch, keep: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(nms, "_keep_by_image", keep)

    kept = suppress(predictions(torch.zeros(2, 3, 4), torch.full((2, 3, 2), 0.1)), score=0.5, overlap=0.5)

    assert [boxes.shape for boxes, _, _ in kept.per_image()] == [(0, 4), (0, 4)]


@pytest.mark.parametrize(("classes", "expected"), [([1], [1]), ([0, 1], [0, 1]), ([], []), (None, [0, 1])])
def test_only_wanted_classes_are_kept(classes: Sequence[int] | None, expected: list[int]) -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 0, 60, 10]]])
    scores = torch.tensor([[[0.9, 0.6], [0.1, 0.8]]])

    kept = suppress(predictions(boxes, scores), score=0.5, overlap=0.5, classes=classes)

    assert kept.labels_K.tolist() == expected
