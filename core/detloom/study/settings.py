"""Studies: a TOML file that varies a recipe. Light: imports no torch.

    recipe = "yolov7-tiny"
    data = "data/bccd"
    seeds = [0, 1, 2]
    design = "one-at-a-time"            # or "grid"; above [axes], or TOML takes it for an axis

    [axes]
    assigner = ["yolov7", "atss", { use = "paa", candidates = 9 }]
    "head.implicit" = [true, false]

    [overrides]                         # common to all
    "train.epochs" = 30

The baseline has the first value of each axis. In the place of ``[axes]``, a study may name its cells: ``[cells.NAME]``
tables of overrides, of which the first is the baseline.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from detloom.errors import RecipeError, suggest
from detloom.json_values import are_equal
from detloom.recipe import SECTIONS, SINGLE_KINDS, USE
from detloom.settings import validated
from detloom.wording import shown

__all__ = [
    "SEED",
    "Design",
    "Study",
    "StudySettings",
    "flat",
    "key_complaint",
    "load_study",
    "read_tables",
    "recipe_path",
]

Design = Literal["one-at-a-time", "grid", "cells"]

TABLES = ("axes", "cells", "overrides")
# Tables or texts that each kind of file has and the others have not.
MARKS = {"study": ("axes", "cells"), "search": ("space",), "recipe": ("extends", *SINGLE_KINDS)}
COMMANDS = {"study": "ablate", "search": "search", "recipe": "train"}
SEED = "train.seed"
# They would give each seed, or each cell, pictures of its own to be measured on.
FIXED = {
    SEED: "`seeds` says which seeds each cell is trained with",
    "data.holdout": "it would measure each seed on other pictures; give the data a validation split of its own",
}


class StudySettings(BaseModel):
    """What a study says beside its tables."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: str = Field(description="A bundled name, or a path relative to the study.")
    data: str = Field(description="The data set, relative to where the command is given.")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="Each cell is trained with each.")
    design: Literal["one-at-a-time", "grid"] = Field(
        default="one-at-a-time", description="Change one axis of the baseline at a time, or combine all values."
    )
    baseline: str | None = Field(default=None, description="The cell that others are compared with; the first.")
    weights: Literal["last", "best"] = Field(
        default="last",
        description="What is compared. The best epoch is chosen on the pictures that it is then measured on.",
    )
    plugins: tuple[str, ...] = Field(default=(), description="Files of plugins, relative to the study.")
    resamples: int = Field(default=1000, ge=100, description="Draws of the bootstrap.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of the intervals.")


@dataclass(frozen=True, slots=True)
class Study:
    """A study, its form checked; its cells are not yet.

    Attributes:
        name: The file's stem.
        settings: What it says beside its tables.
        design: How axes become cells; "cells" where these are named.
        axes: Values of each axis, by recipe key.
        cells: Overrides of each named cell.
        overrides: Common to all.
    """

    name: str
    settings: StudySettings
    design: Design
    axes: Mapping[str, tuple[Any, ...]]
    cells: Mapping[str, Mapping[str, Any]]
    overrides: Mapping[str, Any]

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON data, without plugins."""
        return {
            # Where they lie is no part of the study; what they hold is that of its recipes.
            **self.settings.model_dump(mode="json", exclude={"plugins"}),
            "name": self.name,
            "design": self.design,
            "axes": {key: list(values) for key, values in self.axes.items()},
            "cells": {name: dict(overrides) for name, overrides in self.cells.items()},
            "overrides": dict(self.overrides),
        }


def load_study(path: Path | str, *, plugins: Sequence[str | Path] = ()) -> Study:
    """Return the study of a file.

    Args:
        path: The file.
        plugins: Files of plugins, beside those that the study names.

    Raises:
        RecipeError: All mistakes of its form together, each with its table.
    """
    path = Path(path)
    tables = read_tables(path, "study", "docs/ablation.md")
    plain = {key: value for key, value in tables.items() if key not in TABLES}
    settings, complaints = validated(StudySettings, plain, str(path), TABLES)
    complaints += _complaints(tables, str(path))
    if complaints:
        raise RecipeError("\n".join(complaints))
    assert isinstance(settings, StudySettings)  # noqa: S101 - narrows the type
    files = (*(str(path.parent / each) for each in settings.plugins), *map(str, plugins))
    return Study(
        name=path.stem,
        settings=settings.model_copy(update={"recipe": recipe_path(settings.recipe, path), "plugins": files}),
        design="cells" if "cells" in tables else settings.design,
        axes={key: tuple(values) for key, values in tables.get("axes", {}).items()},
        cells={name: flat(each) for name, each in tables.get("cells", {}).items()},
        overrides=flat(tables.get("overrides", {})),
    )


def read_tables(path: Path, noun: str, page: str) -> dict[str, Any]:
    """Return what a TOML file says.

    Args:
        path: The file.
        noun: What it should be, for the message.
        page: Of the docs, which shows how to write one.

    Raises:
        RecipeError: It is not there, cannot be read, is no TOML, or is another kind of file of detloom.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such {noun} file; {page} shows how to write one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the {noun} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: this is not valid TOML: {error}") from error
    of_form = {key for key, value in tables.items() if isinstance(value, Mapping | str)}
    found = next((kind for kind, marks in MARKS.items() if not of_form.isdisjoint(marks)), noun)
    if found != noun and not (found == "recipe" and "recipe" in tables):
        raise RecipeError(f"{path}: this is a {found}, no {noun}; `detloom {COMMANDS[found]} {path}` takes it")
    return tables


