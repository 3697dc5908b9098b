"""Recipes: one TOML file that names a component for each slot and gives its settings.

A recipe may extend another (``extends = "yolov7-tiny"``, or a path relative to the file). Tables
merge key by key; a table whose ``use`` changes is replaced whole, so that no setting of the old
component is left; arrays are replaced whole. Overrides (``--set assigner.use=atss``) are one more
layer of the same kind. Names and structure are checked here, without importing any component,
unless there is a ``[scaling]``; the settings of components are checked when they are built.

``plugins = ["my_assigner.py"]`` names files of plugins, by paths relative to the recipe's own file.
They are run when a recipe is read from its file, and never for one that an artifact or a run carries.
"""

import copy
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from detloom.data.settings import AugmentSettings, DataSettings
from detloom.engine.settings import PredictSettings, TrainSettings
from detloom.errors import RecipeError, plural, reason, suggest, with_article
from detloom.kinds import Kind
from detloom.plugin_source import short_name
from detloom.settings import validated
from detloom.wording import shown
from detloom.workshop import Workshop, workshop

__all__ = [
    "OVERRIDE",
    "PLAIN_SECTIONS",
    "Recipe",
    "load_recipe",
    "parse_override",
    "parse_value",
    "plugin_hint",
    "resolve_recipe",
]

OVERRIDE = "overrides"
"""The origin of a value that an override set, by ``--set`` or in Python."""

OPTION = "--set"

PLAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "augment": AugmentSettings,
    "data": DataSettings,
    "predict": PredictSettings,
    "train": TrainSettings,
}
"""Sections that fill no slot, and what each must fit."""

USE = "use"
PASSES = "passes"
OBSERVERS = "observers"
SUMMARY = "summary"
PLUGINS = "plugins"
NO_SLOTS = (Kind.REPARAM, Kind.OBSERVER, Kind.IMPORTER, Kind.EXPORTER, Kind.SEARCH)
SINGLE_KINDS = tuple(kind for kind in Kind if kind not in NO_SLOTS)
SECTIONS = (*(str(kind) for kind in SINGLE_KINDS), str(Kind.REPARAM), OBSERVERS, *PLAIN_SECTIONS)
# What TOML's arrays, tables and quoted texts begin with.
OPENINGS = tuple("[{\"'")
# Read by the assembler, not by the head, which is given the count.
ASSEMBLER_SETTINGS = {Kind.HEAD: {"num_classes": int}}


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A resolved recipe.

    Attributes:
        name: The bundled name, or the file's stem.
        tables: All sections, merged.
        origins: The file that set each value, by dotted key.
        summary: What the recipe is for, in its own words.
        plugins: Files of plugins that it needs; names without folders where an artifact carries it.
    """

    name: str
    tables: Mapping[str, Any]
    origins: Mapping[str, str]
    summary: str = ""
    plugins: tuple[str, ...] = ()

    @classmethod
    def from_toml(cls, text: str, where: str, *, name: str = "recipe") -> Self:
        """Return a recipe from text that extends nothing, as an artifact carries it; runs no plugin that it names."""
        tables = _parsed(text, where)
        summary = str(tables.pop(SUMMARY, ""))
        plugins = _popped_plugins(tables, where)
        return cls(name, tables, dict.fromkeys(_leaves(tables), where), summary, tuple(plugins))

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML."""
        import tomlkit

        head: dict[str, Any] = {SUMMARY: self.summary} if self.summary else {}
        if self.plugins:
            head[PLUGINS] = list(self.plugins)
        return tomlkit.dumps({**head, **self.tables})

    def section(self, name: str) -> BaseModel:
        """Return a plain section, validated; defaults stand for what the recipe leaves out."""
        settings, complaints = validated(PLAIN_SECTIONS[name], self.tables.get(name, {}), partial(self.where, name))
        if settings is None:
            raise RecipeError("\n".join(complaints))
        return settings

    @property
    def data(self) -> DataSettings:
        """Return the settings of data."""
        settings = self.section("data")
        assert isinstance(settings, DataSettings)  # noqa: S101 - narrows the type
        return settings

    @property
    def augment(self) -> AugmentSettings:
        """Return the settings of augmentation."""
        settings = self.section("augment")
        assert isinstance(settings, AugmentSettings)  # noqa: S101 - narrows the type
        return settings

    @property
    def train(self) -> TrainSettings:
        """Return the settings of training."""
        settings = self.section("train")
        assert isinstance(settings, TrainSettings)  # noqa: S101 - narrows the type
        return settings

    @property
    def predict(self) -> PredictSettings:
        """Return the settings of prediction."""
        settings = self.section("predict")
        assert isinstance(settings, PredictSettings)  # noqa: S101 - narrows the type
        return settings

    def where(self, section: str, key: str | None = None) -> str:
        """Return the table to name in a complaint, and the file that set the key, or the files of the whole section."""
        at = f"{section}.{key}"
        if key is not None and at in self.origins:
            return f"{self.origins[at]} [{section}]"
        files = {origin for key, origin in self.origins.items() if key == section or key.startswith(f"{section}.")}
        return f"{' + '.join(sorted(files)) or self.name} [{section}]"

    def with_overrides(self, overrides: Mapping[str, Any], origin: str = OVERRIDE) -> "Recipe":
        """Return the recipe with dotted keys set, as one more layer."""
        tables, origins = copy.deepcopy(dict(self.tables)), dict(self.origins)
        _merge(tables, origins, _nested(overrides), origin, ())
        return replace(self, tables=tables, origins=origins)

    def with_plugins(self, files: Sequence[Path]) -> "Recipe":
        """Return the recipe with files of plugins; one takes the place of another of its name."""
        kept = {short_name(name): name for name in self.plugins}
        return replace(self, plugins=tuple({**kept, **{short_name(path): str(path) for path in files}}.values()))


