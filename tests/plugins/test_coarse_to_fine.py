"""Coarse-to-fine assignment by hand, against a slow reference, and against the golden files."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detloom.assembly import assemble
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom_plugins.atss import AtssAssigner
from detloom_plugins.coarse_to_fine import CoarseToFineAssigner, is_among
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.yolov7_criterion import Yolov7Criterion

# Four cells of 8 pixels in a row; one target about the second cell's centre.
PRIORS = Priors.on_grids([(1, 4)], (8,), torch.full((1, 1, 2), 8.0))
TARGETS = Targets.from_lists([torch.tensor([[8.0, 0.0, 16.0, 8.0]])], [torch.tensor([0])], (8, 32))
TRAITS = HeadTraits(anchors=True, objectness=True, levels=1)


class Given(Assigner):
    """Match the only target with given priors."""

    def __init__(
        self, priors: list[int], qualities: list[float] | None = None, relaxed: Assigner | None = None
    ) -> None:
        self.priors = priors
        self.qualities = qualities or [1.0] * len(priors)
        self.form = relaxed

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:  # noqa: ARG002 - the matches are given
        none_M = torch.zeros(len(self.priors), dtype=torch.int64)
        return Assignment(none_M, torch.tensor(self.priors), none_M, torch.tensor(self.qualities))

    def relaxed(self) -> Assigner | None:
        return self.form

    def objection(self, head: HeadTraits) -> str | None:
        return "it wants objectness" if not head.objectness else None


def predictions() -> Predictions:
    return Predictions(PRIORS.boxes_P4[None], torch.zeros(1, 4, 1), torch.zeros(1, 4), PRIORS)


def qualities(**given_settings: Any) -> list[float]:
    """Return the qualities of priors 1 (fine), 0, 2 and 3 (extra), whose inner qualities are 0.9, 1, 1 and 0.8."""
    coarse = Given([1, 0, 2, 3], [0.9, 1.0, 1.0, 0.8])
    assigner = CoarseToFineAssigner(inner=Given([1]), coarse=coarse, **given_settings)
    return assigner.assign_auxiliary(predictions(), predictions(), TARGETS).quality_M.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_published_matches_and_losses(loss_case: Callable[[str], Any], seed: int) -> None:
    case = loss_case(f"p6-nc3-seed{seed}")
    lead, auxiliary = case.lead, case.auxiliary
    assigner = CoarseToFineAssigner(inner=Yolov7Assigner(candidates=20, published_ties=True))
    criterion = Yolov7Criterion(scale=case.targets.num_images, scale_gains=False, **case.settings(""))

    fine = assigner.assign(lead.detach(), case.targets)
    coarse = assigner.assign_auxiliary(lead.detach(), auxiliary.detach(), case.targets)
    of_lead = criterion.losses(lead, fine, case.targets)
    of_auxiliary = criterion.losses(auxiliary, coarse, case.targets)

    assert case.rows(fine) == case.golden_rows("lead")
    assert case.rows(coarse) == case.golden_rows("auxm")
    total = torch.stack([of_lead[key] + 0.25 * of_auxiliary[key] for key in of_lead]).sum()
    parts = [
        (of_lead[key] + 0.25 * of_auxiliary[key]).item() / case.targets.num_images
        for key in ("box", "objectness", "class")
    ]
    np.testing.assert_allclose(parts, case.arrays["aux_items"][:3], rtol=1e-5)
    np.testing.assert_allclose(total.item(), case.arrays["aux_total"][0], rtol=1e-5)
    for output, norms in enumerate(case.gradient_norms(total)):
        np.testing.assert_allclose(norms, case.arrays[f"aux_grad{output}"], rtol=1e-4, atol=1e-9)


def test_lead_matches_are_those_of_the_inner_method() -> None:
    assigner = CoarseToFineAssigner(inner=Given([1]), coarse=Given([0, 1, 2]))

    assert assigner.assign(predictions(), TARGETS).prior_M.tolist() == [1]
    assert assigner.assign_auxiliary(predictions(), predictions(), TARGETS).prior_M.tolist() == [0, 1, 2]


def test_coarse_method_is_the_relaxed_one_unless_another_is_given() -> None:
    inner = Given([1], relaxed=Given([1, 2]))

    relaxed = CoarseToFineAssigner(inner=inner).assign_auxiliary(predictions(), predictions(), TARGETS)
    other = CoarseToFineAssigner(inner=inner, coarse=Given([3])).assign_auxiliary(predictions(), predictions(), TARGETS)

    assert (relaxed.prior_M.tolist(), other.prior_M.tolist()) == ([1, 2], [3])


def test_without_bound_qualities_stay() -> None:
    assert qualities() == pytest.approx([0.9, 1.0, 1.0, 0.8])


def test_constant_bound_weakens_extra_matches_alone() -> None:
    assert qualities(bound="constant", bound_factor=0.25) == pytest.approx([0.9, 0.25, 0.25, 0.2])


def test_distance_bound_falls_with_the_distance_in_cells() -> None:
    # Cells 0 and 2 are one cell away from the target's centre, cell 3 two.
    assert qualities(bound="distance", bound_factor=0.5) == pytest.approx([0.9, 0.5, 0.5, 0.2])


@pytest.mark.parametrize("bound", ["none", "constant", "distance"])
def test_nan_qualities_stay_nan(bound: Any) -> None:
    coarse = Given([1, 0], [math.nan, math.nan])
    assigner = CoarseToFineAssigner(inner=Given([1]), coarse=coarse, bound=bound, bound_factor=0.0)

    found = assigner.assign_auxiliary(predictions(), predictions(), TARGETS)

    assert found.quality_M.isnan().all()


@pytest.mark.parametrize("bound", ["none", "constant", "distance"])
def test_objectness_learns_no_more_than_the_bound(bound: Any) -> None:
    assigner = CoarseToFineAssigner(inner=Given([1]), coarse=Given([1, 2]), bound=bound, bound_factor=0.5)
    # Every prior predicts the target's box, so that the overlap is 1.
    same = replace(predictions(), boxes_BP4=TARGETS.boxes_T4.expand(1, 4, 4).clone(), objectness_BP=torch.zeros(1, 4))
    assert same.objectness_BP is not None
    same.objectness_BP.requires_grad_()
    criterion = Yolov7Criterion(scale=1.0, scale_gains=False, balance=[4.0], overlap="iou")

    losses = criterion.losses(same, assigner.assign_auxiliary(same, same, TARGETS), TARGETS)
    (gradient_BP,) = torch.autograd.grad(losses["objectness"], same.objectness_BP)

    # Of a logit of 0 the gradient is 1/2 less what is learned.
    learned = (0.5 - gradient_BP[0]).tolist()
    assert learned == pytest.approx([0.0, 1.0, 1.0 if bound == "none" else 0.5, 0.0], abs=1e-5)


pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=20)


def matches(rows: list[tuple[int, int]]) -> Assignment:
    target_M = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    return Assignment(
        target_M // 2, torch.tensor([row[1] for row in rows], dtype=torch.int64), target_M, torch.ones(len(rows))
    )


@settings(deadline=None)
@given(pairs, pairs)
def test_membership_is_that_of_sets(rows: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    found = is_among(matches(rows), matches(others), num_priors=10)

    assert found.tolist() == [row in set(others) for row in rows]


@pytest.mark.parametrize("bound", ["none", "constant", "distance"])
def test_batch_without_objects_has_no_matches(bound: Any) -> None:
    nothing = Targets.from_lists([torch.zeros(0, 4)], [torch.zeros(0)], (8, 32))
    assigner = CoarseToFineAssigner(inner=Yolov7Assigner(), bound=bound)

    assert assigner.assign_auxiliary(predictions(), predictions(), nothing).num_matches == 0


def test_inner_method_without_relaxed_form_is_refused() -> None:
    assigner = CoarseToFineAssigner(inner=Given([1]))

    assert "say with `coarse = { use = ... }`" in (assigner.objection(TRAITS) or "")
    with pytest.raises(RecipeError, match="no relaxed form"):
        assigner.assign_auxiliary(predictions(), predictions(), TARGETS)


def test_objections_of_both_methods_are_forwarded() -> None:
    without = HeadTraits(anchors=True, objectness=False)

    for assigner in (
        CoarseToFineAssigner(inner=Given([1]), coarse=AtssAssigner()),
        CoarseToFineAssigner(inner=AtssAssigner(), coarse=Given([1])),
    ):
        assert assigner.objection(TRAITS) is None
        assert assigner.objection(without) == "it wants objectness"


def test_relaxed_form_is_the_coarse_method() -> None:
    coarse = Given([1, 2])

    assert CoarseToFineAssigner(inner=Given([1]), coarse=coarse).relaxed() is coarse


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [("bound", "linear", "none, constant, distance"), ("bound_factor", 1.5, r"\[0, 1\]")],
)
def test_wrong_settings_are_refused(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} must .*{accepted}"):
        CoarseToFineAssigner(inner=Yolov7Assigner(), **{name: value})


@pytest.mark.parametrize("name", ["yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e"])
def test_published_models_are_assigned_coarse_to_fine(name: str) -> None:
    with torch.device("meta"):
        assigner = assemble(name).assigner

    assert isinstance(assigner, CoarseToFineAssigner)
    assert isinstance(assigner.inner, Yolov7Assigner)
    assert (assigner.inner.candidates, assigner.inner.reach, assigner.bound) == (20, 0.5, "none")
    coarse = assigner.relaxed()
    assert isinstance(coarse, Yolov7Assigner)
    assert (coarse.candidates, coarse.reach) == (20, 1.0)
