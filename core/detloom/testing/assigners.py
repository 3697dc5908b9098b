"""Checks of assigners.

Each runs over several kinds of head, those that the assigner objects to left out, and over all ways to
ask for matches: ``assign``, ``assign_auxiliary``, and both of the relaxed form.

Shape letters: see ``batches``.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from detloom.errors import DetloomError
from detloom.interfaces import Assigner
from detloom.structures import Assignment
from detloom.testing.assigner_trials import (
    Trial,
    demand_of_batches,
    demand_of_drawn,
    demand_probabilities,
    demand_same,
    edge_batch,
    ordinary_batch,
    tensors_of,
    trials_of,
)
from detloom.testing.batches import LAYOUTS, Batch, random_targets, rows_of
from detloom.testing.construction import Build, check_numbers, check_objections, check_signature, demand

__all__ = ["CHECKS"]


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A count of -1 is a mistake of a recipe, and is said to be one."""
    check_numbers(build)


def objection_is_a_reason_or_none(build: Build) -> None:
    """A refused head is told why, and some head is served."""
    assigner = build()
    check_objections(assigner.objection(layout.traits(one_to_one=assigner.one_to_one)) for layout in LAYOUTS)


def matches_are_a_valid_assignment(build: Build) -> None:
    """Types, shapes and indices are those of the contract."""
    demand_of_batches(build, "ordinary", _demand_valid)


def ordinary_objects_are_learned(build: Build) -> None:
    """An assigner that finds no match at all teaches nothing."""
    counts: dict[str, int] = {}
    for trial in trials_of(build):
        # A method may find nothing on some kind of head, as where no prior overlaps an object by enough.
        counts[trial.way] = counts.get(trial.way, 0) + trial.matches(ordinary_batch(trial)).num_matches
    for way, count in counts.items():
        demand(count, f"{way}: 9 objects of ordinary sizes have no match on any kind of head; nothing would be learned")


def batch_without_objects_has_no_matches(build: Build) -> None:
    """Pictures of background alone are common in a batch of one or two."""
    for trial in trials_of(build):
        count = trial.valid_matches(edge_batch(trial, "none")).num_matches
        demand(count == 0, f"{trial}: a batch without objects has {count} matches; return an empty Assignment")


def image_without_objects_has_no_matches(build: Build) -> None:
    """An image without objects among others counts in the batch, and has no rows."""

    def demanded(trial: Trial, batch: Batch) -> None:
        image_M = trial.valid_matches(batch).image_M
        wrong = int((~torch.isin(image_M, batch.targets.image_T)).sum())
        demand(wrong == 0, f"{trial}: {wrong} matches in images without objects; check how padding is masked")

    demand_of_batches(build, "none in some images", demanded)


def hundreds_of_objects_in_an_image_are_served(build: Build) -> None:
    """A crowd of 210 beside an image with one object."""
    for trial in trials_of(build):
        _demand_valid(trial, edge_batch(trial, "hundreds"))


def equal_objects_are_served(build: Build) -> None:
    """Data sets hold the same box twice, with the same label and with another."""
    demand_of_batches(build, "equal", _demand_valid)


def objects_at_the_border_are_served(build: Build) -> None:
    """Boxes in corners and along edges, where neighbouring cells are missing."""
    demand_of_batches(build, "border", _demand_valid)


def objects_larger_than_the_image_are_served(build: Build) -> None:
    """Boxes as large as the image, and beyond it."""
    demand_of_batches(build, "large", _demand_valid)


def objects_one_pixel_wide_are_served(build: Build) -> None:
    """Boxes that may overlap nothing and hold no prior's centre."""
    demand_of_batches(build, "thin", _demand_valid)


def objects_all_of_one_class_are_served(build: Build) -> None:
    """A row of objects of the last class, none of the others."""
    demand_of_batches(build, "one class", _demand_valid)


