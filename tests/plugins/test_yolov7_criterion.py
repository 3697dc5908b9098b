"""The losses of YOLOv7 by hand and against the golden files."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from detloom.errors import RecipeError
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom_plugins import yolov7_criterion
from detloom_plugins.anchor_ratio import AnchorRatioAssigner
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.yolov7_criterion import Yolov7Criterion

FAMILIES = ["p5-nc3", "p5-nc80", "p6-nc3"]
VARIANTS = ["", "smooth_", "focal_"]


def published(case: Any, variant: str = "") -> Yolov7Criterion:
    """Return a criterion with the gains in force, times the batch size as the totals are."""
    return Yolov7Criterion(scale=case.targets.num_images, scale_gains=False, **case.settings(variant))


def check(case: Any, losses: dict[str, torch.Tensor], name: str) -> None:
    """Compare parts, total and norms of gradients with a golden file's."""
    total = torch.stack(list(losses.values())).sum()
    norms = case.gradient_norms(total)
    parts = [losses[key].item() / case.targets.num_images for key in ("box", "objectness", "class")]

    np.testing.assert_allclose(parts, case.arrays[f"{name}_items"][:3], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(total.item(), case.arrays[f"{name}_total"][0], rtol=1e-5)
    for mine, golden in zip(norms, _golden_norms(case, name, len(norms)), strict=True):
        np.testing.assert_allclose(mine, golden, rtol=1e-4, atol=1e-9)


def _golden_norms(case: Any, name: str, outputs: int) -> list[Any]:
    nothing = np.zeros(5)
    return [case.arrays.get(f"{name}_grad{i}", nothing) for i in range(outputs)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_published_losses_with_dynamic_k(loss_case: Callable[[str], Any], family: str, seed: int, variant: str) -> None:
    case = loss_case(f"{family}-seed{seed}")
    predictions = case.lead
    assignment = Yolov7Assigner(published_ties=True).assign(predictions, case.targets)

    losses = published(case, variant).losses(predictions, assignment, case.targets)

    check(case, losses, f"{variant}ota")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_published_losses_with_fixed_assignment(
    loss_case: Callable[[str], Any], family: str, seed: int, variant: str
) -> None:
    case = loss_case(f"{family}-seed{seed}")

    losses = published(case, variant).losses(
        case.lead, AnchorRatioAssigner().assign(case.lead, case.targets), case.targets
    )

    check(case, losses, f"{variant}plain")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_published_losses_with_auxiliary_outputs(loss_case: Callable[[str], Any], seed: int, variant: str) -> None:
    case = loss_case(f"p6-nc3-seed{seed}")
    criterion, lead, auxiliary = published(case, variant), case.lead, case.auxiliary
    fine = Yolov7Assigner(candidates=20, reach=0.5, published_ties=True).assign(lead, case.targets)
    coarse = Yolov7Assigner(candidates=20, reach=1.0, published_ties=True).assign(lead, case.targets)

    of_lead = criterion.losses(lead, fine, case.targets)
    of_auxiliary = criterion.losses(auxiliary, coarse, case.targets)

    check(case, {key: of_lead[key] + 0.25 * of_auxiliary[key] for key in of_lead}, f"{variant}aux")


@pytest.mark.parametrize("name", ["empty-nc3-seed0", "empty-nc3-seed1"])
def test_published_losses_without_any_object(loss_case: Callable[[str], Any], name: str) -> None:
    case = loss_case(name)
    nominal = loss_case("p5-nc3-seed0")
    assignment = Yolov7Assigner(published_ties=True).assign(case.lead, case.targets)
    criterion = Yolov7Criterion(scale=case.targets.num_images, scale_gains=False, **nominal.settings(""))

    losses = criterion.losses(case.lead, assignment, case.targets)

    check(case, losses, "ota")


@pytest.mark.parametrize("seed", range(2))
def test_published_losses_of_wide_images_with_fixed_assignment(loss_case: Callable[[str], Any], seed: int) -> None:
    # The dynamic assignment of wide images is not compared: see the test of the assigner.
    case = loss_case(f"wide-nc3-seed{seed}")
    predictions = case.lead
    # These files name no gains; the parts of the published sum tell them, once the means are right.
    criterion = Yolov7Criterion(box=1, objectness=1, classes=1, scale=1, scale_gains=False)
    golden = case.arrays["plain_items"]

    losses = criterion.losses(predictions, AnchorRatioAssigner().assign(case.lead, case.targets), case.targets)

    assert golden[0] / losses["box"].item() == pytest.approx(0.05, rel=1e-5)
    ratio = {key: golden[i] / losses[key].item() for i, key in enumerate(("box", "objectness", "class"))}
    total = torch.stack([losses[key] * ratio[key] for key in ratio]).sum() * case.targets.num_images
    norms = case.gradient_norms(total)
    np.testing.assert_allclose(norms, [case.arrays[f"plain_grad{i}"] for i in range(3)], rtol=1e-4)


@pytest.mark.parametrize("name", ["nl3_size128_nc5_seed11", "nl4_size256_nc5_seed12", "nl3_size128_nc1_seed13"])
def test_losses_of_the_description(described_case: Callable[[str], Any], name: str) -> None:
    case, numbers = described_case(name)
    gains = numbers["setup"]["scaled_gains"]
    criterion = Yolov7Criterion(
        box=gains["box"], objectness=gains["obj"], classes=gains["cls"], scale=1, scale_gains=False
    )

    plain_losses = criterion.losses(case.lead, AnchorRatioAssigner().assign(case.lead, case.targets), case.targets)
    if "ota_q10" in numbers:
        golden, matches = numbers["ota_q10"], Yolov7Assigner(published_ties=True).assign(case.lead, case.targets)
        dynamic = criterion.losses(case.lead, matches, case.targets)
    else:
        golden, lead = numbers["aux_ota_q20"], case.lead
        fine, coarse = (
            Yolov7Assigner(candidates=20, reach=r, published_ties=True).assign(lead, case.targets) for r in (0.5, 1.0)
        )
        dynamic = criterion.losses(lead, fine, case.targets)
        coarse_losses = criterion.losses(case.auxiliary, coarse, case.targets)
        dynamic = {key: dynamic[key] + 0.25 * coarse_losses[key] for key in dynamic}

    for losses, expected in ((plain_losses, numbers["plain"]), (dynamic, golden)):
        parts = [losses[key].item() for key in ("box", "objectness", "class")]
        np.testing.assert_allclose(parts, expected["items_box_obj_cls_sum"][:3], rtol=1e-5)


PRIORS = Priors.on_grids([(2, 2), (1, 1), (1, 1)], (8, 16, 16), torch.full((3, 1, 2), 8.0))
TARGETS = Targets.from_lists([torch.tensor([[0.0, 0.0, 8.0, 8.0]])], [torch.tensor([1])], (16, 16))


def predictions(*, num_classes: int = 2) -> Predictions:
    """Return predictions of a tiny head: all logits 0, all boxes half of the target's."""
    boxes_BP4 = torch.tensor([0.0, 0.0, 4.0, 8.0]).expand(1, 6, 4).clone().requires_grad_()
    logits_BPC = torch.zeros(1, 6, num_classes, requires_grad=True)
    return Predictions(boxes_BP4, logits_BPC, torch.zeros(1, 6, requires_grad=True), PRIORS)


def assignment(priors: list[int], quality: list[float] | None = None) -> Assignment:
    """Return matches of the only target."""
    zeros = torch.zeros(len(priors), dtype=torch.int64)
    return Assignment(
        zeros, torch.tensor(priors, dtype=torch.int64), zeros, torch.tensor(quality or [1.0] * len(priors))
    )


def plain(**settings: Any) -> Yolov7Criterion:
    """Return a criterion whose gains are 1."""
    given: dict[str, Any] = {
        "box": 1.0,
        "objectness": 1.0,
        "classes": 1.0,
        "scale": 1.0,
        "scale_gains": False,
        "overlap": "iou",
    }
    return Yolov7Criterion(**(given | settings))


def test_means_are_taken_level_by_level() -> None:
    losses = plain().losses(predictions(), assignment([0, 1, 4]), TARGETS)

    # Half a box is missing from each match: two levels with a mean of one half.
    assert losses["box"].item() == pytest.approx(1.0, abs=1e-5)
    assert losses["class"].item() == pytest.approx(2 * math.log(2), abs=1e-5)


def test_objectness_is_balanced_between_levels() -> None:
    losses = plain(balance=[3.0, 2.0, 1.0]).losses(predictions(), assignment([]), TARGETS)

    assert losses["objectness"].item() == pytest.approx(6 * math.log(2), abs=1e-5)


def test_levels_of_a_part_weigh_as_among_all() -> None:
    # Levels 0 and 2 of three: four priors and one.
    sizes_LA2 = torch.full((3, 1, 2), 8.0)
    part = Priors.on_grids([(2, 2), None, (1, 1)], (8, 16, 16), sizes_LA2)
    kept = torch.tensor([0, 1, 2, 3, 5])
    whole = predictions()
    assert whole.objectness_BP is not None
    some = Predictions(whole.boxes_BP4[:, kept], whole.class_logits_BPC[:, kept], whole.objectness_BP[:, kept], part)
    criterion = plain(scale_gains=True)

    on_all = criterion.losses(whole, assignment([0, 5]), TARGETS)
    on_some = criterion.losses(some, assignment([0, 4]), TARGETS)
    middle = torch.autograd.grad(on_all["objectness"], whole.objectness_BP, retain_graph=True)[0][0, 4].item()

    assert on_some["box"].item() == pytest.approx(on_all["box"].item())
    assert on_some["class"].item() == pytest.approx(on_all["class"].item())
    # All of the middle level is negative: log 2 for a logit of 0, whose gradient is one half.
    rest = on_all["objectness"].item() - 2 * middle * math.log(2)
    assert on_some["objectness"].item() == pytest.approx(rest)


def test_losses_do_not_grow_with_the_batch() -> None:
    given, matches = predictions(), assignment([0, 4])
    twice = Predictions(
        given.boxes_BP4.repeat(2, 1, 1), given.class_logits_BPC.repeat(2, 1, 1), torch.zeros(2, 6), PRIORS
    )
    both = Assignment(torch.tensor([0, 0, 1, 1]), matches.prior_M.repeat(2), torch.tensor([0, 0, 1, 1]), torch.ones(4))
    wanted = Targets.from_lists([TARGETS.boxes_T4] * 2, [TARGETS.labels_T] * 2, (16, 16))

    once = plain().losses(given, matches, TARGETS)

    for key, value in plain().losses(twice, both, wanted).items():
        assert value.item() == pytest.approx(once[key].item(), rel=1e-5)


def objectness_gradient(criterion: Yolov7Criterion, matches: Assignment) -> list[float]:
    """Return what the objectness of each prior learns, read off its gradient and its share in the mean."""
    given = predictions()
    assert given.objectness_BP is not None
    (gradient,) = torch.autograd.grad(criterion.losses(given, matches, TARGETS)["objectness"], given.objectness_BP)
    share_P = torch.tensor([1 / 4] * 4 + [1.0, 1.0])
    return [round(value, 4) for value in (0.5 - gradient[0] / share_P).tolist()]


def test_objectness_learns_the_overlap() -> None:
    learned = objectness_gradient(plain(balance=[1, 1, 1]), assignment([1]))

    assert learned == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_objectness_learns_no_more_than_the_quality() -> None:
    learned = objectness_gradient(plain(balance=[1, 1, 1]), assignment([0, 4], [0.3, 0.9]))

    assert learned == [0.3, 0.0, 0.0, 0.0, 0.5, 0.0]


def test_hard_objectness_learns_the_quality() -> None:
    learned = objectness_gradient(plain(balance=[1, 1, 1], soft_objectness=0.0), assignment([0, 4], [0.3, 1.0]))

    assert learned == [0.3, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_last_match_of_a_prior_says_what_its_objectness_learns() -> None:
    learned = objectness_gradient(plain(balance=[1, 1, 1]), assignment([2, 2, 2], [0.1, 0.4, 0.2]))

    assert learned == [0.0, 0.0, 0.2, 0.0, 0.0, 0.0]


def test_ignored_priors_learn_no_objectness_unless_they_are_matched() -> None:
    given = predictions()
    assert given.objectness_BP is not None
    ignored_BP = torch.tensor([[True, True, False, False, False, True]])
    matches = replace(assignment([1]), ignored_BP=ignored_BP)

    loss = plain(balance=[1, 1, 1]).losses(given, matches, TARGETS)["objectness"]
    (gradient_BP,) = torch.autograd.grad(loss, given.objectness_BP)

    assert gradient_BP.ne(0).tolist() == [[False, False, True, True, True, False]]
    # Prior 1 learns an overlap of one half, which it has: its loss is log 2, as that of the others.
    assert loss.item() == pytest.approx((3 / 4 + 1) * math.log(2), abs=1e-4)


def test_gains_fit_levels_classes_and_image_size() -> None:
    raw = plain().losses(predictions(), assignment([0]), TARGETS)

    scaled = plain(scale_gains=True, scale=10.0).losses(predictions(), assignment([0]), TARGETS)

    assert scaled["box"].item() == pytest.approx(10 * raw["box"].item())
    assert scaled["class"].item() == pytest.approx(10 * 2 / 80 * raw["class"].item())
    assert scaled["objectness"].item() == pytest.approx(10 * (16 / 640) ** 2 * raw["objectness"].item())


def test_single_class_is_not_learned() -> None:
    given = predictions(num_classes=1)

    losses = plain().losses(given, assignment([0]), TARGETS)

    assert losses["class"].item() == 0
    (gradient,) = torch.autograd.grad(losses["class"], given.class_logits_BPC)
    assert gradient.eq(0).all()


def test_nan_quality_makes_the_losses_nan() -> None:
    losses = plain().losses(predictions(), assignment([0], [math.nan]), TARGETS)

    assert losses["objectness"].isnan()


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = plain().losses(predictions(), assignment([0, 4]), TARGETS)

    for key, value in plain().losses(predictions(), assignment([0, 4]), TARGETS).items():
        assert under[key].dtype == torch.float32
        assert under[key].item() == value.item()


def test_counts_are_means_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = plain().losses(predictions(), assignment([0, 4]), TARGETS)
    # The other processes together have as many matches and images as to double every mean.
    monkeypatch.setattr(yolov7_criterion, "mean_over_processes", lambda counts: 2.0 * counts)

    shared = plain().losses(predictions(), assignment([0, 4]), TARGETS)

    for key, value in alone.items():
        assert shared[key].item() == pytest.approx(value.item() / 2)


def test_heads_without_objectness_are_refused() -> None:
    traits = HeadTraits(anchors=True, objectness=False)

    assert "objectness" in (Yolov7Criterion().objection(traits) or "")
    with pytest.raises(RecipeError, match="objectness"):
        Yolov7Criterion().losses(replace(predictions(), objectness_BP=None), assignment([]), TARGETS)


@pytest.mark.parametrize(
    ("balance", "levels", "objects"),
    [
        (None, 3, False),
        (None, 4, False),
        (None, 5, False),
        (None, 6, True),
        ((1.0, 1.0), 3, True),
        ((1.0, 1.0), 2, False),
    ],
)
def test_every_level_needs_a_weight(balance: tuple[float, ...] | None, levels: int, *, objects: bool) -> None:
    traits = HeadTraits(anchors=True, objectness=True, levels=levels)

    assert (Yolov7Criterion(balance=balance).objection(traits) is not None) == objects


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("overlap", "eiou", "iou, giou"),
        ("label_smoothing", 2.0, r"\[0, 1\]"),
        ("soft_objectness", -1.0, r"\[0, 1\]"),
        ("box", -1.0, "not be negative"),
        ("scale", -1.0, "not be negative"),
        ("class_positive_weight", -1.0, "not be negative"),
        ("balance", (1.0, -1.0, 1.0), "no negative"),
        ("focal_gamma", -1.0, "at least 1"),
        ("focal_gamma", 0.5, "at least 1"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} must .*{accepted}.* got"):
        Yolov7Criterion(**{name: value})
