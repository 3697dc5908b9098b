"""Checks of criteria.

Each runs over several kinds of head, those that the criterion objects to left out, with matches that
are made here, so that no assigner takes part.

Shape letters: see ``batches``.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from detloom.structures import Assignment
from detloom.testing.batches import LAYOUTS, map_predictions, random_targets, some_matches
from detloom.testing.construction import Build, check_numbers, check_objections, check_signature, demand
from detloom.testing.criterion_trials import (
    Trial,
    demand_equal,
    demand_finite,
    demand_of_matches,
    gradients_of,
    learned,
    learning,
    total_of,
    trials_of,
    with_learned,
    with_value,
)

__all__ = ["CHECKS"]


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
    """A dict of names to scalars, finite for several classes and for one."""
    demand_of_matches(build, demand_finite, single_class=True)
    for trial in trials_of(build):
        single = trial.layout.predictions(trial.targets.num_images, num_classes=1)
        targets = replace(trial.targets, labels_T=torch.zeros_like(trial.targets.labels_T))
        demand_finite(replace(trial, predictions=single, targets=targets), "with one class")


def losses_without_matches_are_finite(build: Build) -> None:
    """A batch of background alone is learned from, too."""
    for trial in trials_of(build):
        none = torch.zeros(0, dtype=torch.int64)
        empty = Assignment(none, none, none, none.float())
        for targets in (trial.targets, random_targets((0, 0))):
            predictions = learning(trial.predictions)
            bare = replace(trial, predictions=predictions, assignment=empty, targets=targets)
            demand_finite(bare, "without matches")
            total = total_of(bare.losses())
            demand(total.requires_grad, f"{trial}: without matches there is no gradient; keep the logits in the sum")
            for name, gradient in gradients_of(total, predictions).items():
                demand(
                    gradient is None or gradient.isfinite().all(),
                    f"{trial}: without matches the gradient of {name} is not finite; divide by a count of at least 1",
                )


def gradient_reaches_boxes_and_classes(build: Build) -> None:
    """All that a matched prior predicts learns something, finite; distributions by their boxes or by themselves."""
    for trial in trials_of(build):
        predictions = learning(trial.predictions)
        total = total_of(replace(trial, predictions=predictions).losses())
        demand(total.requires_grad, f"{trial}: no loss has a gradient; compute them outside of torch.no_grad()")
        for name, gradient in gradients_of(total, predictions).items():
            reached = gradient is not None and bool((gradient != 0).any())
            demand(reached, f"{trial}: no gradient reaches {name}; it would never be learned: do not detach it")
            demand(gradient is not None and gradient.isfinite().all(), f"{trial}: the gradient of {name} is not finite")


def losses_do_not_grow_with_the_batch(build: Build) -> None:
    """The same images twice have the same losses, as these are means."""

    def demanded(trial: Trial) -> None:
        once, twice = trial.losses(), trial.twice().losses()
        for name, loss in once.items():
            demand(
                torch.allclose(loss, twice[name], rtol=1e-4, atol=1e-6),
                f"{trial}: '{name}' is {loss.item():.6g}, and {twice[name].item():.6g} for the same images twice; "
                "divide by a count of matches, qualities or images",
            )

    # A sum of qualities that losses are divided by is taken for 1 where it is less; that of three matches is more.
    demand_of_matches(build, demanded, fewest=3)


def ignored_priors_cost_nothing(build: Build) -> None:
    """What a prior without a match predicts plays no part where it is ignored."""

    def demanded(trial: Trial) -> None:
        ignored_BP = trial.is_free_BP()
        ignored_BP[:, ::2] = False
        before = trial.ignoring(ignored_BP)
        surer = map_predictions(
            trial.predictions,
            lambda values: with_value(values, ignored_BP, 5.0),
            ("class_logits_BPC", "objectness_BP"),
        )
        demand_equal(
            before,
            replace(before, predictions=surer),
            "depends on what ignored priors predict; leave out the class and objectness losses of ignored_BP",
        )

    demand_of_matches(build, demanded)


def ignoring_a_matched_prior_changes_nothing(build: Build) -> None:
    """``ignored_BP`` says nothing of matched priors."""

    def demanded(trial: Trial) -> None:
        of_matched_BP = ~trial.is_free_BP()
        demand_equal(
            trial.ignoring(torch.zeros_like(of_matched_BP)),
            trial.ignoring(of_matched_BP),
            "changes when a matched prior is marked as ignored; the mark counts for priors without a match alone",
        )

    demand_of_matches(build, demanded)


def quality_of_nan_makes_a_loss_nan(build: Build) -> None:
    """Assigners report NaN predictions so; the training stops at a loss of NaN."""
    for trial in trials_of(build):
        quality_M = trial.assignment.quality_M.clone()
        quality_M[0] = torch.nan
        losses = replace(trial, assignment=replace(trial.assignment, quality_M=quality_M)).losses()
        demand(
            total_of(losses).isnan(),
            f"{trial}: a match of quality NaN leaves the losses without NaN; use the quality in a loss, without "
            "clamping NaN away",
        )


def nan_predictions_make_a_loss_nan(build: Build) -> None:
    """NaN in what a matched prior predicts is not lost."""
    where = "do not replace NaN, and let no mask hide it"
    for trial in trials_of(build):
        matched_BP = ~trial.is_free_BP()
        for name, values in learned(trial.predictions).items():
            broken = replace(
                trial, predictions=with_learned(trial.predictions, {name: with_value(values, matched_BP, torch.nan)})
            )
            demand(
                total_of(broken.losses()).isnan(),
                f"{trial}: NaN in {name} of matched priors leaves the losses without NaN; {where}",
            )


def autocast_changes_no_loss(build: Build) -> None:
    """Losses are computed in float32 whatever the training runs in."""

    def demanded(trial: Trial) -> None:
        plain = trial.losses()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = trial.losses()
        for name, loss in plain.items():
            demand(
                torch.allclose(loss, cast[name].to(loss.dtype), rtol=1e-5, atol=1e-7),
                f"{trial}: '{name}' is {loss.item():.6g}, under autocast {cast[name].item():.6g}; compute under "
                "`with torch.autocast(device_type, enabled=False)`",
            )

    demand_of_matches(build, demanded)


def inputs_are_left_alone(build: Build) -> None:
    """Nothing given is changed in place."""
    for trial, fresh in zip(trials_of(build), trials_of(build), strict=True):
        trial.losses()
        for mine, theirs in zip(trial.tensors(), fresh.tensors(), strict=True):
            demand(torch.equal(mine, theirs), f"{trial}: an input was changed in place; work on a copy")


def auxiliary_outputs_on_some_levels_are_served(build: Build) -> None:
    """Auxiliary priors may lie on some lead levels alone; these keep their numbers."""
    for trial in trials_of(build):
        if trial.layout.levels > 1:
            predictions = trial.layout.predictions(2, priors=trial.layout.priors(without=(0,)))
            assignment = some_matches(predictions, trial.targets)
            demand_finite(
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