def order_of_objects_does_not_matter(build: Build) -> None:
    """Distinct objects listed in another order have the same matches."""

    def demanded(trial: Trial, batch: Batch) -> None:
        targets = batch.targets
        # Reversed within each image.
        order_T = (targets.image_T * targets.num_targets - torch.arange(targets.num_targets)).argsort()
        turned = replace(targets, boxes_T4=targets.boxes_T4[order_T], labels_T=targets.labels_T[order_T])
        listed, reversed_ = trial.matches(batch), trial.matches(replace(batch, targets=turned))
        renamed = replace(reversed_, target_M=order_T[reversed_.target_M])
        demand_same(trial, listed, renamed, "objects listed in reverse order", "settle ties by values, not by position")

    demand_of_batches(build, "ordinary", demanded)


def images_do_not_affect_each_other(build: Build) -> None:
    """Matches of an image are the same alone and in a batch."""

    def demanded(trial: Trial, batch: Batch) -> None:
        together = trial.matches(batch)
        for image in range(batch.targets.num_images):
            single, first = batch.alone(image)
            alone = trial.matches(single)
            moved = replace(alone, image_M=alone.image_M + image, target_M=alone.target_M + first)
            chosen_M = together.image_M == image
            of_image = Assignment(
                *(
                    column[chosen_M]
                    for column in (together.image_M, together.prior_M, together.target_M, together.quality_M)
                )
            )
            demand_same(
                trial, of_image, moved, "an image alone", "let nothing of one image enter another, padding least"
            )

    demand_of_batches(build, "ordinary", demanded)


def same_input_gives_the_same_matches(build: Build) -> None:
    """No state and no global randomness takes part."""
    for trial in trials_of(build):
        batch = ordinary_batch(trial)
        first = trial.matches(batch)
        trial.matches(edge_batch(trial, "border"))
        torch.rand(1)
        again = trial.matches(batch)
        same = rows_of(first) == rows_of(again)
        demand(same, f"{trial}: a second call gives other matches; keep no state and draw no random numbers")


def inputs_are_left_alone(build: Build) -> None:
    """Nothing given is changed in place."""
    for trial in trials_of(build):
        batch = ordinary_batch(trial)
        trial.matches(batch)
        fresh = ordinary_batch(trial)
        for mine, theirs in zip(tensors_of(batch), tensors_of(fresh), strict=True):
            demand(torch.equal(mine, theirs), f"{trial}: an input was changed in place; work on a copy")


def no_gradient_flows_through_matches(build: Build) -> None:
    """Matches are data to the losses."""
    for trial in trials_of(build):
        batch = ordinary_batch(trial).mapped(lambda values: values.clone().requires_grad_())
        result = trial.matches(batch)
        quality_M = result.quality_M
        demand(not quality_M.requires_grad, f"{trial}: quality_M has a gradient; put @torch.no_grad() on the method")
        demand(not quality_M.is_inference(), f"{trial}: use torch.no_grad, not inference_mode: losses need quality_M")


def quality_lies_between_0_and_1(build: Build) -> None:
    """Soft labels are probabilities, for sure and for absurd predictions, too."""

    def demanded(trial: Trial, batch: Batch) -> None:
        for factor in (1.0, 60.0):
            logits = ("class_logits_BPC", "objectness_BP")
            surer = batch.mapped(lambda values, factor=factor: values * factor, logits)  # type: ignore[misc]  # a default binds it
            demand_probabilities(trial, trial.matches(surer).quality_M)

    demand_of_batches(build, "ordinary", demanded)


def nan_is_never_silent(build: Build) -> None:
    """NaN predictions in an image are seen: by quality, by an error, or by the losses of the same matches."""
    for trial in trials_of(build):
        sound = ordinary_batch(trial)
        before = {row[:3] for row in rows_of(trial.matches(sound))}
        for fields in ((), ("boxes_BP4",), ("class_logits_BPC",), ("objectness_BP",)):
            if fields == ("objectness_BP",) and not trial.layout.objectness:
                continue
            try:
                result = trial.matches(sound.mapped(_with_nan_in_the_second_image, fields))
            except DetloomError:
                continue
            is_same = {row[:3] for row in rows_of(result)} == before
            where = ", ".join(fields) or "all predictions"
            demand(
                is_same or bool(result.quality_M.isnan().any()),
                f"{trial}: NaN in {where} of an image gives other matches, and no quality of NaN; give each target "
                "whose values hold a NaN a match of quality NaN, so that training stops and says so",
            )


