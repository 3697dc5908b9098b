"""One component from its table: found by name, its settings checked, nested components built first.

A setting typed as a contract (``inner: Assigner``) is a component of its own, written as a table
with ``use``; a wrapper around any assigner needs no more than that.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from detloom.errors import RecipeError, plural, with_article
from detloom.kinds import Kind
from detloom.recipe import ASSEMBLER_SETTINGS, USE, Recipe
from detloom.settings import initial_weights, nested_components, settings_model, validated
from detloom.workshop import Workshop, workshop

__all__ = ["build", "components_of", "settings_complaints", "without_initial_weights"]


def build(kind: Kind, table: Mapping[str, Any], *args: Any, where: str = "", shop: Workshop | None = None) -> Any:
    """Build one component from its table.

    Args:
        kind: The slot.
        table: ``use`` and the settings.
        args: What the kind's constructor takes first.
        where: File and table, put before complaints.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        RecipeError: The name or a setting is wrong.
    """
    where = where or f"[{kind}]"
    shop = shop or workshop()
    complaints = settings_complaints(kind, table, lambda _key: where, shop)
    if complaints:
        raise RecipeError("\n".join(complaints))
    cls = shop.component(kind, table[USE], where=where)
    checked, _ = validated(settings_model(cls), _settings(kind, table), where)
    settings = {name: getattr(checked, name) for name in (checked.model_fields_set if checked else ())}
    for name, inner in nested_components(cls).items():
        if settings.get(name) is not None:
            settings[name] = build(inner, settings[name], where=f"{where} {name}", shop=shop)
    try:
        return cls(*args, **settings)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def settings_complaints(kind: Kind, table: Mapping[str, Any], where: Callable[[str], str], shop: Workshop) -> list[str]:
    """Return what is wrong with a component's name and settings, those of nested components included.

    Args:
        kind: The slot.
        table: ``use`` and the settings.
        where: Tells file and table for a key.
        shop: Where components are looked up.
    """
    name = table.get(USE)
    if not isinstance(name, str):
        known = ", ".join(shop.names(kind))
        return [f"{where(USE)}: `use` must name {with_article(kind)}; known {plural(kind)}: {known}"]
    try:
        cls = shop.component(kind, name, where=where(USE))
    except RecipeError as error:
        return [str(error)]
    others = tuple(ASSEMBLER_SETTINGS.get(kind, {}))
    complaints = validated(settings_model(cls), _settings(kind, table), where, others)[1]
    complaints += [
        f"{where(name)}: {cls.__name__} takes '{name}' by position, and settings are keyword-only; "
        f"its author must write (self, *, {name}=...)"
        for name, parameter in inspect.signature(cls).parameters.items()
        if name in table
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    ]
    for setting, inner in nested_components(cls).items():
        nested = table.get(setting)
        if isinstance(nested, Mapping):
            place = f"{where(setting)} {setting}"
            complaints += settings_complaints(inner, nested, lambda _key, place=place: place, shop)  # type: ignore[misc] # mypy cannot type a default that binds a loop's value
    return complaints


def components_of(recipe: Recipe, shop: Workshop) -> Iterator[tuple[Kind, str]]:
    """Yield kind and name of each component that a recipe names in a slot, nested ones included."""
    for kind in Kind:
        table = recipe.tables.get(kind)
        if isinstance(table, Mapping) and USE in table:
            yield from _named(kind, table, shop)


def without_initial_weights(recipe: Recipe, shop: Workshop) -> Recipe:
    """Return a recipe that names no files of initial weights, as its weights are at hand or not wanted."""
    tables = dict(recipe.tables)
    for kind in Kind:
        table = tables.get(kind)
        if isinstance(table, Mapping) and USE in table:
            files = initial_weights(shop.component(kind, table[USE], where=recipe.where(kind, USE)))
            tables[kind] = {key: value for key, value in table.items() if key not in files}
    return replace(recipe, tables=tables)


def _named(kind: Kind, table: Mapping[str, Any], shop: Workshop) -> Iterator[tuple[Kind, str]]:
    yield kind, table[USE]
    for setting, inner in nested_components(shop.component(kind, table[USE])).items():
        if isinstance(table.get(setting), Mapping):
            yield from _named(inner, table[setting], shop)


def _settings(kind: Kind, table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in (USE, *ASSEMBLER_SETTINGS.get(kind, {}))}
