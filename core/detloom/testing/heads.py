"""Checks of heads, built small, on three levels.

Shape letters: B images, P priors, C classes, H and W rows and columns.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.host.decoder import decoded
from detloom.interfaces import Head
from detloom.structures import FeatureSpec, HeadMaps, Predictions, Role
from detloom.testing.batches import NUM_CLASSES, SIZE
from detloom.testing.construction import Build, check_numbers, check_signature, demand
from detloom.testing.head_trials import LEVELS, demand_of_maps, level_tensors, maps_of

__all__ = ["CHECKS"]

AUXILIARY = tuple(replace(spec, role=Role.AUXILIARY) for spec in LEVELS)


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """The levels and the number of classes come first; a recipe's table is the keyword arguments."""
    check_signature(build, ("inputs", "num_classes"))


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A width of -1 is a mistake of a recipe, and is said to be one."""
    check_numbers(build, LEVELS, NUM_CLASSES)


def each_level_has_a_map(build: Build) -> None:
    """Maps come finest first, one of each lead level, as large as the level."""
    head = _head(build)
    levels = level_tensors()
    maps = maps_of(head, levels)
    demand(len(maps) == len(levels), f"{len(maps)} lead maps for {len(levels)} levels; return one for each, in order")
    for level, raw in zip(levels, maps, strict=True):
        demand(
            raw.dim() == 4 and raw.shape[0] == level.shape[0] and raw.shape[2:] == level.shape[2:],
            f"a map of shape {list(raw.shape)} for a level of shape {list(level.shape)}; keep batch, rows and columns",
        )


def predictions_have_the_shapes_of_their_priors(build: Build) -> None:
    """Every prior of every image has a box and a logit of each class."""

    def demanded(head: Head, maps: tuple[Tensor, ...]) -> None:
        found = head.train().decode(maps)
        sizes = [(grid.height, grid.width, grid.stride, grid.level) for grid in found.priors.grids]
        expected = [(*raw.shape[2:], spec.stride, i) for i, (raw, spec) in enumerate(zip(maps, LEVELS, strict=True))]
        demand(sizes == expected, f"priors on grids {sizes} for maps {expected} (rows, columns, stride, level)")
        shape = (maps[0].shape[0], found.priors.num_priors)
        shapes: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
            ("boxes_BP4", found.boxes_BP4, (*shape, 4)),
            ("class_logits_BPC", found.class_logits_BPC, (*shape, head.num_classes)),
            ("objectness_BP", found.objectness_BP, shape),
            ("distribution_BP4R", found.distribution_BP4R, (*shape, 4, head.traits.distribution_bins)),
        ]
        for name, values, wanted in shapes:
            demand(
                values is None or tuple(values.shape) == wanted,
                f"{name} has shape {None if values is None else list(values.shape)}, not {list(wanted)}",
            )

    demand_of_maps(build, 1, demanded)


def predictions_are_float32(build: Build) -> None:
    """Maps in half precision, as autocast makes them, are decoded in float32."""
    head = _head(build).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = tuple(raw.bfloat16() for raw in maps_of(head, level_tensors()))
        found = head.decode(maps)
    for name, values in _values(found).items():
        demand(
            values.dtype == torch.float32,
            f"{name} is {values.dtype} for maps of bfloat16; convert maps with .float() before the maths",
        )


def predictions_are_finite_and_boxes_not_inverted(build: Build) -> None:
    """Maps of any values give boxes, as those of an early training."""

    def demanded(head: Head, maps: tuple[Tensor, ...]) -> None:
        found = head.decode(maps)
        for name, values in _values(found).items():
            demand(values.isfinite().all(), f"{name} is not finite for wide maps; limit what grows")
        size_BP2 = found.boxes_BP4[..., 2:] - found.boxes_BP4[..., :2]
        demand((size_BP2 >= 0).all(), "boxes have a negative width or height; decode sizes to numbers above 0")

    demand_of_maps(build, 40, demanded)


def traits_agree_with_predictions(build: Build) -> None:
    """What the head says of itself before it runs is what it predicts."""
    head = _head(build).train()
    found = head.decode(maps_of(head, level_tensors()))
    traits = head.traits
    demand(head.num_classes == NUM_CLASSES, f"num_classes is {head.num_classes}, not {NUM_CLASSES} as given")
    demand(traits.levels == len(LEVELS), f"traits.levels is {traits.levels}, with {len(LEVELS)} lead levels given")
    demand(
        traits.objectness == (found.objectness_BP is not None),
        f"traits.objectness is {traits.objectness}, but objectness_BP is "
        f"{'there' if found.objectness_BP is not None else 'None'}; make them agree",
    )
    bins = 0 if found.distribution_BP4R is None else found.distribution_BP4R.shape[-1]
    demand(
        traits.distribution_bins == bins,
        f"traits.distribution_bins is {traits.distribution_bins}, but predictions have {bins} bins in training mode",
    )


def host_decodes_the_same_from_the_spec(build: Build) -> None:
    """``decode_spec`` is JSON, and says all that a decoder needs."""

    def demanded(head: Head, maps: tuple[Tensor, ...]) -> None:
        wanted = head.decode(maps)
        scores_PC = wanted.class_logits_BPC[0].sigmoid()
        if wanted.objectness_BP is not None:
            scores_PC = wanted.objectness_BP[0].sigmoid()[:, None] * scores_PC
        spec = json.loads(json.dumps(head.decode_spec()))
        boxes, scores = decoded(spec, [raw[0].numpy() for raw in maps])
        for name, host, own in (("boxes", boxes, wanted.boxes_BP4[0]), ("scores", scores, scores_PC)):
            demand(
                host.shape == own.shape
                and np.allclose(host, own.numpy(), rtol=1e-4, atol=1e-2 if name == "boxes" else 1e-6),
                f"a host that follows decode_spec() finds other {name} than decode(); make the two agree",
            )

    demand_of_maps(build, 6, demanded)


def spec_says_whether_to_suppress(build: Build) -> None:
    """A head that finds each object once says so to a host, too."""
    head = _head(build)
    says = head.decode_spec()["suppression"]
    demand(
        says is not head.traits.one_to_one,
        f"decode_spec()['suppression'] is {says}, and traits.one_to_one is {head.traits.one_to_one}: one is the "
        "other's opposite",
    )


def auxiliary_maps_come_in_training_alone(build: Build) -> None:
    """What serves training costs nothing afterwards."""
    for head, specs in _heads(build):
        levels = level_tensors(specs)
        evaluated: HeadMaps = head.eval()(levels)
        demand(evaluated.auxiliary == (), "there are auxiliary maps in evaluation mode; return them in training alone")
        if len(specs) > len(LEVELS):
            trained: HeadMaps = head.train()(levels)
            count = len(specs) - len(LEVELS)
            demand(
                len(trained.auxiliary) == count,
                f"{len(trained.auxiliary)} auxiliary maps in training mode for {count} auxiliary levels",
            )


def auxiliary_priors_keep_their_levels(build: Build) -> None:
    """Auxiliary maps on some levels have the priors of the lead there."""
    for head, specs in _heads(build):
        maps: HeadMaps = head.train()(level_tensors(specs))
        if not maps.auxiliary:
            continue
        lead, auxiliary = head.decode(maps.lead), head.decode(maps.auxiliary)
        strides = [spec.stride for spec in specs[len(LEVELS) :]] or [spec.stride for spec in LEVELS]
        got = [(grid.stride, grid.level) for grid in auxiliary.priors.grids]
        wanted = [(spec.stride, level) for level, spec in enumerate(LEVELS) if spec.stride in strides]
        demand(
            got == wanted and auxiliary.priors.num_levels == len(LEVELS),
            f"auxiliary maps of strides {strides} have priors on (stride, level) {got} of "
            f"{auxiliary.priors.num_levels}, not {wanted} of {len(LEVELS)}; see Priors.on_grids",
        )
        lead.on_levels_of(auxiliary.priors)


def grids_of_any_size_are_served(build: Build) -> None:
    """Another size of image has other priors, and the first size its own again."""
    head = _head(build)
    first = head.decode(maps_of(head, level_tensors()))
    for height, width in ((96, 64), (64, 96), SIZE):
        maps = maps_of(head, level_tensors(size=(height, width)))
        shapes = [(grid.height, grid.width) for grid in head.decode(maps).priors.grids]
        wanted = [tuple(raw.shape[2:]) for raw in maps]
        demand(shapes == wanted, f"maps of {wanted} cells have priors on {shapes}; lay priors anew for each size")
    again = head.decode(maps_of(head, level_tensors()))
    same = torch.equal(again.boxes_BP4, first.boxes_BP4)
    demand(same, "the same image has other boxes after images of other sizes; keep what is cached apart by size")


def images_do_not_affect_each_other(build: Build) -> None:
    """In evaluation mode an image alone has the predictions that it has in a batch."""
    head = _head(build)
    levels = level_tensors()
    together = head.decode(maps_of(head, levels))
    alone = head.decode(maps_of(head, [level[1:2] for level in levels]))
    for (name, values), single in zip(_values(together).items(), _values(alone).values(), strict=True):
        same = torch.allclose(values[1:2], single, rtol=1e-4, atol=1e-4)
        demand(same, f"{name} of an image depends on the other images of its batch in evaluation mode")


def copy_predicts_the_same(build: Build) -> None:
    """The averaged model and the deployed form are copies."""
    head = _head(build)
    levels = level_tensors()
    found = head.decode(maps_of(head, levels))
    twin = deepcopy(head)
    copied = twin.decode(maps_of(twin, levels))
    for (name, values), again in zip(_values(found).items(), _values(copied).values(), strict=True):
        demand(torch.equal(values, again), f"{name} of a deep copy differ; keep all state in parameters and buffers")


def gradients_reach_all_parameters(build: Build) -> None:
    """A parameter without a gradient never learns, and stops training over several processes."""
    for head, specs in _heads(build):
        maps: HeadMaps = head.train()(level_tensors(specs))
        outputs = [head.decode(each) for each in (maps.lead, maps.auxiliary) if each]
        torch.stack([v.square().mean() for found in outputs for v in _values(found).values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch types it not
        without = [name for name, parameter in head.named_parameters() if parameter.grad is None]
        demand(not without, f"no gradient reaches {', '.join(without[:5])}; use it, or make it a buffer")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    each_level_has_a_map,
    predictions_have_the_shapes_of_their_priors,
    predictions_are_float32,
    predictions_are_finite_and_boxes_not_inverted,
    traits_agree_with_predictions,
    host_decodes_the_same_from_the_spec,
    spec_says_whether_to_suppress,
    auxiliary_maps_come_in_training_alone,
    auxiliary_priors_keep_their_levels,
    grids_of_any_size_are_served,
    images_do_not_affect_each_other,
    copy_predicts_the_same,
    gradients_reach_all_parameters,
)


def _head(build: Build, inputs: Sequence[FeatureSpec] = LEVELS) -> Head:
    """Return a head in evaluation mode."""
    head: Head = build(inputs, NUM_CLASSES)
    return head.eval()


def _heads(build: Build) -> list[tuple[Head, tuple[FeatureSpec, ...]]]:
    """Return heads without auxiliary levels, with all, and with some, as far as they take these."""
    heads: list[tuple[Head, tuple[FeatureSpec, ...]]] = [(_head(build), LEVELS)]
    for auxiliary in (AUXILIARY, AUXILIARY[1:]):
        inputs = (*LEVELS, *auxiliary)
        try:
            heads.append((_head(build, inputs), inputs))
        except RecipeError:
            # It says that it takes none.
            continue
    return heads


def _values(predictions: Predictions) -> dict[str, Tensor]:
    named = {
        "boxes_BP4": predictions.boxes_BP4,
        "class_logits_BPC": predictions.class_logits_BPC,
        "objectness_BP": predictions.objectness_BP,
        "distribution_BP4R": predictions.distribution_BP4R,
    }
    return {name: values for name, values in named.items() if values is not None}
