"""Existing runs as the cells of a report: grouped by their recipes, measured where they are not yet."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detloom.assembly import check
from detloom.engine.anchoring import FOUND, HEAD_ANCHORS
from detloom.engine.run import ABOUT, ORIGINS, differences, read_run
from detloom.errors import ArtifactError, RecipeError
from detloom.recipe import Recipe
from detloom.study.matches import Matches, Weights, matches_file
from detloom.study.reporting import Report
from detloom.study.results import CellResult, compared, read_result
from detloom.study.statistics import METHOD
from detloom.study.work import digest, latency, measure, read_measured, weights_of
from detloom.workshop import workshop

__all__ = ["compare_runs", "grouped"]

WEIGHTS: tuple[Weights, ...] = ("last", "best")


def grouped(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Return the runs of each group, in the order given.

    ``NAME=RUN`` puts a run in a group of that name. Others are grouped by their recipes, seeds left aside, and named
    after the first run's directory.

    Raises:
        RecipeError: There is one group alone, or one group has different recipes or a seed twice.
        ArtifactError: There is no such run.
    """
    groups: dict[str, list[Path]] = {}
    by_recipe: dict[str, str] = {}
    for argument in arguments:
        path = Path(argument)
        name, equals, rest = argument.partition("=")
        if equals and not path.exists():
            path = Path(rest)
        else:
            text = json.dumps(_without_seed(path), sort_keys=True)
            name = by_recipe.setdefault(text, _free_name(path, groups))
        groups.setdefault(name, []).append(path)
    for name, runs in groups.items():
        _check_group(name, runs)
    if len(groups) < 2:
        raise RecipeError(
            f"all {len(arguments)} runs have one recipe, seeds left aside, so there is nothing to compare; "
            "give runs of another recipe, too, or NAME=RUN to say which belong together"
        )
    return groups


def compare_runs(
    groups: Mapping[str, Sequence[Path]],
    *,
    weights: Weights = "last",
    data: str | None = None,
    plugins: Sequence[str | Path] = (),
    resamples: int = 1000,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Return the report of runs in groups, the baseline's first.

    A run that was not measured with these weights is measured now, on its validation split; that is kept in its
    directory.

    Args:
        groups: Directories of runs by the name of their group.
        weights: Which artifact of each run.
        data: Where the data set lies now, if it was moved.
        plugins: Files of plugins that are run. Those that the runs' recipes name are not, unless given here.
        resamples: Draws of the bootstrap.
        confidence: Of the intervals.
        progress: Called with the runs measured and all of them.

    Raises:
        ArtifactError: A run or its weights cannot be read.
        PluginError: The file of a plugin cannot be used.
        DataError: The data cannot be read, or runs were measured on different pictures.
    """
    for each in plugins:
        workshop().load_file(each)
    total, done = sum(len(runs) for runs in groups.values()), 0
    cells = []
    base = _without_seed(next(iter(groups.values()))[0])
    for name, runs in groups.items():
        results = []
        for run in runs:
            _measure_once(run, weights, data)
            results.append(read_result(run, read_run(run)[0].train.seed, weights=weights))
            done += 1
            if progress is not None:
                progress(done, total)
        recipe = read_run(runs[0])[0]
        report = check(recipe, num_classes=len(_about(runs[0])["names"]))
        times = latency(weights_of(runs[0], weights))
        changed = {text.partition(" (")[0]: text for text in differences(base, _without_seed(runs[0]))}
        cells.append(CellResult(name, changed, tuple(results), report=report, latency=times))
    about = {
        "name": "comparison",
        "recipe": read_run(next(iter(groups.values()))[0])[0].name,
        "data": data or read_run(next(iter(groups.values()))[0])[1],
        "design": "runs",
        "baseline": cells[0].name,
        "seeds": sorted({run.seed for cell in cells for run in cell.runs}),
        "weights": weights,
        "resamples": resamples,
        "confidence": confidence,
        "method": METHOD,
    }
    comparisons = compared(cells, resamples=resamples, confidence=confidence)
    return Report(about, tuple(zip(cells, comparisons, strict=True)))


def _measure_once(run: Path, weights: Weights, data: str | None) -> None:
    artifact = weights_of(run, weights)
    if not artifact.exists():
        raise ArtifactError(f"{artifact}: there is no such artifact; has the run finished an epoch?")
    matches = matches_file(run, weights)
    if (
        data is None
        and read_measured(run, weights)
        and matches.exists()
        and Matches.read(matches).source == digest(artifact)
    ):
        return
    # What its training needed does not depend on the weights that are measured.
    memories = [(read_measured(run, each) or {}).get("peak_memory_mib") for each in WEIGHTS]
    measure(run, weights=weights, data=data, peak_memory=next((each for each in memories if each is not None), None))


def _check_group(name: str, runs: Sequence[Path]) -> None:
    seeds = [read_run(run)[0].train.seed for run in runs]
    for place, seed in enumerate(seeds):
        if seed in seeds[:place]:
            raise RecipeError(
                f"{name}: {runs[seeds.index(seed)]} and {runs[place]} have the same seed, {seed}; leave one of them out"
            )
    first = _without_seed(runs[0])
    for run in runs[1:]:
        different = differences(first, _without_seed(run))
        if different:
            raise RecipeError(
                f"{name}: {runs[0]} and {run} have different recipes: {', '.join(different[:5])}; "
                "runs of one group differ in their seeds alone"
            )


def _without_seed(run: Path) -> dict[str, Any]:
    """Return a run's recipe without what its seed decided: the seed itself, and anchors that were searched with it."""
    recipe: Recipe = read_run(run)[0]
    try:
        origins = json.loads((run / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origins = {}
    tables = {name: dict(table) for name, table in recipe.tables.items()}
    tables.get("train", {}).pop("seed", None)
    if origins.get(HEAD_ANCHORS) == FOUND:
        tables.get("head", {}).pop("anchors", None)
    return tables


def _free_name(run: Path, groups: Mapping[str, Any]) -> str:
    """Return the directory's name, or with the one above it, where a study's runs are called after their seeds."""
    parts = [part for part in run.resolve().parts if part != "/"]
    name = parts[-2] if parts[-1].startswith("seed-") and len(parts) > 1 else parts[-1]
    return name if name not in groups else str(run)


def _about(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / ABOUT).read_text(encoding="utf-8"))
    return content
