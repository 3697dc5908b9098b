"""What criteria without objectness share, against a reference that goes prior by prior and class by class."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detloom.errors import RecipeError
from detloom.interfaces import Criterion
from detloom.ops.iou import overlap
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom_plugins import graded_losses
from detloom_plugins.focal_criterion import FocalCriterion
from detloom_plugins.graded_losses import learned_labels
from detloom_plugins.quality_focal_criterion import QualityFocalCriterion
from detloom_plugins.varifocal_criterion import VarifocalCriterion

BINS = 5
PRIORS = Priors.on_grids([(2, 2), (1, 1)], (8, 16), torch.full((2, 1, 2), 8.0))
TARGETS = Targets.from_lists(
    [torch.tensor([[1.0, 2.0, 9.0, 10.0], [0.0, 0.0, 15.0, 16.0], [1.0, 2.0, 9.0, 9.0]]), torch.zeros(0, 4)],
    [torch.tensor([1, 0, 1]), torch.zeros(0, dtype=torch.int64)],
    (16, 16),
)
CRITERIA: dict[str, Callable[..., Criterion]] = {
    "focal": FocalCriterion,
    "quality-focal": QualityFocalCriterion,
    "varifocal": VarifocalCriterion,
}
each_criterion = pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)


def predictions(seed: int = 0, *, distribution: bool = True) -> Predictions:
    """Return predictions of two images, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    corner_BP2 = PRIORS.centers_P2 - 1 - 6 * torch.rand(2, 5, 2, generator=generator)
    size_BP2 = 2 + 12 * torch.rand(2, 5, 2, generator=generator)
    return Predictions(
        torch.cat((corner_BP2, corner_BP2 + size_BP2), -1).requires_grad_(),
        torch.randn(2, 5, 3, generator=generator).mul(2).requires_grad_(),
        None,
        PRIORS,
        torch.randn(2, 5, 4, BINS, generator=generator).requires_grad_() if distribution else None,
    )


def assignment(rows: list[tuple[int, int]], quality: list[float] | None = None) -> Assignment:
    """Return matches of prior and target, all of the first image."""
    prior_M = torch.tensor([prior for prior, _ in rows], dtype=torch.int64)
    target_M = torch.tensor([target for _, target in rows], dtype=torch.int64)
    return Assignment(
        torch.zeros_like(prior_M), prior_M, target_M, torch.tensor([1.0] * len(rows) if quality is None else quality)
    )


def class_cost(kind: str, logit: Tensor, label: float) -> Tensor:
    """Return the published equations, with their constants."""
    p = logit.double().sigmoid()
    y = label
    cross_entropy = -y * p.log() - (1 - y) * (1 - p).log()
    match kind:
        case "varifocal":
            return y * cross_entropy if y > 0 else -0.75 * p**2 * (1 - p).log()
        case "quality-focal":
            return (y - p).abs() ** 2 * cross_entropy
        case _:
            # Equation 5 for labels of 0 and 1; in between its factors are mixed.
            factor = (y * 0.25 + (1 - y) * 0.75) * (y * (1 - p) + (1 - y) * p) ** 2
            return factor * cross_entropy


def slowly(kind: str, given: Predictions, matches: Assignment, labels: list[float]) -> dict[str, Tensor]:
    """Return the losses one by one, with the published gains."""
    count = max(1.0, float(matches.quality_M.sum()))
    best: dict[tuple[int, int, int], float] = {}
    box, distribution = torch.zeros(()).double(), torch.zeros(()).double()
    matched = zip(matches.prior_M.tolist(), matches.target_M.tolist(), labels, strict=True)
    for prior, target, label in matched:
        place = (0, prior, int(TARGETS.labels_T[target]))
        best[place] = max(label, best.get(place, 0.0))
        wanted = TARGETS.boxes_T4[target].double()
        box = box + label * (1 - overlap(given.boxes_BP4[0, prior].double(), wanted, "giou"))
        if given.distribution_BP4R is None:
            continue
        x, y = PRIORS.centers_P2[prior].tolist()
        sides = [x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y]
        for side, logits_R in zip(sides, given.distribution_BP4R[0, prior].double(), strict=True):
            distance = min(max(float(side / PRIORS.strides_P[prior]), 0.0), BINS - 1.0)
            lower = min(int(distance), BINS - 2)
            log_R = logits_R.log_softmax(0)
            cost = -(lower + 1 - distance) * log_R[lower] - (distance - lower) * log_R[lower + 1]
            distribution = distribution + label * cost / 4
    classes = torch.zeros(()).double()
    for image in range(2):
        for prior in range(5):
            is_matched = any(place[:2] == (image, prior) for place in best)
            if matches.ignored_BP is not None and matches.ignored_BP[image, prior] and not is_matched:
                continue
            for label in range(3):
                logit = given.class_logits_BPC[image, prior, label]
                classes = classes + class_cost(kind, logit, best.get((image, prior, label), 0.0))
    return {"box": 2 * box / count, "class": classes / count, "distribution": 0.25 * distribution / count}


