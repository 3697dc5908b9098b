"""Write the tables of components and of the kit into the documents: ``python docs/tables.py``.

They come from the catalogue, from the components' own docstrings and from the tests of the kit, so that they
cannot disagree with the code; a test holds that they are up to date.
"""

import importlib.util
import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

from detloom.catalogue import RECIPE, Row, bundled_rows
from detloom.kinds import Kind
from detloom.recipe import PLAIN_SECTIONS, load_recipe
from detloom.testing import CHECKS
from detloom.workshop import Workshop, contracts

__all__ = ["main", "mistakes", "pages"]

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- written by docs/tables.py: begin -->", "<!-- end -->"
HEAD = """# Components

Written by `docs/tables.py` from the catalogue and the components themselves; `detloom info KIND NAME` prints the same.
"""
HEAD_OF_KIT = """# The checks of the conformance kit

Written by `docs/tables.py` from the kit and its tests. [Testing a plugin](plugins.md#testing-a-plugin) says how to run
the kit; this page has every check, what it is for, and how we know that it sees something: a component that is wrong in
one way, which this check catches and no other check of its kind does, with a part of what the author is told.
`tests/core/testing` holds all three, for every row.
"""
ORDER = (*(str(kind) for kind in Kind), RECIPE)


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Return the text that each page should have."""
    rows = sorted(bundled_rows(), key=lambda row: (ORDER.index(row.kind), row.name))
    readme, provenance, recipes = ROOT / "README.md", ROOT / "docs" / "provenance.md", ROOT / "docs" / "recipes.md"
    return {
        readme: _between_marks(readme, _overview(rows)),
        provenance: _between_marks(provenance, _sources(rows)),
        recipes: _between_marks(recipes, _plain_sections()),
        ROOT / "docs" / "components.md": _reference(rows),
        ROOT / "docs" / "kit.md": _checks(),
    }


def mistakes() -> dict[Kind, dict[str, tuple[type[Any], str]]]:
    """Return, for each kind and check, the component that it alone catches, and a part of the complaint.

    They are the tables ``WRONG`` of the tests of the kit.
    """
    found: dict[Kind, dict[str, tuple[type[Any], str]]] = {}
    for path in sorted((ROOT / "tests" / "core" / "testing").glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"mistakes_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for check, (cls, told, *_) in getattr(module, "WRONG", {}).items():
            kind = next(kind for kind, base in contracts().items() if issubclass(cls, base))
            found.setdefault(kind, {})[check] = (cls, told)
    return found


def _between_marks(path: Path, text: str) -> str:
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines '{BEGIN}' and '{END}'")
    return f"{before}{begin}\n{text}{end}{after}"


def _overview(rows: list[Row]) -> str:
    lines = ["| kind | name | what it is |", "|---|---|---|"]
    for kind, named in groupby(rows, key=lambda row: row.kind):
        label = kind
        for row in named:
            lines.append(f"| {label} | [`{row.name}`](docs/components.md#{_anchor(row)}) | {row.summary} |")
            label = ""
    return "\n".join(lines) + "\n"


def _sources(rows: list[Row]) -> str:
    lines = ["| kind | name | source | module |", "|---|---|---|---|"]
    lines += [f"| {row.kind} | `{row.name}` | {row.reference} | `{row.module}` |" for row in rows]
    return "\n".join(lines) + "\n"


def _plain_sections() -> str:
    parts = []
    for name, model in sorted(PLAIN_SECTIONS.items()):
        parts.append(f"\n### [{name}]\n\n{inspect.getdoc(model)}\n\n| setting | default | meaning |\n|---|---|---|\n")
        for key, field in model.model_fields.items():
            parts.append(f"| `{key}` | `{_toml(field.default)}` | {field.description} |\n")
    return "".join(parts)


def _reference(rows: list[Row]) -> str:
    shop = Workshop(installed=())
    parts = [HEAD]
    for kind, named in groupby(rows, key=lambda row: row.kind):
        parts.append(f"\n## {kind}\n")
        for row in named:
            parts.append(f"\n### {kind} {row.name}\n\n{row.summary}. Source: {row.reference}.\n")
            if kind == RECIPE:
                parts.append(f"\n{load_recipe(row.name).summary or row.summary} `detloom show {row.name}` prints it.\n")
            else:
                parts.append(_component(shop.component(Kind(kind), row.name)))
    return "".join(parts)


def _checks() -> str:
    wrong = mistakes()
    parts = [HEAD_OF_KIT]
    for kind, checks in CHECKS.items():
        parts.append(f"\n## {kind}\n\n| check | what for | a component that it alone catches | its author is told |\n")
        parts.append("|---|---|---|---|\n")
        for check in checks:
            cls, told = wrong[kind][check.__name__]
            if "__doc__" not in vars(cls):
                raise ValueError(f"{cls.__name__} says in no docstring what is wrong with it")
            cells = (check.__name__.replace("_", " "), _first(check), f"`{cls.__name__}`: {_first(cls)}", f"`{told}`")
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


def _first(documented: object) -> str:
    """Return the first line of a docstring."""
    return _code((inspect.getdoc(documented) or "").partition("\n")[0])


def _component(cls: type[Any]) -> str:
    text, _, arguments = inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")
    described = dict(_arguments(arguments))
    hints = get_type_hints(cls.__init__)
    settings = [each for each in inspect.signature(cls).parameters.values() if each.kind is each.KEYWORD_ONLY]
    lines = ["", _code(text.strip()), ""]
    if settings:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        kind = re.sub(r"\b(?:\w+\.)+", "", inspect.formatannotation(hints.get(setting.name, Any))).replace("|", "\\|")
        default = "required" if setting.default is setting.empty else f"`{_toml(setting.default)}`"
        lines.append(f"| `{setting.name}` | {kind} | {default} | {_code(described.get(setting.name, ''))} |")
    return "\n".join(lines).rstrip() + "\n"


def _arguments(text: str) -> Iterator[tuple[str, str]]:
    block = re.split(r"\n\n|\n\S", text)[0]
    for name, meaning in re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", block, flags=re.MULTILINE):
        yield name, re.sub(r"\s+", " ", meaning)


def _code(text: str) -> str:
    return text.replace("``", "`")


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return str(value)


def _anchor(row: Row) -> str:
    return f"{row.kind}-{row.name}"


if __name__ == "__main__":
    main()
