"""A foreign checkpoint matched to a recipe, tensor by tensor.

What a checkpoint's names mean, an importer knows (kind ``importer``). Here recipes are tried, and it is held that every
tensor of the file and every tensor of the recipe's network is used exactly once, in its shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detloom.assembly import DEFAULT_CLASSES, assemble, build
from detloom.catalogue import RECIPE
from detloom.detector import Detector
from detloom.errors import ArtifactError, RecipeError
from detloom.foreign import ForeignCheckpoint, listed, read_checkpoint
from detloom.interfaces import Importer
from detloom.kinds import Kind
from detloom.recipe import USE, Recipe, load_recipe
from detloom.workshop import Workshop, workshop

__all__ = ["Imported", "import_checkpoint"]

# How many reasons are given why no recipe could be tried.
SHOWN = 3
MOST_CLASSES = 100_000
# What a convolution or a norm does beside its tensors, by attribute.
FACTS = ("kernel_size", "stride", "padding", "padding_mode", "dilation", "groups", "eps")


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A detector with a checkpoint's weights.

    Attributes:
        detector: In eval mode, on the CPU; it has its recipe and names.
        recipe: As the checkpoint changed it.
        importer: Which importer knew the names.
        part: As of ``ForeignCheckpoint``.
        num_tensors: Tensors that were taken, those included that became settings.
        settings: What the checkpoint changed in the recipe, by dotted key.
    """

    detector: Detector
    recipe: Recipe
    importer: str
    part: str
    num_tensors: int
    settings: Mapping[str, Any]


def import_checkpoint(
    path: Path | str,
    *,
    recipe: str | Path | Recipe | None = None,
    names: Sequence[str] | None = None,
    names_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    shop: Workshop | None = None,
) -> Imported:
    """Return a detector with the weights of a foreign checkpoint.

    Args:
        path: A file of torch.save or of safetensors.
        recipe: What it holds the weights of; found among the recipes of the catalogues when not given.
        names: Class names by index; those of the checkpoint when not given.
        names_file: Where ``names`` were read, to be told in complaints.
        overrides: Values of the recipe by dotted key.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        ArtifactError: It cannot be read, or does not fit; lists what is left over on both sides.
        RecipeError: The recipe that was given is wrong.
    """
    shop = shop or workshop()
    checkpoint = read_checkpoint(path)
    name, importer = _importer_of(checkpoint, shop)
    found = importer.class_names(checkpoint)
    if names is not None and found is not None and len(names) != len(found):
        raise _other_count(path, len(found), names, names_file)
    attempt = _Attempt(checkpoint, importer, names or found, dict(overrides or {}), shop)
    fit = attempt.fit(recipe) if recipe is not None else _best(attempt, shop)
    if fit.num_classes is not None and names is not None:
        raise _other_count(path, fit.num_classes, names, names_file)
    if fit.faults:
        raise ArtifactError(
            f"{path}: the checkpoint does not fit the recipe '{fit.recipe.name}':\n{fit.report()}\n"
            "  Name another with --recipe, or change a setting with --set, as in --set head.num_classes=3."
        )
    detector = assemble(fit.recipe, names=attempt.names, shop=shop)
    own = detector.state_dict()
    state = {mine: checkpoint.tensors[theirs].reshape(own[mine].shape) for theirs, mine in fit.mapping.items() if mine}
    detector.load_state_dict(state)
    return Imported(detector.eval(), fit.recipe, name, checkpoint.part, len(fit.mapping), fit.settings)


def _other_count(path: Path | str, count: int, names: Sequence[str], names_file: Path | None) -> ArtifactError:
    given = "1 name" if len(names) == 1 else f"{len(names)} names"
    return ArtifactError(
        f"{path}: the checkpoint has {count} classes, but {names_file or 'the argument names'} has {given}; "
        "give one for each class, in the order of the training"
    )