@pytest.mark.parametrize("kind", CRITERIA)
@given(
    seed=st.integers(0, 1000),
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=6),
    ignored=st.lists(st.booleans(), min_size=10, max_size=10),
    soft=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_losses_and_gradients_are_those_of_the_definition(
    kind: str, seed: int, rows: list[tuple[int, int]], ignored: list[bool], soft: bool
) -> None:
    given_predictions = predictions(seed)
    quality_M = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed))
    matches = assignment(rows, quality_M.tolist() if soft else None)
    matches = replace(matches, ignored_BP=torch.tensor(ignored).view(2, 5))
    boxes_M4 = given_predictions.boxes_BP4[0, matches.prior_M].detach()
    iou_M = overlap(boxes_M4, TARGETS.boxes_T4[matches.target_M])
    learned_M = matches.quality_M if soft or kind == "focal" else iou_M
    assert given_predictions.distribution_BP4R is not None
    leaves = [
        given_predictions.boxes_BP4,
        given_predictions.class_logits_BPC,
        given_predictions.distribution_BP4R,
    ]

    found = CRITERIA[kind]().losses(given_predictions, matches, TARGETS)
    gradients = torch.autograd.grad(torch.stack(list(found.values())).sum(), leaves)

    expected = slowly(kind, given_predictions, matches, learned_M.tolist())
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=1e-4, abs=1e-5
    )
    total = torch.stack(list(expected.values())).sum()
    wanted = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "quality", "learned"),
    [
        ("quality", 1.0, 1.0),
        ("quality", 0.3, 0.3),
        ("overlap", 1.0, 0.5),
        ("overlap", 0.3, 0.3),
        ("overlap", 0.9, 0.5),
        ("either", 1.0, 0.5),
        ("either", 0.3, 0.3),
        ("either", 0.9, 0.9),
    ],
)
def test_label_is_the_quality_or_the_overlap(labels: graded_losses.Labels, quality: float, learned: float) -> None:
    found = learned_labels(labels, torch.tensor([0.5]), torch.tensor([quality]))

    assert found.item() == pytest.approx(learned)


@each_criterion
@pytest.mark.parametrize("labels", ["quality", "overlap", "either"])
def test_nan_quality_makes_the_losses_nan(make: Callable[..., Criterion], labels: str) -> None:
    losses = make(labels=labels).losses(predictions(), assignment([(0, 0), (0, 2)], [math.nan, 0.5]), TARGETS)

    assert all(loss.isnan() for loss in losses.values())


@each_criterion
def test_nan_box_of_a_match_makes_the_box_loss_nan(make: Callable[..., Criterion]) -> None:
    given_predictions = predictions()
    boxes_BP4 = given_predictions.boxes_BP4.detach().clone()
    boxes_BP4[0, 1] = math.nan

    losses = make().losses(replace(given_predictions, boxes_BP4=boxes_BP4), assignment([(1, 0)]), TARGETS)

    assert losses["box"].isnan()


@each_criterion
def test_batch_without_matches_learns_that_nothing_is_there(make: Callable[..., Criterion]) -> None:
    given_predictions = predictions()

    losses = make().losses(given_predictions, assignment([]), TARGETS)
    gradient_BPC, gradient_BP4 = torch.autograd.grad(
        torch.stack(list(losses.values())).sum(), (given_predictions.class_logits_BPC, given_predictions.boxes_BP4)
    )

    assert losses["box"].item() == losses["distribution"].item() == 0
    assert (gradient_BPC > 0).all()
    assert (gradient_BP4 == 0).all()


