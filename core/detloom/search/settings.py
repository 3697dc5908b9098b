"""Searches: a TOML file of a recipe with choices. Light: imports no torch.

recipe = "yolov7-tiny"
data = "data/bccd"
trials = 24
objectives = ["AP", "gflops"]

[space]
assigner = ["yolov7", "simota", { use = "paa", candidates = 9 }]
"backbone.width" = { low = 16, high = 64, step = 16 }

[constraints]
parameters = 4_000_000

[search]
use = "evolution"

[overrides]                         # common to all points
"data.image_size" = 320

[proxy]                             # in the search alone, not in the recipe of the winner
"train.epochs" = 4
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from detloom.errors import RecipeError
from detloom.json_values import are_equal
from detloom.recipe import USE
from detloom.search.space import Choice, Objective, SearchSpace
from detloom.settings import validated
from detloom.study.settings import SEED, flat, key_complaint, read_tables, recipe_path
from detloom.wording import shown

__all__ = ["AP", "MAXIMISED", "SCORES", "Search", "SearchSettings", "load_search"]

TABLES = ("space", "constraints", "search", "overrides", "proxy")
AP = "AP"
SCORES = ("synflow", "naswot")
"""Zero-cost scores: what a network is worth, told without training it."""
MAXIMISED = (AP, *SCORES)
MOST_OPTIONS = 1000
# What says how a point is measured.
MEASURES = ("data.val", "dataset", "evaluator")


class SearchSettings(BaseModel):
    """What a search says beside its tables."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: str = Field(description="A bundled name, or a path relative to the file.")
    data: str = Field(description="The data set, relative to where the command is given.")
    trials: int = Field(default=24, ge=1, description="How many points are trained, or scored.")
    parallel: int = Field(
        default=1, ge=1, description="How many points are proposed at once, none of them knowing the others' results."
    )
    seed: int = Field(default=0, ge=0, description="Of the proposals; `train.seed` is that of the trainings.")
    objectives: tuple[str, ...] = Field(
        default=(AP,),
        min_length=1,
        description="What is wanted, the first before all: AP or a zero-cost score, which are to be high, and costs.",
    )
    target: str | None = Field(
        default=None, description="An exporter or a device, whose preflight gives figures to want or to hold down."
    )
    plugins: tuple[str, ...] = Field(default=(), description="Files of plugins, relative to the file.")


