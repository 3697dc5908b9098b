"""From a kind and a name to a class: the catalogue first, third parties when a name is not in it.

Bundled modules are imported when one of their names is first needed. Third parties are found by
entry points of the group ``detloom.plugins``; their catalogues are read without importing them.
A plugin may also be a file, which is run only when somebody names it.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from detloom.catalogue import RECIPE, Row, bundled_rows, read_catalogue
from detloom.errors import DetloomError, PluginError, RecipeError, plural, suggest
from detloom.hookspecs import PROJECT, PluginHooks
from detloom.kinds import Kind
from detloom.plugin_source import (
    STATEMENT,
    PluginFile,
    api_complaint,
    line_of,
    load_plugin_file,
    read_plugin_file,
    source_of,
    stated_api,
)

__all__ = ["DISABLE_VARIABLE", "ENTRY_POINT_GROUP", "NO_DISTRIBUTION", "Plugin", "Workshop", "contracts", "workshop"]

ENTRY_POINT_GROUP = "detloom.plugins"
DISABLE_VARIABLE = "DETLOOM_DISABLE_PLUGINS"
NO_DISTRIBUTION = "no distribution"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A third-party plugin that is installed.

    Attributes:
        name: The entry point's name, by which it can be disabled.
        module: What the entry point names.
        distribution: Name and version of the distribution it came with.
        is_disabled: Whether the environment switches it off.
        fault: Why it cannot be used, or nothing.
        rows: What its catalogue lists; empty when it ships none.
    """

    name: str
    module: str
    distribution: str
    is_disabled: bool
    fault: str | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class _Offer:
    cls: type[Any]
    plugin: str


