"""Anchors for a data set: the sizes of its boxes, what a search finds for them, and the start of a training.

Shape letters: N boxes, A anchors of all levels; 2 is width and height in pixels of the network's input.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from detloom.building import build, settings_complaints
from detloom.data.letterbox import Letterbox
from detloom.data.records import Annotations
from detloom.engine.progress import RunView
from detloom.engine.run import ORIGINS, RECIPE, read_run
from detloom.errors import ArtifactError, PluginError, RecipeError, reason
from detloom.interfaces import AnchorSearch
from detloom.kinds import Kind
from detloom.ops.anchors import AnchorFit, anchor_fit
from detloom.recipe import USE, Recipe
from detloom.workshop import Workshop, workshop

__all__ = [
    "HEAD_ANCHORS",
    "Levels",
    "Proposal",
    "box_sizes",
    "flat_anchors",
    "head_anchors",
    "other_anchors",
    "propose",
    "with_fitting_anchors",
]

Levels = tuple[tuple[tuple[float, float], ...], ...]
"""Widths and heights of each level's anchors, finest level first, as a recipe has them."""

HEAD_ANCHORS = "head.anchors"
FOUND = "[anchors]"
"""The origin of anchors that were searched at the start of a training."""

SMALLEST = 2.0
"""Boxes both of whose sides are below this, in pixels, are left out, as published."""

MOST_BOXES = 10_000
"""A search sees a random choice of so many boxes at most; what it finds is measured on all of them."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a search found.

    Attributes:
        anchors: By level.
        fit: How well they fit all boxes.
    """

    anchors: Levels
    fit: AnchorFit


def box_sizes(annotations: Annotations, image_size: int | tuple[int, int]) -> Tensor:
    """Return ``[N, 2]``, float32: the sizes of all boxes that are learned, on the canvas of the network.

    Crowds are left out, and so is what is too small there.
    """
    found = [np.zeros((0, 2), np.float32)]
    for record in annotations.images:
        boxes_N4 = record.boxes_N4[~record.is_crowd_N]
        ratio = Letterbox.fit((record.height, record.width), image_size).ratio
        found.append((boxes_N4[:, 2:] - boxes_N4[:, :2]) * np.float32(ratio))
    sizes_N2 = torch.from_numpy(np.concatenate(found))
    # A side of nothing has no ratio to an anchor's.
    return sizes_N2[(sizes_N2 >= SMALLEST).any(dim=1) & (sizes_N2 > 0).all(dim=1)]


def head_anchors(recipe: Recipe, shop: Workshop | None = None) -> Levels:
    """Return the anchors of a recipe's head: its setting, or the default of that.

    Raises:
        RecipeError: The head has none, or its settings are wrong.
    """
    shop, table = shop or workshop(), recipe.tables.get(Kind.HEAD, {})
    complaints = settings_complaints(Kind.HEAD, table, lambda key: recipe.where(Kind.HEAD, key), shop)
    if complaints:
        raise RecipeError("\n".join(complaints))
    setting = inspect.signature(shop.component(Kind.HEAD, table[USE])).parameters.get("anchors")
    levels = table.get("anchors", None if setting is None else setting.default)
    if not levels:
        raise RecipeError(
            f"{recipe.where(Kind.HEAD, USE)}: the head '{table[USE]}' has no anchors, so there are none to search; "
            "take a head with the setting `anchors`, or do without"
        )
    return tuple(tuple((float(width), float(height)) for width, height in level) for level in levels)


def flat_anchors(levels: Levels) -> Tensor:
    """Return the anchors of all levels as ``[A, 2]``, float32."""
    return torch.tensor([pair for level in levels for pair in level], dtype=torch.float32)


def propose(search: AnchorSearch, sizes_N2: Tensor, levels: Levels, *, seed: int, threshold: float) -> Proposal:
    """Return what a search finds in the place of a head's anchors, to a tenth of a pixel.

    Args:
        search: The method.
        sizes_N2: Of boxes, at least as many as anchors.
        levels: The present anchors.
        seed: Of the search's random numbers.
        threshold: With which the fit is measured.

    Raises:
        PluginError: The search returns something else than anchors.
    """
    current_A2, generator = flat_anchors(levels), torch.Generator().manual_seed(seed)
    seen_N2 = sizes_N2
    if len(sizes_N2) > MOST_BOXES:
        seen_N2 = sizes_N2[torch.randperm(len(sizes_N2), generator=generator)[:MOST_BOXES]]
    found_A2 = search.search(seen_N2, current_A2, generator)
    if found_A2.shape != current_A2.shape or not bool((found_A2.isfinite() & (found_A2 > 0)).all()):
        raise PluginError(
            f"{type(search).__name__} ({type(search).__module__}) must return {len(current_A2)} anchors with sides "
            f"above 0, as a tensor {tuple(current_A2.shape)}, and returned {tuple(found_A2.shape)}: {found_A2.tolist()}"
        )
    pairs = iter([(round(width, 1), round(height, 1)) for width, height in found_A2.tolist()])
    dealt = tuple(tuple(next(pairs) for _ in level) for level in levels)
    return Proposal(dealt, anchor_fit(sizes_N2, flat_anchors(dealt), threshold))