def load_recipe(
    source: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[str | Path] = (),
    shop: Workshop | None = None,
    scale: bool = True,
) -> Recipe:
    """Return a resolved recipe, its names and structure checked, and scaled where it has ``[scaling]``.

    Args:
        source: A bundled name, a path, or a recipe.
        overrides: Values by dotted key, as ``{"assigner.use": "atss"}``.
        plugins: Files of plugins that are run, beside those that a recipe's file names.
        shop: Where names are looked up; the environment's workshop when not given.
        scale: Replace ``[scaling]`` by what it makes of the other sections, after all overrides; false leaves it as it
            is, for those who show it, or have more overrides.

    Raises:
        RecipeError: All mistakes together, each with its file and table.
        PluginError: The file of a plugin cannot be used.
    """
    shop = shop or workshop()
    recipe, complaints = resolve_recipe(source, overrides, shop, plugins)
    if complaints:
        raise RecipeError("\n".join(complaints))
    if not scale or Kind.SCALING not in recipe.tables:
        return recipe
    # It imports the components, and with them torch.
    from detloom.scaling import scaled

    return scaled(recipe, shop)


def resolve_recipe(
    source: str | Path | Recipe,
    overrides: Mapping[str, Any] | None,
    shop: Workshop,
    plugins: Sequence[str | Path] = (),
) -> tuple[Recipe, list[str]]:
    """Return a resolved recipe, and every complaint about its names and structure.

    Raises:
        RecipeError: A file is missing or is no TOML, or an override cannot be written in it, or one is given
            something else altogether.
        PluginError: The file of a plugin cannot be used.
    """
    if not isinstance(source, str | Path | Recipe):
        raise RecipeError(
            f"recipe: {source!r} names none; give a bundled name, as 'yolov7-tiny', the path of a .toml file, or a "
            "Recipe. `detloom list recipe` shows the bundled ones."
        )
    if overrides is not None and not (
        isinstance(overrides, Mapping) and all(isinstance(key, str) for key in overrides)
    ):
        raise RecipeError(
            f"{OVERRIDE}: {overrides!r} is no table of values by dotted key; write "
            '{"head.num_classes": 3, "assigner.use": "atss"}'
        )
    given = [shop.load_file(path).path for path in plugins]
    recipe = source if isinstance(source, Recipe) else _read(source, shop, {short_name(path) for path in given})
    recipe = recipe.with_plugins(given)
    if overrides:
        recipe = recipe.with_overrides(overrides)
    complaints = _complaints(recipe, shop)
    return recipe, complaints + plugin_hint(recipe, shop) if complaints else []


def plugin_hint(recipe: Recipe, shop: Workshop) -> list[str]:
    """Return what to say of files of plugins that a recipe needs and that were not given, if there are some."""
    given = {file.name for file in shop.files()}
    missing = [name for name in map(short_name, recipe.plugins) if name not in given]
    if not missing:
        return []
    options = " ".join(f"--plugin {name}" for name in missing)
    hint = (
        f"{recipe.name} needs plugins that are files, which are not run unasked: {', '.join(missing)}\n"
        f"  If you have the file and trust it, give its path: {options}; in Python plugins={missing}."
    )
    return [hint]


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is TOML, or else plain text.

    Raises:
        RecipeError: There is no ``=``, or no key, or an array, table or quoted text is broken.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"{OPTION} {text}: write key=value, as in {OPTION} assigner.use=atss")
    return key, parse_value(value, given=f"{OPTION} {text}", example=f"{OPTION} 'data.image_size=[640, 640]'")