class Workshop:
    """Finds components and recipes by name.

    Args:
        rows: The bundled catalogue; read from the package when not given.
        installed: Entry points of third parties; those of the environment when not given.
        disabled: Names of entry points to leave out; ``DETLOOM_DISABLE_PLUGINS`` when not given.
        lenient: Go on where such a name is that of no entry point; ``misfits`` tells it.

    Attributes:
        misfits: A complaint for each name to leave out that is that of no entry point.

    Raises:
        PluginError: A name to leave out is that of no entry point.
    """

    def __init__(
        self,
        *,
        rows: Sequence[Row] | None = None,
        installed: Iterable[EntryPoint] | None = None,
        disabled: Iterable[str] | None = None,
        lenient: bool = False,
    ) -> None:
        self._bundled = tuple(bundled_rows() if rows is None else rows)
        found = entry_points(group=ENTRY_POINT_GROUP) if installed is None else installed
        self._entry_points = tuple(sorted(found, key=lambda point: point.name))
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        self._disabled = frozenset(name.strip() for name in disabled) - {""}
        points = sorted({point.name for point in self._entry_points})
        self.misfits = tuple(
            f"{DISABLE_VARIABLE}: no plugin is installed under the name '{name}'.{suggest(name, points)}\n"
            f"  installed: {', '.join(points) or 'none'}     Take the name out, or correct it."
            for name in sorted(self._disabled.difference(points))
        )
        if self.misfits and not lenient:
            raise PluginError("\n".join(self.misfits))
        self._offers: dict[tuple[str, str], list[_Offer]] = {}
        self._registering = ""
        self._faults: dict[str, str] = {}
        self._catalogues: dict[str, tuple[Row, ...]] | None = None
        self._loaded: set[str] = set()
        self._files: dict[str, PluginFile] = {}
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(PluginHooks)
        self._pluggy.hook.register_components.call_historic(kwargs={"register": self._register})

    def offer(self, name: str, cls: type[Any]) -> None:
        """Add a component of one's own, for this workshop alone.

        Raises:
            PluginError: It is no component, or takes a bundled name.
        """
        self._registering = cls.__module__
        self._register(name, cls)

    def load_file(self, path: Path | str) -> PluginFile:
        """Run a plugin's file and take in what it offers; one that has changed since takes its own place.

        Raises:
            PluginError: It cannot be read, raises, was written for another API version, or breaks the contract.
        """
        file = read_plugin_file(Path(path))
        plugin = str(file.path)
        if self._files.get(plugin) == file:
            return file
        self._leave(plugin)
        self._files.pop(plugin, None)
        module = load_plugin_file(file)
        try:
            self._enter(plugin, module)
        except Exception as error:
            self._leave(plugin)
            reason = str(error) if isinstance(error, DetloomError) else f"{type(error).__name__}: {error}"
            raise PluginError(f"{line_of(error, file.path)}: {reason}") from error
        self._files[plugin] = file
        return file

    def files(self) -> tuple[PluginFile, ...]:
        """Return the plugins that are files and were loaded, by path."""
        return tuple(self._files[path] for path in sorted(self._files))

    def rows(self) -> tuple[Row, ...]:
        """Return what all catalogues list, third parties' too, without importing any of it."""
        third = (row for rows in self._read_catalogues().values() for row in rows)
        return tuple(sorted((*self._bundled, *third), key=lambda row: (row.kind, row.name, row.plugin)))

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names known for a kind: from catalogues, and from plugins loaded so far.

        Those of plugins that were left out are not among them.
        """
        usable = (rows for point, rows in self._read_catalogues().items() if point not in self._faults)
        listed = {row.name for rows in (self._bundled, *usable) for row in rows if row.kind == kind}
        return tuple(sorted(listed | {name for of, name in self._offers if of == kind}))

    def component(self, kind: Kind, name: str, *, where: str = "") -> type[Any]:
        """Return the class that fills a slot.

        Args:
            kind: The slot.
            name: What recipes call the component.
            where: File and table that ask, put before a complaint.

        Raises:
            RecipeError: Nothing has that name; says what is near, what is known, and which plugins failed.
            PluginError: Two plugins offer the name, or a bundled module breaks the contract.
        """
        for row in self._bundled:
            if row.kind == kind and row.name == name:
                self._load_bundled(row.module)
                break
        else:
            self.load_third_parties()
        offers = self._offers.get((kind, name), [])
        if len(offers) > 1:
            both = " and ".join(f"'{offer.plugin}' ({offer.cls.__module__})" for offer in offers)
            raise PluginError(
                f"{_prefix(where)}the {kind} '{name}' is offered twice, by {both}.\n"
                f"  Uninstall one, or switch one off: {DISABLE_VARIABLE}=NAME, with a name that `detloom doctor` lists."
            )
        if not offers:
            raise RecipeError(_prefix(where) + self._unknown(kind, name))
        return offers[0].cls

    def complaint(self, kind: str, name: str) -> str | None:
        """Return what is wrong with a name, or nothing; imports a plugin only if no catalogue lists the name."""
        if name in self.names(kind):
            return None
        if kind in tuple(Kind) and self._entry_points:
            self.load_third_parties()
            if name in self.names(kind):
                return None
        return self._unknown(kind, name)

    def recipe_file(self, name: str) -> Path:
        """Return the file of a recipe that a plugin ships.

        Raises:
            RecipeError: No recipe has that name.
        """
        offers = [row for row in self.rows() if row.kind == RECIPE and row.name == name]
        if not offers:
            raise RecipeError(self._unknown(RECIPE, name))
        if len(offers) > 1:
            both = " and ".join(f"'{row.plugin}'" for row in offers)
            raise PluginError(f"the recipe '{name}' is offered twice, by {both}; uninstall or disable one of them")
        spec = importlib.util.find_spec(offers[0].module)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise PluginError(f"the recipe '{name}' should lie in the package '{offers[0].module}', which is not there")
        return Path(folders[0]) / f"{name}.toml"

    def plugins(self) -> tuple[Plugin, ...]:
        """Return the third parties that are installed, as far as they are known without importing them."""
        catalogues = self._read_catalogues()
        return tuple(
            Plugin(
                point.name,
                point.value,
                _distribution(point),
                point.name in self._disabled,
                self._faults.get(point.name),
                catalogues.get(point.name, ()),
            )
            for point in self._entry_points
        )

    def name_of(self, cls: type[Any]) -> str:
        """Return what recipes call a component that was looked up here; its class's name where it was not."""
        return next(
            (name for (_, name), offers in self._offers.items() if any(offer.cls is cls for offer in offers)),
            cls.__name__,
        )

    def load_third_parties(self) -> None:
        """Import every third party that is not disabled; one that fails is left out and remembered."""
        for point in self._entry_points:
            if point.name not in self._disabled and point.name not in self._loaded:
                self._load_third_party(point)

    def third_party_components(self) -> tuple[tuple[Kind, str, type[Any]], ...]:
        """Return kind, name and class of all that third parties offer, of those loaded so far."""
        bundled = {row.module for row in self._bundled}
        return tuple(
            (Kind(kind), name, offer.cls)
            for (kind, name), offers in sorted(self._offers.items())
            for offer in offers
            if offer.plugin not in bundled
        )

    def load_bundled(self) -> None:
        """Import every bundled component.

        Raises:
            PluginError: A module registers other names than its rows say.
        """
        for row in self._bundled:
            if row.kind != RECIPE:
                self._load_bundled(row.module)

    def provider(self, kind: Kind, name: str) -> str:
        """Return name and version of the distribution that offers a component; name and digest of a file."""
        third = {point.name: point for point in self._entry_points}
        for offer in self._offers.get((kind, name), []):
            if offer.plugin in self._files:
                return str(self._files[offer.plugin])
            if offer.plugin in third:
                return _distribution(third[offer.plugin])
        return f"detloom {importlib.metadata.version('detloom')}"

    def _load_bundled(self, module: str) -> None:
        if module in self._loaded:
            return
        self._enter(module, importlib.import_module(module))
        self._loaded.add(module)
        offered = {key for key, offers in self._offers.items() for offer in offers if offer.plugin == module}
        listed = {(row.kind, row.name) for row in self._bundled if row.module == module}
        if offered != listed:
            raise PluginError(
                f"{module} registers {_pairs(offered) or 'nothing'}, but the catalogue lists {_pairs(listed)} for it; "
                "make registry.toml and the module agree"
            )

    def _load_third_party(self, point: EntryPoint) -> None:
        self._loaded.add(point.name)
        try:
            _check_api(point)
            module = point.load()
            # A version that is computed is known only now.
            complaint = api_complaint(getattr(module, STATEMENT, None), _distribution(point))
            if complaint:
                raise PluginError(complaint)  # noqa: TRY301 - one place tells what was left out
            self._enter(point.name, module)
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything, and must not take others down
            self._leave(point.name)
            self._faults[point.name] = _left_out(point, error)

    def _enter(self, plugin: str, module: ModuleType) -> None:
        self._registering = plugin
        self._pluggy.register(module, name=plugin)
        try:
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            hooks = sorted(_known_hooks())
            wrong = ", ".join(sorted(_hook_names(module) - set(hooks)))
            raise PluginError(
                f"'{wrong}' is no hook of detloom.{suggest(wrong, hooks)} Hooks: {', '.join(hooks)}"
            ) from error
        if not self._pluggy.get_hookcallers(module):
            raise PluginError(
                "it implements no hook; a plugin module has a function `register_components(register)` "
                "marked with `@detloom.hookimpl`"
            )

    def _leave(self, plugin: str) -> None:
        if self._pluggy.has_plugin(plugin):
            self._pluggy.unregister(name=plugin)
        for key in list(self._offers):
            self._offers[key] = [offer for offer in self._offers[key] if offer.plugin != plugin]
            if not self._offers[key]:
                del self._offers[key]

    def _register(self, name: str, cls: type[Any]) -> None:
        kind = _kind_of(cls)
        if lacking := sorted(cls.__abstractmethods__):
            raise PluginError(
                f"{cls.__name__} has no {', '.join(lacking)}, which {contracts()[kind].__name__} demands; "
                "docs/plugins.md has the methods of each kind"
            )
        offers = self._offers.setdefault((kind, name), [])
        bundled = any(row.kind == kind and row.name == name and row.module != cls.__module__ for row in self._bundled)
        if bundled and self._registering not in {row.module for row in self._bundled}:
            raise PluginError(
                f"it offers the {kind} '{name}', a name that detloom itself has; the plugin must choose another"
            )
        offers.append(_Offer(cls, self._registering))

    def _read_catalogues(self) -> dict[str, tuple[Row, ...]]:
        if self._catalogues is None:
            self._catalogues = {}
            for point in self._entry_points:
                if point.name in self._disabled:
                    continue
                try:
                    _check_api(point)
                except PluginError as error:
                    self._faults[point.name] = _left_out(point, error)
                    continue
                try:
                    self._catalogues[point.name] = _third_party_rows(point)
                except PluginError as error:
                    self._faults[point.name] = str(error)
        return self._catalogues

    def _unknown(self, kind: str, name: str) -> str:
        known = [each for each in self.names(kind) if each != name]
        owner = next((point for point, rows in self._read_catalogues().items() if _lists(rows, kind, name)), "")
        faults = dict(self._faults)
        if owner in faults:
            first = f"the {kind} '{name}' cannot be used: {faults.pop(owner)}"
        elif owner:
            first = (
                f"the catalogue of the plugin '{owner}' lists the {kind} '{name}', but no hook of it registers that; "
                "registry.toml and `register_components` must agree"
            )
        else:
            verb = "are" if kind == plural(kind) else "is"
            first = f"no {kind} {verb} called '{name}'.{self._described_as(kind, name) or suggest(name, known)}"
        lines = [first, f"  known {plural(kind)}: {', '.join(known)}     `detloom list {kind}` describes them."]
        if not owner and kind != RECIPE and not suggest(name, known):
            lines.append("  If a file of yours offers it, name that file: --plugin FILE.")
        lines += [f"  {fault}" for fault in faults.values()]
        off = [point.name for point in self._entry_points if point.name in self._disabled]
        if off:
            lines.append(f"  switched off by {DISABLE_VARIABLE}: {', '.join(off)}")
        return "\n".join(lines)

    def _described_as(self, kind: str, name: str) -> str:
        """Return a suggestion of what a catalogue describes with the very word that was taken for a name."""
        found = [row for row in self.rows() if row.kind == kind and name.lower() in row.summary.lower().split()]
        return f" Did you mean '{found[0].name}' ({found[0].summary})?" if found else ""


