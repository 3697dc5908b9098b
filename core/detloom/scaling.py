"""The section ``[scaling]`` of a recipe: what it makes of the rest, before anything is built."""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from detloom.building import build, settings_complaints
from detloom.data.settings import DataSettings
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Scaling
from detloom.kinds import Kind
from detloom.recipe import USE, Recipe
from detloom.structures import Extent
from detloom.workshop import Workshop

__all__ = ["changes", "scaled", "scaling_explained"]

NETWORK = (Kind.BACKBONE, Kind.NECK, Kind.HEAD)
IMAGE_SIZE = "image_size"
OF_COMPONENTS = frozenset({Extent.DEPTH, Extent.WIDTH, Extent.HIDDEN})


def scaled(recipe: Recipe, shop: Workshop) -> Recipe:
    """Return what ``[scaling]`` makes of a recipe, without that section; a recipe that has none as it is.

    Raises:
        RecipeError: A setting is wrong, or a component does not say which of its settings are depths and widths.
        PluginError: The scaling, or what a component says of its settings, is wrong.
    """
    if Kind.SCALING not in recipe.tables:
        return recipe
    table, where = recipe.tables[Kind.SCALING], recipe.where(Kind.SCALING)
    kinds = [kind for kind in NETWORK if kind in recipe.tables]
    wrong = [
        complaint
        for kind in (Kind.SCALING, *kinds)
        for complaint in settings_complaints(kind, recipe.tables[kind], partial(recipe.where, kind), shop)
    ]
    if wrong:
        raise RecipeError("\n".join(wrong))
    scaling: Scaling = build(Kind.SCALING, table, where=where, shop=shop)
    tables = copy.deepcopy({section: dict(values) for section, values in recipe.tables.items()})
    extents = _extents(recipe, kinds, scaling.changes, tables, shop)
    try:
        found = scaling.scale(tables, extents)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    measured = {".".join(path.split(".")[:2]) for path in extents}
    strange = sorted(set(found) - measured)
    if strange:
        raise PluginError(
            f"{where}: '{table[USE]}' ({type(scaling).__module__}) returned {', '.join(strange)}, which no component "
            f"says to measure anything; it may return: {', '.join(sorted(measured)) or 'nothing'}"
        )
    plain = replace(
        recipe,
        tables={section: values for section, values in recipe.tables.items() if section != Kind.SCALING},
        origins={key: origin for key, origin in recipe.origins.items() if key.partition(".")[0] != str(Kind.SCALING)},
    )
    return plain.with_overrides(found, f"scaling '{table[USE]}'") if found else plain


def changes(given: Recipe, made: Recipe, shop: Workshop) -> dict[str, tuple[Any, Any]]:
    """Return the settings that scaling changed, by dotted key: as given, defaults included, and as made."""
    found: dict[str, tuple[Any, Any]] = {}
    for section, table in made.tables.items():
        if not isinstance(table, Mapping):
            continue
        before = given.tables.get(section, {})
        for key, value in table.items():
            if key not in before or before[key] != value:
                found[f"{section}.{key}"] = (before.get(key, _default(section, key, given, shop)), value)
    return found


@contextmanager
def scaling_explained(given: Recipe, made: Recipe, shop: Workshop) -> Iterator[None]:
    """Say with a complaint about a scaled recipe what scaling changed in the sections concerned."""
    try:
        yield
    except RecipeError as error:
        if Kind.SCALING not in given.tables:
            raise
        all_changes = changes(given, made, shop)
        text = str(error)
        concerned = {key: pair for key, pair in all_changes.items() if f"[{key.partition('.')[0]}]" in text}
        lines = [f"    {key} = {after}, from {before}" for key, (before, after) in (concerned or all_changes).items()]
        advice = "  Choose factors that the network bears."
        if IMAGE_SIZE in text:
            advice += " `multiple` says of what sides are multiples: the largest stride of the network."
        raise RecipeError("\n".join((text, f"  {given.where(Kind.SCALING)} made:", *lines, advice))) from error


def _extents(
    recipe: Recipe, kinds: Sequence[Kind], wanted: frozenset[Extent], tables: dict[str, Any], shop: Workshop
) -> dict[str, Extent]:
    """Return what is measured, by path, and put defaults into tables where the recipe leaves settings out."""
    found = {}
    silent = []
    for kind in kinds:
        name = recipe.tables[kind][USE]
        cls = shop.component(kind, name)
        if cls.extents is None:
            # The size of pictures is no setting of backbones and necks.
            if wanted & OF_COMPONENTS or kind == Kind.HEAD:
                silent.append(f"{recipe.where(kind, USE)}: '{name}' cannot be scaled: {_silence(cls)}")
            continue
        for path, extent in cls.extents.items():
            setting = path.partition(".")[0]
            defaults = inspect.signature(cls).parameters
            if setting not in defaults:
                raise PluginError(f"{cls.__module__}.{cls.__name__}: extents names '{path}', but has no such setting")
            tables[kind].setdefault(setting, defaults[setting].default)
            found[f"{kind}.{path}"] = extent
    if silent:
        raise RecipeError("\n".join(silent))
    data = tables.setdefault("data", {})
    data.setdefault(IMAGE_SIZE, DataSettings().image_size)
    return {**found, f"data.{IMAGE_SIZE}": Extent.IMAGE}


def _silence(cls: type[Any]) -> str:
    return (
        f"{cls.__name__} does not say which of its settings are depths and widths. Its author can, with the attribute "
        "`extents` (docs/scaling.md); or take a component that does, or set its size by its own settings"
    )


def _default(section: str, key: str, recipe: Recipe, shop: Workshop) -> Any:
    if section == "data":
        return getattr(DataSettings(), key)
    kind = Kind(section)
    default = inspect.signature(shop.component(kind, recipe.tables[kind][USE])).parameters[key].default
    return list(default) if isinstance(default, tuple) else default
