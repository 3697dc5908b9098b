"""Checks of criteria.

Each runs over several kinds of head, those that the criterion objects to left out, with matches that
are made here, so that no assigner takes part.

Shape letters: see ``batches``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detloom.errors import PluginError
from detloom.interfaces import Criterion
from detloom.results import check_losses
from detloom.structures import Assignment, Predictions, Targets
from detloom.testing.batches import (
    LAYOUTS,
    Layout,
    map_predictions,
    random_targets,
    some_matches,
    twice,
    with_boxes_of_distributions,
)
from detloom.testing.construction import Build, check_numbers, check_objections, check_signature, demand

__all__ = ["CHECKS"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A criterion on one kind of head, with ordinary matches."""

    criterion: Criterion
    layout: Layout
    predictions: Predictions
    assignment: Assignment
    targets: Targets

    def __str__(self) -> str:
        """Return where a complaint lies."""
        return f"losses on {self.layout}"

    def losses(self) -> Mapping[str, Tensor]:
        """Return what the criterion returns."""
        return self.criterion.losses(self.predictions, self.assignment, self.targets)


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A weight of -1 is a mistake of a recipe, and is said to be one."""
    check_numbers(build)


def objection_is_a_reason_or_none(build: Build) -> None:
    """A refused head is told why, and some head is served."""
    criterion = build()
    check_objections(criterion.objection(layout.traits()) for layout in LAYOUTS)


def losses_are_named_finite_numbers(build: Build) -> None:
    """A dict of names to scalars, finite for three classes and for one."""
    for trial in _trials(build):
        _demand_finite(trial)
        single = trial.layout.predictions(trial.targets.num_images, num_classes=1)
        targets = replace(trial.targets, labels_T=torch.zeros_like(trial.targets.labels_T))
        _demand_finite(replace(trial, predictions=single, targets=targets), "with one class")


def losses_without_matches_are_finite(build: Build) -> None:
    """A batch of background alone is learned from, too."""
    for trial in _trials(build):
        none = torch.zeros(0, dtype=torch.int64)
        empty = Assignment(none, none, none, none.float())
        for targets in (trial.targets, random_targets((0, 0))):
            predictions = _learning(trial.predictions)
            bare = replace(trial, predictions=predictions, assignment=empty, targets=targets)
            _demand_finite(bare, "without matches")
            total = _total(bare.losses())
            demand(total.requires_grad, f"{trial}: without matches there is no gradient; keep the logits in the sum")
            for name, gradient in _gradients(total, predictions).items():
                demand(
                    gradient is None or gradient.isfinite().all(),
                    f"{trial}: without matches the gradient of {name} is not finite; divide by a count of at least 1",
                )


def gradient_reaches_boxes_and_classes(build: Build) -> None:
    """All that a matched prior predicts learns something, finite; distributions by their boxes or by themselves."""
    for trial in _trials(build):
        predictions = _learning(trial.predictions)
        total = _total(replace(trial, predictions=predictions).losses())
        demand(total.requires_grad, f"{trial}: no loss has a gradient; compute them outside of torch.no_grad()")
        for name, gradient in _gradients(total, predictions).items():
            reached = gradient is not None and bool((gradient != 0).any())
            demand(reached, f"{trial}: no gradient reaches {name}; it would never be learned: do not detach it")
            demand(gradient is not None and gradient.isfinite().all(), f"{trial}: the gradient of {name} is not finite")


def losses_do_not_grow_with_the_batch(build: Build) -> None:
    """The same images twice have the same losses, as these are means."""
    for trial in _trials(build):
        twice = _twice(trial)
        for name, loss in trial.losses().items():
            other = twice.losses()[name]
            demand(
                torch.allclose(loss, other, rtol=1e-4, atol=1e-6),
                f"{trial}: '{name}' is {loss.item():.6g}, and {other.item():.6g} for the same images twice; divide by "
                "a count of matches, qualities or images",
            )


def ignored_priors_cost_nothing(build: Build) -> None:
    """What a prior without a match predicts plays no part where it is ignored."""
    for trial in _trials(build):
        ignored_BP = _is_free(trial)
        ignored_BP[:, ::2] = False
        before = replace(trial, assignment=replace(trial.assignment, ignored_BP=ignored_BP))
        surer = map_predictions(
            trial.predictions,
            lambda values, where=ignored_BP: _with(values, where, 5.0),  # type: ignore[misc]  # a default binds it
            ("class_logits_BPC", "objectness_BP"),
        )
        _demand_equal(
            before,
            replace(before, predictions=surer),
            "depends on what ignored priors predict; leave out the class and objectness losses of ignored_BP",
        )


def ignoring_a_matched_prior_changes_nothing(build: Build) -> None:
    """``ignored_BP`` says nothing of matched priors."""
    for trial in _trials(build):
        of_matched_BP = ~_is_free(trial)
        none = replace(trial, assignment=replace(trial.assignment, ignored_BP=torch.zeros_like(of_matched_BP)))
        _demand_equal(
            none,
            replace(trial, assignment=replace(trial.assignment, ignored_BP=of_matched_BP)),
            "changes when a matched prior is marked as ignored; the mark counts for priors without a match alone",
        )


def quality_of_nan_makes_a_loss_nan(build: Build) -> None:
    """Assigners report NaN predictions so; the training stops at a loss of NaN."""
    for trial in _trials(build):
        quality_M = trial.assignment.quality_M.clone()
        quality_M[0] = torch.nan
        losses = replace(trial, assignment=replace(trial.assignment, quality_M=quality_M)).losses()
        demand(
            _total(losses).isnan(),
            f"{trial}: a match of quality NaN leaves the losses without NaN; use the quality in a loss, without "
            "clamping NaN away",
        )


def nan_predictions_make_a_loss_nan(build: Build) -> None:
    """NaN in what a matched prior predicts is not lost."""
    where = "do not replace NaN, and let no mask hide it"
    for trial in _trials(build):
        matched_BP = ~_is_free(trial)
        for name, values in _learned(trial.predictions).items():
            broken = replace(
                trial, predictions=_with_learned(trial.predictions, {name: _with(values, matched_BP, torch.nan)})
            )
            demand(
                _total(broken.losses()).isnan(),
                f"{trial}: NaN in {name} of matched priors leaves the losses without NaN; {where}",
            )


def autocast_changes_no_loss(build: Build) -> None:
    """Losses are computed in float32 whatever the training runs in."""
    for trial in _trials(build):
        plain = trial.losses()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = trial.losses()
        for name, loss in plain.items():
            demand(
                torch.allclose(loss, cast[name].to(loss.dtype), rtol=1e-5, atol=1e-7),
                f"{trial}: '{name}' is {loss.item():.6g}, under autocast {cast[name].item():.6g}; compute under "
                "`with torch.autocast(device_type, enabled=False)`",
            )


def inputs_are_left_alone(build: Build) -> None:
    """Nothing given is changed in place."""
    for trial, fresh in zip(_trials(build), _trials(build), strict=True):
        trial.losses()
        for mine, theirs in zip(_tensors(trial), _tensors(fresh), strict=True):
            demand(torch.equal(mine, theirs), f"{trial}: an input was changed in place; work on a copy")


def auxiliary_outputs_on_some_levels_are_served(build: Build) -> None:
    """Auxiliary priors may lie on some lead levels alone; these keep their numbers."""
    for trial in _trials(build):
        if trial.layout.levels > 1:
            predictions = trial.layout.predictions(2, priors=trial.layout.priors(without=(0,)))
            assignment = some_matches(predictions, trial.targets)
            _demand_finite(
                replace(trial, predictions=predictions, assignment=assignment),
                "with priors on all levels but the finest; use Grid.level, not its place among the grids",
            )


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    objection_is_a_reason_or_none,
    losses_are_named_finite_numbers,
    losses_without_matches_are_finite,
    gradient_reaches_boxes_and_classes,
    losses_do_not_grow_with_the_batch,
    ignored_priors_cost_nothing,
    ignoring_a_matched_prior_changes_nothing,
    quality_of_nan_makes_a_loss_nan,
    nan_predictions_make_a_loss_nan,
    autocast_changes_no_loss,
    inputs_are_left_alone,
    auxiliary_outputs_on_some_levels_are_served,
)


def _trials(build: Build) -> Iterator[Trial]:
    """Yield a trial on every kind of head that is served."""
    for layout in LAYOUTS:
        criterion = build()
        if criterion.objection(layout.traits()) is None:
            targets = random_targets((4, 5))
            predictions = layout.predictions(targets.num_images, seed=1)
            yield Trial(criterion, layout, predictions, some_matches(predictions, targets), targets)


def _demand_finite(trial: Trial, how: str = "") -> None:
    where = f"{trial} {how}".strip()
    losses = trial.losses()
    try:
        check_losses(losses, trial.criterion)
    except PluginError as error:
        raise AssertionError(f"{where}: {error}") from error
    for name, loss in losses.items():
        demand(loss.isfinite(), f"{where}: '{name}' is {loss.item()}; divide by a count of at least 1")


def _demand_equal(first: Trial, second: Trial, complaint: str) -> None:
    other = second.losses()
    for name, loss in first.losses().items():
        demand(torch.allclose(loss, other[name], rtol=1e-6, atol=0), f"{first}: '{name}' {complaint}")


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _learned(predictions: Predictions) -> dict[str, Tensor]:
    """Return what a head learns; where sides are distributions, boxes follow from these."""
    names = ("class_logits_BPC", "objectness_BP", "distribution_BP4R")
    found = {name: getattr(predictions, name) for name in names if getattr(predictions, name) is not None}
    return found if "distribution_BP4R" in found else {"boxes_BP4": predictions.boxes_BP4, **found}


def _learning(predictions: Predictions) -> Predictions:
    return _with_learned(
        predictions, {name: values.clone().requires_grad_() for name, values in _learned(predictions).items()}
    )


def _with_learned(predictions: Predictions, changed: dict[str, Any]) -> Predictions:
    return with_boxes_of_distributions(replace(predictions, **changed))


def _gradients(total: Tensor, predictions: Predictions) -> dict[str, Tensor | None]:
    inputs = _learned(predictions)
    return dict(zip(inputs, torch.autograd.grad(total, list(inputs.values()), allow_unused=True), strict=True))


def _is_free(trial: Trial) -> Tensor:
    """Return ``[B, P]``: whether a prior has no match."""
    free_BP = torch.ones(trial.predictions.boxes_BP4.shape[:2], dtype=torch.bool)
    free_BP[trial.assignment.image_M, trial.assignment.prior_M] = False
    return free_BP


def _with(values: Tensor, where_BP: Tensor, value: float) -> Tensor:
    changed = values.clone()
    changed[where_BP] = value
    return changed


def _twice(trial: Trial) -> Trial:
    """Return the same batch twice over, as one."""
    targets, given, images = trial.targets, trial.assignment, trial.targets.num_images
    return replace(
        trial,
        predictions=map_predictions(trial.predictions, lambda values: torch.cat((values, values))),
        assignment=Assignment(
            torch.cat((given.image_M, given.image_M + images)),
            torch.cat((given.prior_M, given.prior_M)),
            torch.cat((given.target_M, given.target_M + targets.num_targets)),
            torch.cat((given.quality_M, given.quality_M)),
        ),
        targets=twice(targets),
    )


def _tensors(trial: Trial) -> list[Tensor]:
    given, targets = trial.assignment, trial.targets
    names = ("boxes_BP4", "class_logits_BPC", "objectness_BP", "distribution_BP4R")
    found = [getattr(trial.predictions, name) for name in names]
    found += [given.image_M, given.prior_M, given.target_M, given.quality_M, targets.boxes_T4, targets.labels_T]
    return [each for each in found if each is not None]
