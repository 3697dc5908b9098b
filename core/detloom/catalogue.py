"""Catalogues: what a plugin offers, as text that is read without importing it.

A catalogue is a TOML file of tables ``[kind.name]`` with the keys ``module``, ``summary`` and
``reference``. The bundled one is ``registry.toml``; a third party may ship a file of that name in
its top-level package.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from detloom.errors import PluginError, reason, suggest
from detloom.kinds import Kind

__all__ = ["RECIPE", "Row", "bundled_rows", "read_catalogue"]

RECIPE = "recipe"
"""Recipes are listed beside the components, but fill no slot."""

BUNDLED = "detloom"
KEYS = ("module", "summary", "reference")
LONGEST_SUMMARY = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One component or recipe, as a catalogue states it.

    Attributes:
        kind: A ``Kind``, or ``"recipe"``.
        name: What recipes call it.
        module: Where it is defined: the plugin module, or the package that holds the recipe file.
        summary: One line, at most 60 characters.
        reference: The source of the method: paper and section.
        plugin: The distribution that offers it.
    """

    kind: str
    name: str
    module: str
    summary: str
    reference: str
    plugin: str


def read_catalogue(path: Path, plugin: str) -> tuple[Row, ...]:
    """Return the rows of a catalogue file, sorted by kind and name.

    Raises:
        PluginError: The file is no catalogue; all mistakes are named together.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PluginError(f"{path}: the catalogue of '{plugin}' cannot be read: {reason(error)}") from error
    kinds = (*Kind, RECIPE)
    rows: list[Row] = []
    complaints: list[str] = []
    for kind, named in tables.items():
        if kind not in kinds or not isinstance(named, dict):
            complaints.append(f"[{kind}]: no kind is called '{kind}'.{suggest(kind, kinds)} Kinds: {', '.join(kinds)}.")
            continue
        for name, values in named.items():
            wrong = _row_complaint(values)
            if wrong:
                complaints.append(f"[{kind}.{name}]: {wrong}")
            else:
                rows.append(Row(kind, name, values["module"], values["summary"], values["reference"], plugin))
    if complaints:
        raise PluginError("\n".join(f"{path} {complaint}" for complaint in complaints))
    return tuple(sorted(rows, key=lambda row: (row.kind, row.name)))


def bundled_rows() -> tuple[Row, ...]:
    """Return the rows of the components that come with detloom."""
    package = Path(__file__).parent
    # An installed wheel carries the catalogue in the package; a checkout has it at its root.
    in_package = package / "registry.toml"
    return read_catalogue(in_package if in_package.exists() else package.parents[1] / "registry.toml", BUNDLED)


def _row_complaint(values: object) -> str | None:
    if not isinstance(values, dict) or sorted(values) != sorted(KEYS):
        return f"a row has exactly the keys {', '.join(KEYS)}"
    if not all(isinstance(value, str) for value in values.values()):
        return f"{', '.join(KEYS)} must be text"
    if len(values["summary"]) > LONGEST_SUMMARY:
        return f"the summary has {len(values['summary'])} characters; at most {LONGEST_SUMMARY} are listed well"
    return None