@each_criterion
def test_heads_without_distribution_have_no_such_loss(make: Callable[..., Criterion]) -> None:
    losses = make().losses(predictions(distribution=False), assignment([(0, 0)]), TARGETS)

    assert set(losses) == {"box", "class"}


@each_criterion
def test_gains_are_factors_of_their_losses(make: Callable[..., Criterion]) -> None:
    plain = make(box=1.0, classes=1.0, distribution=1.0).losses(predictions(), assignment([(0, 0)]), TARGETS)
    scaled = make(box=2.0, classes=3.0, distribution=5.0).losses(predictions(), assignment([(0, 0)]), TARGETS)

    factors = {name: (scaled[name] / plain[name]).item() for name in plain}
    assert factors == pytest.approx({"box": 2, "class": 3, "distribution": 5})


@each_criterion
@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "siou"])
def test_boxes_are_measured_as_set(make: Callable[..., Criterion], kind: str) -> None:
    given_predictions = predictions()

    losses = make(overlap=kind, labels="quality", box=1.0).losses(given_predictions, assignment([(0, 0)]), TARGETS)

    measured = overlap(given_predictions.boxes_BP4[0, 0], TARGETS.boxes_T4[0], kind)  # type: ignore[arg-type] # one of the kinds above
    assert losses["box"].item() == pytest.approx(1 - measured.item(), rel=1e-5)


@each_criterion
def test_sum_of_qualities_is_a_mean_over_processes(
    make: Callable[..., Criterion], monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = assignment([(0, 0), (1, 1)])
    alone = make().losses(predictions(), matches, TARGETS)
    monkeypatch.setattr(graded_losses, "mean_over_processes", lambda count: 2.0 * count)

    shared = make().losses(predictions(), matches, TARGETS)

    for name, loss in alone.items():
        assert shared[name].item() == pytest.approx(loss.item() / 2)


@each_criterion
def test_losses_are_float32_under_autocast(make: Callable[..., Criterion]) -> None:
    expected = make().losses(predictions(), assignment([(0, 0)]), TARGETS)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make().losses(predictions(), assignment([(0, 0)]), TARGETS)

    assert found == expected
    assert all(loss.dtype == torch.float32 for loss in found.values())


@each_criterion
def test_gradients_are_finite_where_the_answer_is_sure(make: Callable[..., Criterion]) -> None:
    given_predictions = predictions()
    logits_BPC = torch.tensor([200.0, -200.0, 0.0]).expand(2, 5, 3).clone().requires_grad_()

    losses = make(labels="quality").losses(
        replace(given_predictions, class_logits_BPC=logits_BPC), assignment([(0, 0), (1, 1)]), TARGETS
    )
    (gradient,) = torch.autograd.grad(losses["class"], logits_BPC)

    assert losses["class"].isfinite()
    assert gradient.isfinite().all()


@each_criterion
def test_heads_with_objectness_are_told_what_to_set(make: Callable[..., Criterion]) -> None:
    objection = make().objection(HeadTraits(anchors=True, objectness=True))

    assert "set objectness = false in [head]" in (objection or "")
    assert make().objection(HeadTraits(anchors=True, objectness=False)) is None


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (FocalCriterion, {"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5; published is 0.25"),
        (FocalCriterion, {"gamma": 0.5}, "gamma must be 0, or at least 1, got 0.5; published is 2.0"),
        (VarifocalCriterion, {"alpha": -1.0}, r"alpha must lie in \[0, 1\], got -1.0; published is 0.75"),
        (VarifocalCriterion, {"gamma": -1.0}, "gamma must be 0, or at least 1, got -1.0; published is 2.0"),
        (QualityFocalCriterion, {"beta": 0.5}, "beta must be 0, or at least 1, got 0.5; published is 2.0"),
        (QualityFocalCriterion, {"overlap": "eiou"}, "overlap must be one of iou, .* got 'eiou'"),
        (VarifocalCriterion, {"labels": "soft"}, "labels must be one of either, overlap, quality, got 'soft'"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    make: Callable[..., Criterion], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(**settings)
