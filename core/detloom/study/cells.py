"""The cells of a study: what is trained, and what is impossible and why, known before anything runs."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from detloom.assembly import CheckReport, check
from detloom.errors import DetloomError, RecipeError, suggest
from detloom.kinds import Kind
from detloom.recipe import USE, Recipe, load_recipe
from detloom.study.settings import SEED, Study

__all__ = ["Cell", "base_of", "cells_of", "checked_cells", "label_of", "overrides_of"]

BASELINE = "baseline"
LONGEST = 80
# Of which the names of directories may be made on every system.
UNSAFE = re.compile(r"[^A-Za-z0-9._=,()+-]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant of the recipe.

    Attributes:
        name: Its directory's name, too.
        overrides: What it sets otherwise than the study's common part.
        recipe: The resolved recipe, without a seed; None where the cell is impossible.
        report: What ``check`` counts.
        reason: Why it is impossible.
    """

    name: str
    overrides: Mapping[str, Any]
    recipe: Recipe | None = None
    report: CheckReport | None = None
    reason: str = ""

    def seeded(self, seed: int) -> Recipe:
        """Return the recipe of one of its runs."""
        assert self.recipe is not None  # noqa: S101 - impossible cells have no runs
        return self.recipe.with_overrides({SEED: seed})


def base_of(study: Study) -> Recipe:
    """Return the recipe that the cells vary; runs the files of plugins that it, or the study, names.

    Raises:
        RecipeError: It cannot be used.
        PluginError: The file of a plugin cannot be used.
    """
    try:
        return load_recipe(study.settings.recipe, study.overrides, plugins=study.settings.plugins, scale=False)
    except RecipeError as error:
        raise RecipeError(f"{study.name}.toml, 'recipe': {error}") from error


def cells_of(study: Study) -> dict[str, dict[str, Any]]:
    """Return the overrides of each cell by its name, the baseline first.

    Raises:
        RecipeError: Two cells have one name, or the baseline is none of them.
    """
    named: dict[str, dict[str, Any]] = {}
    for name, overrides in _designed(study):
        safe = UNSAFE.sub("-", name)[:LONGEST].strip("-.") or "cell"
        if safe in named:
            raise RecipeError(
                f"{study.name}: two cells are called '{safe}'; give them names of their own, as [cells.NAME]"
            )
        named[safe] = overrides
    baseline = study.settings.baseline
    if baseline is None:
        return named
    if baseline not in named:
        raise RecipeError(
            f"{study.name}: the baseline '{baseline}' is no cell.{suggest(baseline, named)} Cells: {', '.join(named)}."
        )
    return {baseline: named[baseline], **named}


def checked_cells(
    study: Study, *, num_classes: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Cell]:
    """Return all cells, the baseline first, those that ``check`` refuses with its reason.

    Args:
        study: The study.
        num_classes: Of the data.
        progress: Called with the cells checked and all of them.

    Raises:
        RecipeError: The baseline itself is impossible, or two cells are the same.
    """
    base = base_of(study)
    if base.data.holdout:
        raise RecipeError(
            f"{base.where('data', 'holdout')}: 'holdout' would measure each seed on other pictures; "
            'give the data a validation split of its own, and set "data.holdout" = 0.0 in the study\'s [overrides]'
        )
    found: list[Cell] = []
    all_cells = cells_of(study)
    for done, (name, overrides) in enumerate(all_cells.items(), 1):
        try:
            recipe = load_recipe(base, overrides_of(overrides))
            cell = Cell(name, overrides, recipe, check(recipe, num_classes=num_classes))
        except DetloomError as error:
            cell = Cell(name, overrides, reason=str(error))
        found.append(cell)
        if progress is not None:
            progress(done, len(all_cells))
    if found[0].reason:
        raise RecipeError(f"the baseline, cell '{found[0].name}', is impossible:\n{found[0].reason}")
    _refuse_twins(found)
    return found


def overrides_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides of a recipe, where a component may be given by its name alone."""
    return {
        key: {USE: value} if key in tuple(Kind) and isinstance(value, str) else value for key, value in values.items()
    }


def label_of(value: Any) -> str:
    """Return a value as the name of a cell has it.

    >>> label_of({"use": "paa", "candidates": 9})
    'paa(candidates=9)'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ",".join(f"{key}={label_of(each)}" for key, each in value.items() if key != USE)
        name = label_of(value[USE]) if USE in value else ""
        return f"{name}({inner})" if inner else name
    if isinstance(value, list | tuple):
        return "+".join(label_of(each) for each in value) or "none"
    return str(value)


def _designed(study: Study) -> Iterator[tuple[str, dict[str, Any]]]:
    if study.design == "cells":
        yield from ((name, dict(overrides)) for name, overrides in study.cells.items())
        return
    axes = study.axes
    first = {key: values[0] for key, values in axes.items()}
    if len(axes) == 1:
        yield from ((label_of(value), {key: value}) for key, values in axes.items() for value in values)
    elif study.design == "grid":
        for values in product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            yield ",".join(f"{_short(key, axes)}={label_of(value)}" for key, value in chosen.items()), chosen
    else:
        yield BASELINE, first
        for key, values in axes.items():
            yield from ((f"{_short(key, axes)}={label_of(value)}", {**first, key: value}) for value in values[1:])


def _short(key: str, axes: Mapping[str, Any]) -> str:
    """Return the last part of an axis's key, where no other has the same."""
    last = key.rpartition(".")[2]
    return last if sum(each.rpartition(".")[2] == last for each in axes) == 1 else key


def _refuse_twins(cells: list[Cell]) -> None:
    seen: dict[str, str] = {}
    for cell in cells:
        if cell.recipe is None:
            continue
        text = json.dumps(cell.recipe.tables, sort_keys=True)
        if text in seen:
            raise RecipeError(
                f"the cells '{seen[text]}' and '{cell.name}' come to the same recipe; leave one of them out "
                '(a name alone, as assigner = "atss", keeps the recipe\'s settings where it has that component)'
            )
        seen[text] = cell.name
