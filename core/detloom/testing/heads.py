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

__all__ = ["CHECKS"]

LEVELS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))
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
    levels = _levels()
    maps = _maps(head, levels)
    demand(len(maps) == len(levels), f"{len(maps)} lead maps for {len(levels)} levels; return one for each, in order")
    for level, raw in zip(levels, maps, strict=True):
        demand(
            raw.dim() == 4 and raw.shape[0] == level.shape[0] and raw.shape[2:] == level.shape[2:],
            f"a map of shape {list(raw.shape)} for a level of shape {list(level.shape)}; keep batch, rows and columns",
        )


def predictions_have_the_shapes_of_their_priors(build: Build) -> None:
    """Every prior of every image has a box and a logit of each class."""
    head = _head(build).train()
    maps = _maps(head, _levels())
    found = head.decode(maps)
    sizes = [(grid.height, grid.width, grid.stride, grid.level) for grid in found.priors.grids]
    expected = [(*raw.shape[2:], spec.stride, i) for i, (raw, spec) in enumerate(zip(maps, LEVELS, strict=True))]
    demand(sizes == expected, f"priors on grids {sizes} for maps {expected} (rows, columns, stride, level)")
    shape = (maps[0].shape[0], found.priors.num_priors)
    shapes: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("boxes_BP4", found.boxes_BP4, (*shape, 4)),
        ("class_logits_BPC", found.class_logits_BPC, (*shape, NUM_CLASSES)),
        ("objectness_BP", found.objectness_BP, shape),
        ("distribution_BP4R", found.distribution_BP4R, (*shape, 4, head.traits.distribution_bins)),
    ]
    for name, values, wanted in shapes:
        demand(
            values is None or tuple(values.shape) == wanted,
            f"{name} has shape {None if values is None else list(values.shape)}, not {list(wanted)}",
        )


def predictions_are_float32(build: Build) -> None:
    """Maps in half precision, as autocast makes them, are decoded in float32."""
    head = _head(build).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = tuple(raw.bfloat16() for raw in _maps(head, _levels()))
        found = head.decode(maps)
    for name, values in _values(found).items():
        demand(
            values.dtype == torch.float32,
            f"{name} is {values.dtype} for maps of bfloat16; convert maps with .float() before the maths",
        )


def predictions_are_finite_and_boxes_not_inverted(build: Build) -> None:
    """Maps of any values give boxes, as those of an early training."""
    head = _head(build)
    found = head.decode(_wide(_maps(head, _levels()), 40.0))
    for name, values in _values(found).items():
        demand(values.isfinite().all(), f"{name} is not finite for maps of values about 40; limit what grows")
    size_BP2 = found.boxes_BP4[..., 2:] - found.boxes_BP4[..., :2]
    demand((size_BP2 >= 0).all(), "boxes have a negative width or height; decode sizes to numbers above 0")


def traits_agree_with_predictions(build: Build) -> None:
    """What the head says of itself before it runs is what it predicts."""
    head = _head(build).train()
    found = head.decode(_maps(head, _levels()))
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
    head = _head(build)
    maps = _wide(_maps(head, _levels()), 6.0)
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
        levels = _levels(specs)
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
        maps: HeadMaps = head.train()(_levels(specs))
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
    first = head.decode(_maps(head, _levels()))
    for height, width in ((96, 64), (64, 96), SIZE):
        maps = _maps(head, _levels(size=(height, width)))
        shapes = [(grid.height, grid.width) for grid in head.decode(maps).priors.grids]
        wanted = [tuple(raw.shape[2:]) for raw in maps]
        demand(shapes == wanted, f"maps of {wanted} cells have priors on {shapes}; lay priors anew for each size")
    again = head.decode(_maps(head, _levels()))
    same = torch.equal(again.boxes_BP4, first.boxes_BP4)
    demand(same, "the same image has other boxes after images of other sizes; keep what is cached apart by size")


def images_do_not_affect_each_other(build: Build) -> None:
    """In evaluation mode an image alone has the predictions that it has in a batch."""
    head = _head(build)
    levels = _levels()
    together = head.decode(_maps(head, levels))
    alone = head.decode(_maps(head, [level[1:2] for level in levels]))
    for (name, values), single in zip(_values(together).items(), _values(alone).values(), strict=True):
        same = torch.allclose(values[1:2], single, rtol=1e-4, atol=1e-4)
        demand(same, f"{name} of an image depends on the other images of its batch in evaluation mode")


def copy_predicts_the_same(build: Build) -> None:
    """The averaged model and the deployed form are copies."""
    head = _head(build)
    levels = _levels()
    found = head.decode(_maps(head, levels))
    twin = deepcopy(head)
    copied = twin.decode(_maps(twin, levels))
    for (name, values), again in zip(_values(found).items(), _values(copied).values(), strict=True):
        demand(torch.equal(values, again), f"{name} of a deep copy differ; keep all state in parameters and buffers")


def gradients_reach_all_parameters(build: Build) -> None:
    """A parameter without a gradient never learns, and stops training over several processes."""
    for head, specs in _heads(build):
        maps: HeadMaps = head.train()(_levels(specs))
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


def _levels(specs: Sequence[FeatureSpec] = LEVELS, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(2, spec.channels, size[0] // spec.stride, size[1] // spec.stride, generator=generator)
        for spec in specs
    ]


def _maps(head: Head, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        maps: HeadMaps = head(levels)
    return maps.lead


def _wide(maps: Sequence[Tensor], factor: float) -> tuple[Tensor, ...]:
    """Return random maps of the same shapes, wide enough for limits to matter."""
    generator = torch.Generator().manual_seed(5)
    return tuple(factor * torch.randn(raw.shape, generator=generator) for raw in maps)


def _values(predictions: Predictions) -> dict[str, Tensor]:
    named = {
        "boxes_BP4": predictions.boxes_BP4,
        "class_logits_BPC": predictions.class_logits_BPC,
        "objectness_BP": predictions.objectness_BP,
        "distribution_BP4R": predictions.distribution_BP4R,
    }
    return {name: values for name, values in named.items() if values is not None}