def _importer_of(checkpoint: ForeignCheckpoint, shop: Workshop) -> tuple[str, Importer]:
    names = shop.names(Kind.IMPORTER)
    built: dict[str, Importer] = {name: build(Kind.IMPORTER, {USE: name}, shop=shop) for name in names}
    found = {name: importer for name, importer in built.items() if importer.recognises(checkpoint)}
    if not found:
        raise ArtifactError(
            f"{checkpoint.path}: no importer knows these tensors: {listed(list(checkpoint.tensors))}\n"
            f"  importers: {', '.join(names)}     `detloom list importer` describes them."
        )
    if len(found) > 1:
        raise ArtifactError(
            f"{checkpoint.path}: several importers claim this file: {', '.join(found)}; switch off the plugin of one"
        )
    return found.popitem()


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """How a checkpoint fits a recipe.

    Attributes:
        left: Names of the file that the recipe has no place for.
        missing: Names of the recipe's network that the file has nothing for.
        differences: What both have, but differently.
        num_classes: How many classes the file has, where that alone differs from the names'.
    """

    recipe: Recipe
    settings: Mapping[str, Any] = field(default_factory=dict)
    mapping: Mapping[str, str | None] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    num_classes: int | None = None

    @property
    def faults(self) -> int:
        """Return how many tensors do not fit."""
        return len(self.left) + len(self.missing) + len(self.differences)

    @property
    def network(self) -> list[Any]:
        """Return what tells this network from others."""
        return [self.recipe.tables.get(kind) for kind in (Kind.BACKBONE, Kind.NECK, Kind.HEAD)]

    def report(self) -> str:
        """Return what is left over on both sides."""
        said = (
            ("of the file are left over", self.left),
            ("of the recipe's network are not in the file", self.missing),
            ("differ", self.differences),
        )
        return "\n".join(f"  {len(names)} {what}: {listed(names)}" for what, names in said if names)


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """Tries recipes on a checkpoint."""

    checkpoint: ForeignCheckpoint
    importer: Importer
    names: Sequence[str] | None
    overrides: Mapping[str, Any]
    shop: Workshop

    def fit(self, source: str | Path | Recipe) -> _Fit:
        """Return how the checkpoint fits a recipe.

        Raises:
            ArtifactError: The importer knows no such network.
            RecipeError: The recipe, or what the checkpoint would make of it, is wrong.
        """
        given = load_recipe(source, shop=self.shop)
        settings = dict(self.importer.overrides(self.checkpoint, given))
        fit = self._tried(given, settings)
        # Another count of classes changes shapes, not names.
        may_differ_in_classes = fit.differences and not fit.left and not fit.missing
        count = self._num_classes(fit) if may_differ_in_classes else None
        if count is None:
            return fit
        if self.names is None:
            return self._tried(given, settings, {"head.num_classes": count})
        return fit if replace(self, names=None).fit(source).faults else replace(fit, num_classes=count)

    def _tried(self, given: Recipe, settings: Mapping[str, Any], counted: Mapping[str, Any] | None = None) -> _Fit:
        origin, counted = self.checkpoint.path.name, counted or {}
        recipe = load_recipe(given.with_overrides(settings, origin=origin), self.overrides, shop=self.shop)
        # Last: an override may have put another head in the place of the recipe's.
        recipe = recipe.with_overrides(counted, origin=origin)
        with torch.device("meta"):
            detector = assemble(recipe, names=self.names, shop=self.shop)
        own = detector.state_dict()
        mapping = dict(self.importer.mapping(self.checkpoint, detector))
        theirs = self.checkpoint.tensors
        pairs = [(name, mine) for name, mine in mapping.items() if mine is not None and name in theirs and mine in own]
        if len({mine for _, mine in pairs}) != len(pairs):
            raise ArtifactError(f"{self.checkpoint.path}: the importer fills a tensor of '{given.name}' twice")
        filled = {mine for _, mine in pairs}
        return _Fit(
            recipe,
            {**settings, **counted},
            mapping,
            left=tuple(name for name in theirs if mapping.get(name, "") not in {None, *filled}),
            missing=tuple(mine for mine in own if mine not in filled),
            differences=(
                *(
                    f"{name} {list(theirs[name].shape)} for {mine} {list(own[mine].shape)}"
                    for name, mine in pairs
                    if _squeezed(theirs[name]) != _squeezed(own[mine])
                ),
                *self._differing_facts(pairs, detector),
            ),
        )

    def _num_classes(self, fit: _Fit) -> int | None:
        """Return how many classes the file's tensors have, where the recipe leaves that open.

        Two networks that differ in the count alone say which axis grows with it, and by how much.
        """
        if "num_classes" in fit.recipe.tables[Kind.HEAD]:
            return None
        with torch.device("meta"):
            few, more = (
                assemble(fit.recipe, num_classes=count, shop=self.shop).state_dict()
                for count in (DEFAULT_CLASSES, DEFAULT_CLASSES + 1)
            )
        for theirs, mine in fit.mapping.items():
            if mine not in few or few[mine].shape == more[mine].shape:
                continue
            sizes = zip(self.checkpoint.tensors[theirs].shape, few[mine].shape, more[mine].shape, strict=False)
            found, small, large = next(each for each in sizes if each[1] != each[2])
            added, rest = divmod(found - small, large - small)
            return DEFAULT_CLASSES + added if not rest and 0 < DEFAULT_CLASSES + added <= MOST_CLASSES else None
        return None

    def _differing_facts(self, pairs: Sequence[tuple[str, str]], detector: nn.Module) -> Iterator[str]:
        own = dict(detector.named_modules())
        for name, mine in pairs:
            module = own.get(mine.removesuffix(".weight"))
            foreign = self.checkpoint.modules.get(name.removesuffix(".weight"))
            if module is None or foreign is None:
                continue
            for fact in FACTS:
                expected, found = getattr(module, fact, None), foreign.attributes.get(fact)
                if expected is not None and found is not None and expected != found:
                    shown = listed([str(found)]) if isinstance(found, int | float | str) else type(found).__name__
                    yield f"{fact} of {name} is {shown}, in the recipe's network {expected}"