@cache
def workshop() -> Workshop:
    """Return the workshop of this environment."""
    return Workshop()


def contracts() -> dict[Kind, type[Any]]:
    """Return the contract of each kind; imports them, and with them torch."""
    from detloom import interfaces

    return {
        Kind.BACKBONE: interfaces.Backbone,
        Kind.NECK: interfaces.Neck,
        Kind.HEAD: interfaces.Head,
        Kind.ASSIGNER: interfaces.Assigner,
        Kind.CRITERION: interfaces.Criterion,
        Kind.REPARAM: interfaces.ReparamPass,
        Kind.EMA: interfaces.Ema,
        Kind.ANCHORS: interfaces.AnchorSearch,
        Kind.DATASET: interfaces.Dataset,
        Kind.EVALUATOR: interfaces.Evaluator,
        Kind.OBSERVER: interfaces.Observer,
        Kind.IMPORTER: interfaces.Importer,
        Kind.EXPORTER: interfaces.Exporter,
        Kind.SCALING: interfaces.Scaling,
        Kind.SEARCH: interfaces.SearchStrategy,
    }


def _kind_of(cls: type[Any]) -> Kind:
    bases = contracts()
    for kind, base in bases.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return kind
    if isinstance(cls, tuple(bases.values())):
        raise PluginError(
            f"{type(cls).__name__}() is a component that was built; register the class: {type(cls).__name__}"
        )
    raise PluginError(
        f"{cls!r} is no component; it must derive from one of {', '.join(base.__name__ for base in bases.values())}"
    )