def with_fitting_anchors(
    recipe: Recipe, train: Annotations, out: str | Path | None, *, resume: bool, view: RunView
) -> Recipe:
    """Return the recipe that a training follows: with other anchors where its ``[anchors]`` asks for them.

    They are searched where less than ``min_recall`` of the training boxes has an anchor that can learn it, and
    taken where the recall is then higher. A run that goes on keeps those that it was begun with. So do weights to
    start from, which have learned with the head's present anchors.

    Raises:
        RecipeError: The search or the head cannot be used.
        ArtifactError: What was searched for the run to resume cannot be read.
    """
    table = recipe.tables.get(Kind.ANCHORS)
    if table is None:
        return recipe
    search: AnchorSearch = build(Kind.ANCHORS, table, where=recipe.where(Kind.ANCHORS))
    if resume and out is not None and (Path(out) / RECIPE).exists():
        return _as_begun(recipe, Path(out))
    levels, sizes_N2 = head_anchors(recipe), box_sizes(train, recipe.data.image_size)
    text, found = _decided(recipe, search, levels, sizes_N2)
    view.said(f"anchors: {text}")
    # Other processors may round otherwise, and a model has the same anchors in all processes.
    agreed: list[Any] = [found]
    broadcast_object_list(agreed)
    return recipe if agreed[0] is None else recipe.with_overrides({HEAD_ANCHORS: agreed[0]}, FOUND)


def other_anchors(recipe: Recipe, learned: Recipe) -> str | None:
    """Return what to say where weights to start from have learned with other anchors than a recipe's."""
    heads = [each.tables.get(Kind.HEAD, {}) for each in (recipe, learned)]
    if heads[0].get(USE) != heads[1].get(USE) or not _takes_anchors(heads[0]):
        return None
    if head_anchors(recipe) == head_anchors(learned):
        return None
    return (
        "its head has learned with other anchors than this recipe's, so boxes come out in other sizes at first; "
        "to go on with them, set head.anchors as its recipe has them"
    )


def _decided(
    recipe: Recipe, search: AnchorSearch, levels: Levels, sizes_N2: Tensor
) -> tuple[str, Sequence[Sequence[Sequence[float]]] | None]:
    """Return what to say, and the anchors to take in the place of the head's, if any."""
    current_A2 = flat_anchors(levels)
    if len(sizes_N2) < len(current_A2):
        return f"{len(sizes_N2)} training boxes are too few to search {len(current_A2)}; the head's are kept", None
    before = anchor_fit(sizes_N2, current_A2, search.threshold)
    stands = f"best possible recall {before.recall:.4f} of {len(sizes_N2):,} training boxes"
    if before.recall >= search.min_recall:
        return f"{stands}; kept", None
    stands = f"{stands}, under {search.min_recall:g}"
    start = recipe.train.init_from
    if start is not None:
        return (
            f"{stands}; kept all the same, because the head of {start} has learned with them. "
            "`detloom anchors` writes a recipe with better ones, for a training without init_from"
        ), None
    method = recipe.tables[Kind.ANCHORS][USE]
    found = propose(search, sizes_N2, levels, seed=recipe.train.seed, threshold=search.threshold)
    if found.fit.recall <= before.recall:
        return f"{stands}; kept, as {method} found none with a higher one", None
    return (
        f"{stands}; {method} found others with {found.fit.recall:.4f} (fitness {before.fitness:.3f}, now "
        f"{found.fit.fitness:.3f}), which the run's recipe now has"
    ), found.anchors


def _as_begun(recipe: Recipe, out: Path) -> Recipe:
    """Return the recipe with the anchors that were searched when the run began, if they were."""
    try:
        origins = json.loads((out / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{out / ORIGINS}: whether anchors were searched cannot be read: {reason(error)}"
        ) from error
    if origins.get(HEAD_ANCHORS) != FOUND:
        return recipe
    begun = read_run(out)[0]
    return recipe.with_overrides({HEAD_ANCHORS: begun.tables[Kind.HEAD]["anchors"]}, FOUND)


def _takes_anchors(table: Any) -> bool:
    return "anchors" in inspect.signature(workshop().component(Kind.HEAD, table[USE])).parameters