def autocast_changes_no_match(build: Build) -> None:
    """Costs are computed in float32 whatever the training runs in."""

    def demanded(trial: Trial, batch: Batch) -> None:
        plain = trial.matches(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = trial.matches(batch)
        advice = "compute under `with torch.autocast(device_type, enabled=False)`"
        dtype = cast.quality_M.dtype
        demand(dtype == torch.float32, f"{trial}: under autocast quality_M is {dtype}, not float32; {advice}")
        demand_same(trial, plain, cast, "autocast to bfloat16", advice)

    demand_of_batches(build, "ordinary", demanded)


def auxiliary_outputs_on_some_levels_are_served(build: Build) -> None:
    """Auxiliary priors may lie on some lead levels alone; matches are indices into these."""
    demand_of_drawn(build, "ordinary", _demand_valid, on_some_levels=True)
    for trial in trials_of(build):
        if trial.is_auxiliary and trial.layout.levels > 1:
            _demand_valid(trial, trial.layout.batch(random_targets((4, 5)), without=(0,)))


def relaxed_form_finds_no_fewer_matches(build: Build) -> None:
    """Weaker conditions give more positives."""
    assigner = build()
    relaxed = assigner.relaxed()
    demand(
        relaxed is None or isinstance(relaxed, Assigner),
        f"relaxed() returned a {type(relaxed).__name__}; return an Assigner, or None where there is no weaker form",
    )
    if relaxed is None:
        return
    counts = [0, 0]
    for layout in LAYOUTS:
        traits = layout.traits(one_to_one=assigner.one_to_one)
        if assigner.objection(traits) is None and relaxed.objection(traits) is None:
            batch = layout.batch(random_targets((4, 5)))
            counts[0] += assigner.assign(batch.lead, batch.targets).num_matches
            counts[1] += relaxed.assign(batch.lead, batch.targets).num_matches
    demand(
        counts[1] >= counts[0],
        f"relaxed() finds {counts[1]} matches where the method itself finds {counts[0]}; weaken a condition in it",
    )


def one_to_one_gives_a_target_one_prior_at_most(build: Build) -> None:
    """What says so of itself serves heads without suppression."""
    for trial in trials_of(build):
        if trial.assigner.one_to_one and not trial.is_auxiliary:
            target_M = trial.matches(ordinary_batch(trial)).target_M
            demand(
                len(set(target_M.tolist())) == len(target_M),
                f"{trial}: targets have several priors; keep the best of each, or leave one_to_one false",
            )


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    objection_is_a_reason_or_none,
    matches_are_a_valid_assignment,
    ordinary_objects_are_learned,
    batch_without_objects_has_no_matches,
    image_without_objects_has_no_matches,
    hundreds_of_objects_in_an_image_are_served,
    equal_objects_are_served,
    objects_at_the_border_are_served,
    objects_larger_than_the_image_are_served,
    objects_one_pixel_wide_are_served,
    objects_all_of_one_class_are_served,
    order_of_objects_does_not_matter,
    images_do_not_affect_each_other,
    same_input_gives_the_same_matches,
    inputs_are_left_alone,
    no_gradient_flows_through_matches,
    quality_lies_between_0_and_1,
    nan_is_never_silent,
    autocast_changes_no_match,
    auxiliary_outputs_on_some_levels_are_served,
    relaxed_form_finds_no_fewer_matches,
    one_to_one_gives_a_target_one_prior_at_most,
)


def _demand_valid(trial: Trial, batch: Batch) -> None:
    demand_probabilities(trial, trial.valid_matches(batch).quality_M)


def _with_nan_in_the_second_image(values: Tensor) -> Tensor:
    changed = values.clone()
    changed[1] = torch.nan
    return changed