def _check_api(point: EntryPoint) -> None:
    """Refuse a plugin of another API version before any of it is run, as its imports may fail here.

    Raises:
        PluginError: It states another version.
    """
    source = source_of(point.module)
    complaint = api_complaint(stated_api(source.read_bytes()), _distribution(point)) if source else None
    if complaint:
        raise PluginError(complaint)


def _left_out(point: EntryPoint, error: Exception) -> str:
    reason = str(error) if isinstance(error, DetloomError) else f"{type(error).__name__}: {error}"
    return f"plugin '{point.name}' ({_distribution(point)}, {point.value}) was left out: {reason}"


def _third_party_rows(point: EntryPoint) -> tuple[Row, ...]:
    # Only the top-level package is looked up: finding a submodule would import its parent.
    spec = importlib.util.find_spec(point.module.partition(".")[0])
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "registry.toml"
        if path.exists():
            return read_catalogue(path, _distribution(point).partition(" ")[0])
    return ()


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else NO_DISTRIBUTION


def _lists(rows: Iterable[Row], kind: str, name: str) -> bool:
    return any((row.kind, row.name) == (kind, name) for row in rows)


def _known_hooks() -> set[str]:
    return {name for name in vars(PluginHooks) if not name.startswith("_")}


def _hook_names(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if hasattr(value, f"{PROJECT}_impl")}


def _pairs(pairs: set[tuple[str, str]]) -> str:
    return ", ".join(f"{kind} '{name}'" for kind, name in sorted(pairs))


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""