@dataclass(frozen=True, slots=True)
class Search:
    """A search, its form checked; whether its points can be built is not.

    Attributes:
        name: The file's stem.
        settings: What it says beside its tables.
        space: What may be chosen, and what is wanted.
        constraints: The most of a figure that a point may have, by the figure's name.
        strategy: The table of the strategy.
        overrides: Common to all points.
        proxy: Common to all points in the search alone.
    """

    name: str
    settings: SearchSettings
    space: SearchSpace
    constraints: Mapping[str, float]
    strategy: Mapping[str, Any]
    overrides: Mapping[str, Any]
    proxy: Mapping[str, Any]

    @property
    def trains(self) -> bool:
        """Return whether points are trained at all."""
        return any(each.name == AP for each in self.space.objectives)

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON data, without plugins."""
        return {
            # Where they lie is no part of the search; what they hold is that of its recipe.
            **self.settings.model_dump(mode="json", exclude={"plugins"}),
            "name": self.name,
            "space": {choice.key: list(choice.options) for choice in self.space.choices},
            # Points are places in this order, in which mappings do not differ.
            "order": [choice.key for choice in self.space.choices],
            "constraints": dict(self.constraints),
            "search": dict(self.strategy),
            "overrides": dict(self.overrides),
            "proxy": dict(self.proxy),
        }


def load_search(path: Path | str, *, plugins: Sequence[str | Path] = ()) -> Search:
    """Return the search of a file.

    Args:
        path: The file.
        plugins: Files of plugins, beside those that it names.

    Raises:
        RecipeError: All mistakes of its form together, each with its table.
    """
    path = Path(path)
    tables = read_tables(path, "search", "docs/search.md")
    plain = {key: value for key, value in tables.items() if key not in TABLES}
    settings, complaints = validated(SearchSettings, plain, str(path), TABLES)
    complaints += _complaints(tables, str(path))
    if isinstance(settings, SearchSettings):
        complaints += _objective_complaints(settings, str(path))
    if complaints:
        raise RecipeError("\n".join(complaints))
    assert isinstance(settings, SearchSettings)  # noqa: S101 - narrows the type
    files = (*(str(path.parent / each) for each in settings.plugins), *map(str, plugins))
    choices = tuple(_choice(key, each) for key, each in tables["space"].items())
    objectives = tuple(Objective(name, name in MAXIMISED) for name in settings.objectives)
    return Search(
        name=path.stem,
        settings=settings.model_copy(update={"recipe": recipe_path(settings.recipe, path), "plugins": files}),
        space=SearchSpace(choices, objectives, settings.trials),
        constraints=dict(tables.get("constraints", {})),
        strategy=tables.get("search", {USE: "evolution"}),
        overrides=flat(tables.get("overrides", {})),
        proxy=flat(tables.get("proxy", {})),
    )


def _choice(key: str, options: Any) -> Choice:
    if isinstance(options, Mapping):
        return Choice(key, tuple(_range(options)), is_ordered=True)
    is_ordered = all(isinstance(each, int | float) and not isinstance(each, bool) for each in options)
    return Choice(key, tuple(options), is_ordered=is_ordered and list(options) == sorted(options))


def _range(table: Mapping[str, Any]) -> list[float]:
    """Return the values of ``{ low, high, step }`` or ``{ low, high, count, log }``."""
    low, high = table["low"], table["high"]
    if "step" in table:
        values = [low + place * table["step"] for place in range(math.floor((high - low) / table["step"] + 1e-9) + 1)]
        return [_without_dust(each) for each in values]
    count = table["count"]
    shares = [place / (count - 1) for place in range(count)]
    values = [low * (high / low) ** share if table.get("log") else low + (high - low) * share for share in shares]
    if isinstance(low, float) or isinstance(high, float):
        return [_without_dust(each) for each in values]
    return sorted({round(each) for each in values})


def _without_dust(number: float) -> float:
    """Return a number as somebody would have written it: 0.3, and not the 0.30000000000000004 of a sum."""
    return number if isinstance(number, int) else float(f"{number:.12g}")


def _complaints(tables: Mapping[str, Any], where: str) -> Iterator[str]:
    for name in TABLES:
        if not isinstance(tables.get(name, {}), Mapping):
            yield f"{where}: '{name}' must be a table, as [{name}], got {shown(tables[name])}"
            return
    if not tables.get("space"):
        yield f'{where}: a search needs [space]: what may be chosen, as assigner = ["yolov7", "atss"]'
    for key, options in tables.get("space", {}).items():
        yield from _choice_complaints(key, options, f"{where} [space]")
    for name in ("overrides", "proxy"):
        for key in flat(tables.get(name, {})):
            if key in tables.get("space", {}):
                yield f"{where} [{name}]: '{key}' is chosen in [space]; keep it in one of the two"
            elif key not in (SEED, "data.holdout") and (text := key_complaint(key, f"{where} [{name}]")):
                yield text
    yield from _constraint_complaints(tables.get("constraints", {}), f"{where} [constraints]")
    strategy = tables.get("search", {USE: "evolution"})
    if not isinstance(strategy.get(USE), str):
        yield f'{where} [search]: it must say use = "NAME", a strategy; `detloom list search` describes them'


def _constraint_complaints(constraints: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, limit in constraints.items():
        if key in MAXIMISED:
            yield f"{where}: '{key}' is wanted high; constraints are the most that a point may cost"
        elif isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
            yield f"{where}: '{key}' must be a number above 0, the most that a point may have; got {shown(limit)}"


def _choice_complaints(key: str, options: Any, where: str) -> Iterator[str]:
    if isinstance(options, Mapping) and "low" not in options and "high" not in options:
        yield (
            f"{where}: '{key}' is a table; TOML reads a dotted key so unless it is quoted: "
            f'"{key}.{next(iter(options), "setting")}" = [...]'
        )
    elif key in SearchSettings.model_fields:
        yield f"{where}: '{key}' stands below [space], so TOML takes it for a choice; move the line above the tables"
    elif key in MEASURES or key.partition(".")[0] in MEASURES:
        yield f"{where}: '{key}' is no choice: all points are measured alike; set it in [overrides]"
    elif key == SEED:
        yield f"{where}: '{key}' is no choice: all points are trained with the same seed, that of [overrides]"
    elif text := key_complaint(key, where):
        yield text
    elif isinstance(options, Mapping):
        yield from (f"{where}: '{key}' {text}" for text in _range_complaints(options))
    elif not isinstance(options, list) or len(options) < 2:
        yield (
            f"{where}: '{key}' must be an array of two options at least, or a range as {{ low = 16, high = 64, step = "
            f"16 }}; got {shown(options)}"
        )
    elif any(are_equal(each, other) for place, each in enumerate(options) for other in options[:place]):
        yield f"{where}: '{key}' has an option twice: {shown(options)}"


def _range_complaints(table: Mapping[str, Any]) -> Iterator[str]:
    unknown = sorted(set(table) - {"low", "high", "step", "count", "log"})
    numbers = [table.get(name) for name in ("low", "high")]
    if unknown:
        yield f"has '{unknown[0]}'; a range has low, high and either step or count, and log = true for equal ratios"
    elif not all(
        isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < math.inf for each in numbers
    ):
        yield f"needs numbers as low and high, got {shown(table)}"
    elif not table["low"] < table["high"]:
        yield f"must have its low below its high, got {shown(table)}"
    elif ("step" in table) == ("count" in table):
        yield f"must have either step or count, got {shown(table)}"
    elif not isinstance(table.get("log", False), bool):
        yield f"must have true or false as log, got {shown(table)}"
    elif table.get("log") and ("step" in table or table["low"] <= 0):
        yield f"has log = true, which goes with count and a low above 0, got {shown(table)}"
    elif "step" in table and not 0 < table["step"] <= table["high"] - table["low"]:
        yield f"must have a step above 0 that fits between low and high, got {shown(table)}"
    elif "count" in table and not (type(table["count"]) is int and 2 <= table["count"] <= MOST_OPTIONS):
        yield f"must have a count of 2 to {MOST_OPTIONS}, got {shown(table)}"
    elif "step" in table and (table["high"] - table["low"]) / table["step"] > MOST_OPTIONS:
        yield f"has more than {MOST_OPTIONS} steps, got {shown(table)}"


def _objective_complaints(settings: SearchSettings, where: str) -> Iterator[str]:
    names = settings.objectives
    for place, name in enumerate(names):
        if name in names[:place]:
            yield f"{where}: 'objectives' has '{name}' twice"
    if names[0] not in MAXIMISED:
        yield (
            f"{where}: 'objectives' begins with '{names[0]}'; what is wanted before all is one of "
            f"{', '.join(MAXIMISED)}: the cheapest point alone is found by sorting, not by a search"
        )