def parse_value(text: str, *, given: str, example: str) -> Any:
    """Return the value of an option: TOML, or else plain text.

    Args:
        text: The value as it was typed.
        given: Option and value, for a complaint.
        example: The same, as it would be right.

    Raises:
        RecipeError: An array, table or quoted text is broken.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        value = text.strip()
        # Text needs no quotes, but what begins as TOML is meant as TOML.
        if value[:1] in OPENINGS:
            raise RecipeError(
                f"{given}: {value} is not valid TOML: {error}; is it closed, and quoted for the shell, as in {example}?"
            ) from error
        return value


def _read(source: str | Path, shop: Workshop, given: Collection[str]) -> Recipe:
    """Return a recipe as its files have it; runs the plugins that they name, but for those that were given."""
    path = _path_of(source, shop, None)
    layers: list[tuple[str, dict[str, Any]]] = []
    plugins: list[Path] = []
    seen: list[Path] = []
    at: Path | None = path
    while at is not None:
        if at.resolve() in seen:
            if len(seen) == 1:
                raise RecipeError(f"{at}: the recipe extends itself; name another in `extends`, or remove the line")
            chain = " -> ".join(str(each) for each in (*seen, at.resolve()))
            raise RecipeError(f"{path}: `extends` goes round in a circle: {chain}; remove one of them")
        seen.append(at.resolve())
        tables = _parsed(_text(at), str(at))
        parent = tables.pop("extends", None)
        if parent is not None and not isinstance(parent, str):
            raise RecipeError(f"{at}: `extends` must be one name or path, got {shown(parent)}")
        # What is extended comes first.
        named = [at.parent / name for name in _popped_plugins(tables, str(at))]
        plugins = [*(each for each in named if short_name(each) not in given), *plugins]
        layers.append((_label(at, shop), tables))
        at = None if parent is None else _path_of(parent, shop, at)
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    summary = str(layers[0][1].get(SUMMARY, ""))
    for label, tables in reversed(layers):
        tables.pop(SUMMARY, None)
        _merge(merged, origins, tables, label, ())
    files = [shop.load_file(each).path for each in plugins]
    return Recipe(path.stem, merged, origins, summary).with_plugins(files)


def _path_of(source: str | Path, shop: Workshop, extended_by: Path | None) -> Path:
    path = Path(source)
    looks_like_a_path = isinstance(source, Path) or path.suffix == ".toml" or len(path.parts) > 1
    if extended_by is not None and not path.is_absolute():
        path = extended_by.parent / path
    if looks_like_a_path:
        return path
    try:
        return shop.recipe_file(str(source))
    except RecipeError as error:
        if path.is_dir():
            return path
        where = f"{extended_by} extends: " if extended_by else ""
        raise RecipeError(f"{where}{error}\n  A recipe of your own is named by its path, ending in .toml.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: there is no such recipe file; `detloom list recipe` shows the bundled ones"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: the recipe cannot be read: {reason(error)}; give a TOML file, and save it as UTF-8"
        ) from error
    except OSError as error:
        if path.is_dir():
            raise RecipeError(
                f"{path}: this is a folder; give a recipe's file, which ends in .toml, or a bundled name"
            ) from error
        raise RecipeError(f"{path}: the recipe cannot be read: {reason(error)}") from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: this is not valid TOML: {error}") from error


def _popped_plugins(tables: dict[str, Any], where: str) -> list[str]:
    plugins = tables.pop(PLUGINS, [])
    if not isinstance(plugins, list) or not all(isinstance(each, str) for each in plugins):
        raise RecipeError(f'{where}: `plugins` must be an array of paths, as plugins = ["my_assigner.py"]')
    return plugins


def _label(path: Path, shop: Workshop) -> str:
    try:
        bundled = shop.recipe_file(path.stem)
    except RecipeError:
        return str(path)
    return path.stem if bundled.resolve() == path.resolve() else str(path)


def _merge(
    into: dict[str, Any], origins: dict[str, str], layer: Mapping[str, Any], origin: str, path: tuple[str, ...]
) -> None:
    for key, value in layer.items():
        here = (*path, key)
        dotted = ".".join(here)
        old = into.get(key)
        if isinstance(value, Mapping):
            keeps = isinstance(old, dict) and (USE not in value or value[USE] == old.get(USE))
            if not keeps:
                _forget(origins, dotted)
                into[key] = {}
                origins[dotted] = origin
            _merge(into[key], origins, value, origin, here)
        else:
            _forget(origins, dotted)
            into[key] = value
            origins[dotted] = origin


def _forget(origins: dict[str, str], dotted: str) -> None:
    for key in [key for key in origins if key == dotted or key.startswith(f"{dotted}.")]:
        del origins[key]


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *tables, last = dotted.split(".")
        at = nested
        for name in tables:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise RecipeError(f"{OVERRIDE} {dotted}: '{name}' is given both a value and settings; keep one")
        if last in at:
            raise RecipeError(f"{OVERRIDE} {dotted}: '{last}' is given both as a table and key by key; keep one")
        at[last] = _as_toml(value, dotted)
    return nested


def _as_toml(value: Any, dotted: str) -> Any:
    """Return what TOML would give for a value of Python."""
    match value:
        case Recipe() | None:
            raise RecipeError(f"{OVERRIDE} {dotted}: {value!r} cannot be written in TOML; leave the key out instead")
        case Mapping():
            return {str(key): _as_toml(each, f"{dotted}.{key}") for key, each in value.items()}
        case list() | tuple():
            return [_as_toml(each, dotted) for each in value]
        case Path():
            return str(value)
        case bool() | int() | float() | str():
            return value
        case _:
            raise RecipeError(
                f"{OVERRIDE} {dotted}: {value!r} cannot be written in TOML; give text, a number, true or false, "
                "or lists and tables of them"
            )


def _leaves(tables: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[str]:
    found: list[str] = []
    for key, value in tables.items():
        found.append(".".join((*path, key)))
        if isinstance(value, Mapping):
            found += _leaves(value, (*path, key))
    return found


def _complaints(recipe: Recipe, shop: Workshop) -> list[str]:
    found: list[str] = []
    for section, table in recipe.tables.items():
        where = recipe.where(section)
        if section == PLUGINS:
            found.append(f"{where}: `plugins` stands at the top of a recipe's file, or is given with --plugin PATH")
        elif section not in SECTIONS:
            found.append(
                f"{where}: no section is called '{section}'.{_section_hint(section)}\n  sections: {', '.join(SECTIONS)}"
            )
        elif not isinstance(table, Mapping):
            found.append(f"{where}: '{section}' must be a table, got {shown(table)}")
        elif section in PLAIN_SECTIONS:
            found += validated(PLAIN_SECTIONS[section], table, partial(recipe.where, section))[1]
        elif section == Kind.REPARAM:
            found += _pass_complaints(table, shop, partial(recipe.where, section))
        elif section == OBSERVERS:
            if USE in table:
                found.append(f"{where}: observers have no `use`; each has a table of its own, as [observers.csv]")
            observers = {name: value for name, value in table.items() if name != USE}
            wrong = {name: shop.complaint(Kind.OBSERVER, name) for name in observers}
            found += [f"{recipe.where(f'{section}.{name}')}: {text}" for name, text in wrong.items() if text]
            found += [
                f"{where}: '{name}' must be a table of settings, as [observers.{name}], got {shown(value)}"
                for name, value in observers.items()
                if not isinstance(value, Mapping)
            ]
        else:
            found += _slot_complaints(section, table, shop, partial(recipe.where, section))
    return found


def _section_hint(wrong: str) -> str:
    """Return the section that was meant, or the one that has a setting of that name."""
    owners = [f"{name}.{wrong}" for name, model in PLAIN_SECTIONS.items() if wrong in model.model_fields]
    return f" Did you mean {' or '.join(owners)}?" if owners else suggest(wrong, SECTIONS)


def _slot_complaints(kind: str, table: Mapping[str, Any], shop: Workshop, where: Callable[[str], str]) -> list[str]:
    name = table.get(USE)
    if isinstance(name, str):
        wrong = shop.complaint(kind, name)
        found = [f"{where(USE)}: {wrong}"] if wrong else []
    else:
        known = ", ".join(shop.names(kind))
        found = [f"{where(USE)}: `use` must name {with_article(kind)}; known {plural(kind)}: {known}"]
    for key, accepted in ASSEMBLER_SETTINGS.get(Kind(kind), {}).items():
        value = table.get(key)
        if value is not None and (type(value) is not accepted or value < 1):
            found.append(f"{where(key)}: '{key}' is {shown(value)}: it must be a whole number of at least 1")
    return found


def _pass_complaints(table: Mapping[str, Any], shop: Workshop, where: Callable[[str], str]) -> list[str]:
    unknown = [key for key in table if key != PASSES]
    found = [f"{where(key)}: no setting is called '{key}'. Settings: {PASSES}." for key in unknown]
    place = where(PASSES)
    passes = table.get(PASSES, [])
    if not isinstance(passes, list):
        return [*found, f"{place}: '{PASSES}' must be an array of names, or of tables with `use` and settings"]
    for each in passes:
        name = each.get(USE) if isinstance(each, Mapping) else each
        if not isinstance(name, str):
            found.append(f"{place}: {shown(each)} names no pass; write a name, or a table with `use` and settings")
            continue
        wrong = shop.complaint(Kind.REPARAM, name)
        if wrong:
            found.append(f"{place}: {wrong}")
    return found