def _best(attempt: _Attempt, shop: Workshop) -> _Fit:
    """Return how the checkpoint fits the recipe that it fits best, wholly or but for the count of classes.

    Raises:
        ArtifactError: It fits none, or networks that do not compute the same.
    """
    path, fits, refused = attempt.checkpoint.path, list[_Fit](), dict[str, list[str]]()
    for source in shop.names(RECIPE):
        try:
            fits.append(attempt.fit(source))
        except (ArtifactError, RecipeError) as error:
            refused.setdefault(str(error), []).append(source)
    whole = [fit for fit in fits if not fit.faults]
    if not whole:
        if other_count := next((fit for fit in fits if fit.num_classes is not None), None):
            return other_count
        nearest = min(fits, key=lambda fit: fit.faults, default=None)
        detail = (
            _reasons(refused) if nearest is None else f"the nearest is '{nearest.recipe.name}':\n{nearest.report()}"
        )
        raise ArtifactError(
            f"{path}: this checkpoint fits no recipe; {detail}\n"
            "  Write a recipe for it and name it with --recipe; see docs/checkpoints.md."
        )
    if any(fit.network != whole[0].network for fit in whole):
        names = ", ".join(fit.recipe.name for fit in whole)
        raise ArtifactError(
            f"{path}: this checkpoint fits several recipes, and does not say which: {names}\n"
            "  They differ in what has no weights, as activations. Name one with --recipe, as in "
            f"`detloom import {path} --recipe {whole[0].recipe.name}`."
        )
    return min(whole, key=lambda fit: (len(fit.settings), len(fit.recipe.name), fit.recipe.name))


def _reasons(refused: Mapping[str, Sequence[str]]) -> str:
    """Return why no recipe could be tried, what most of them have in common first."""
    reasons = sorted(refused.items(), key=lambda item: -len(item[1]))
    said = [f"  {listed(sources)}: {reason}" for reason, sources in reasons[:SHOWN]]
    return "\n".join(
        [
            "why not, by recipe:",
            *said,
            *([f"  and {len(reasons) - SHOWN} reasons more"] if len(reasons) > SHOWN else []),
        ]
    )


def _squeezed(tensor: Tensor) -> list[int]:
    # A constant for each channel is stored with or without axes of length one.
    return [size for size in tensor.shape if size != 1]