def recipe_path(recipe: str, study: Path) -> str:
    """Return a name as it is, and a path so that it leads from where the command is given."""
    return str(study.parent / recipe) if recipe.endswith(".toml") else recipe


def _complaints(tables: Mapping[str, Any], where: str) -> Iterator[str]:
    seeds = tables.get("seeds")
    if isinstance(seeds, list) and len({str(each) for each in seeds}) < len(seeds):
        yield f"{where}: 'seeds' has one twice; the same seed gives the same run"
    if ("axes" in tables) == ("cells" in tables):
        yield (
            f"{where}: a study needs either [axes], of which cells are made, or [cells.NAME] tables; "
            + ("keep one of them" if "axes" in tables else "it has neither")
        )
    for name in TABLES:
        if not isinstance(tables.get(name, {}), Mapping):
            yield f"{where}: '{name}' must be a table, as [{name}], got {shown(tables[name])}"
            return
    if not tables.get("axes", True):
        yield f'{where} [axes]: there is none; give a kind or a setting values, as assigner = ["yolov7", "atss"]'
    yield from _axes_complaints(tables.get("axes", {}), f"{where} [axes]")
    if "cells" in tables and len(tables["cells"]) < 2:
        yield f"{where} [cells]: a study needs two cells at least: the baseline, and one to compare with it"
    if "cells" in tables and "design" in tables:
        yield f"{where}: 'design' says how [axes] become cells; leave it out where they are named in [cells]"
    for name, cell in tables.get("cells", {}).items():
        if not isinstance(cell, Mapping):
            yield f"{where} [cells]: '{name}' must be a table of overrides, as [cells.{name}], got {shown(cell)}"
            continue
        yield from (text for key in flat(cell) if (text := key_complaint(key, f"{where} [cells.{name}]")))
    overrides = flat(tables.get("overrides", {}))
    yield from (text for key in overrides if (text := key_complaint(key, f"{where} [overrides]")))


def _axes_complaints(axes: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, values in axes.items():
        if key in StudySettings.model_fields:
            yield (
                f"{where}: '{key}' stands below [axes], so TOML takes it for an axis; "
                "move the line above [axes], to the settings of the study"
            )
        elif isinstance(values, Mapping):
            yield (
                f"{where}: '{key}' is a table; TOML reads a dotted key so unless it is quoted: "
                f'"{key}.{next(iter(values), "setting")}" = [...]'
            )
        elif text := key_complaint(key, where):
            yield text
        elif not isinstance(values, list) or len(values) < 2:
            yield f"{where}: '{key}' must be an array of two values at least, the baseline's first; got {shown(values)}"
        elif any(are_equal(value, before) for place, value in enumerate(values) for before in values[:place]):
            yield f"{where}: '{key}' has a value twice: {shown(values)}"


def key_complaint(key: str, where: str) -> str | None:
    """Return what is wrong with the key of something that varies."""
    section, dot, setting = key.partition(".")
    if key in FIXED:
        return f"{where}: '{key}' cannot be set here: {FIXED[key]}"
    if section not in SECTIONS:
        return (
            f"{where}: no section is called '{section}'.{suggest(section, SECTIONS)}\n  sections: {', '.join(SECTIONS)}"
        )
    if not dot and section not in SINGLE_KINDS:
        return f"{where}: '{key}' fills no slot; name a setting of it in quotes, as \"{key}.NAME\""
    if dot and not setting:
        return f"{where}: '{key}' names no setting; write \"{section}.NAME\""
    return None


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides by dotted key, however TOML has them; a component's table stays whole."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and USE not in value and "." not in key:
            found |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            found[key] = value
    return found
