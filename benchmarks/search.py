"""Strategies of search beside random search, at an equal number of trials, over several seeds.

    python benchmarks/search.py SEARCH DATA -o FOLDER [--strategies evolution reinforce gradient] [--seeds 3] [--jobs 1]

SEARCH is a file as `detloom search` takes it; its strategy is the one that `random` and the others take the place of.
A point is trained once, whoever proposes it, as its training does not depend on who asks: FOLDER/points keeps what it
is worth, and a killed benchmark goes on. With --all, each point of the space is trained, and the best that there is
stands beside. Ends with the best AP and the hypervolume of each strategy, and with the mean difference to random search
over the seeds, with its 95 % interval (Student's t over the paired seeds). As a point is always trained with one seed,
the interval covers what strategies draw, not what another training of the same point would give.

What a strategy trains before its first trial, as `gradient` does, is paid with trials: its seconds over those of a
training that is done anew and alone for this, rounded up, are taken from the end of its trials. So let nothing else run
while such a strategy learns.
"""

import argparse
import hashlib
import json
import math
import shutil
import statistics
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import t

from detloom.errors import RecipeError
from detloom.search.directory import SearchDirectory
from detloom.search.front import hypervolume
from detloom.search.running import Task
from detloom.search.settings import Search, load_search
from detloom.search.space import State, Trial, known
from detloom.study.executor import LocalExecutor, Outcome, WorkItem
from detloom.study.results import read_result

MEASURED = "measured-last.json"
CONFIDENCE = 0.95


class Remembering:
    """An executor that trains a recipe once."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.local = LocalExecutor(jobs)

    def run(self, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each item: of one that is known at once."""
        asking: dict[Path, list[WorkItem]] = {}
        for item in items:
            place = self._place(item)
            if (place / MEASURED).exists():
                yield _handed(item, place)
            else:
                asking.setdefault(place, []).append(item)
        new = [replace(same[0], task={**same[0].task, "out": str(place)}) for place, same in asking.items()]
        for outcome in self.local.run(new):
            place = Path(outcome.item.task["out"])
            yield from (_handed(item, place, outcome.error) for item in asking[place])

    def _place(self, item: WorkItem) -> Path:
        told = [item.task["recipe"]["tables"], str(Path(item.task["data"]).resolve()), item.task["plugins"]]
        text = json.dumps(told, sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]


def _handed(item: WorkItem, place: Path, error: str = "") -> Outcome:
    """Give an item what its recipe was measured as, wherever that was trained."""
    if not (place / MEASURED).exists():
        return Outcome(item, error or "the process left no result")
    out = Path(item.task["out"])
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(place / MEASURED, out / MEASURED)
    return Outcome(item)


def seconds_of_a_training(search: Search) -> float:
    """Return what the training of the first point takes, with nothing beside it.

    Raises:
        SystemExit: It fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = SearchDirectory(Path(folder))
        task = Task(replace(search, strategy={"use": "random"}))
        first = Trial(0, (0,) * len(search.space.choices), State.RUNNING)
        for outcome in LocalExecutor().run([task.item(first, directory)]):
            if outcome.error:
                raise SystemExit(f"the first point cannot be trained: {outcome.error}")
        return read_result(directory.run(0), 0).seconds or math.inf


def searched(search: Search, out: Path, executor: Remembering) -> tuple[list[Trial], int]:
    """Return the trials that a search can pay for, and how many more its preparation has cost.

    Raises:
        RecipeError: The strategy cannot search the space.
    """
    task, directory = Task(search), SearchDirectory(out)
    directory.open(task.content())
    try:
        trials = task.run(directory, view=lambda *_: None, executor=executor)
        spent = (directory.prepared() or {}).get("seconds", 0.0)
    finally:
        directory.close()
    cost = math.ceil(spent / seconds_of_a_training(search)) if spent else 0
    return within(trials, search.space.trials - cost), cost


def within(trials: Sequence[Trial], budget: int) -> list[Trial]:
    """Return the first trials, of which so many may count."""
    counted = 0
    kept = []
    for trial in trials:
        counted += trial.counts
        if counted > budget:
            break
        kept.append(trial)
    return kept


def train_all(search: Search, out: Path, executor: Remembering) -> list[tuple[float, ...]]:
    """Return what each possible point is worth."""
    task = Task(replace(search, strategy={"use": "random"}))
    points = product(*(range(count) for count in search.space.counts))
    trials = [task.measured(Trial(number, point, State.RUNNING)) for number, point in enumerate(points)]
    items = [task.item(trial, SearchDirectory(out)) for trial in trials if trial.state == State.RUNNING]
    found = []
    for done, outcome in enumerate(executor.run(items), 1):
        trial = trials[int(outcome.item.name.removeprefix("trial "))]
        ap = SearchDirectory(out).ap(trial.number)
        print(f"[{done}/{len(items)}] trial {trial.number}: {outcome.error or ap}", flush=True)
        if ap is not None:
            figures = {"AP": ap, **trial.figures}
            found.append(tuple(figures[each.name] for each in search.space.objectives))
    return found


def main() -> None:
    """Search with each strategy and seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--strategies", nargs="+", default=["evolution", "reinforce", "gradient"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--all", action="store_true", dest="is_whole")
    options = parser.parse_args()
    search = load_search(options.search)
    search = replace(search, settings=search.settings.model_copy(update={"data": str(options.data)}))
    executor = Remembering(options.out / "points", options.jobs)
    whole = train_all(search, options.out / "all", executor) if options.is_whole else []
    values: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for name in ("random", *options.strategies):
        for seed in range(options.seeds):
            seeded = replace(
                search,
                settings=search.settings.model_copy(update={"seed": seed}),
                strategy=search.strategy if name == search.strategy["use"] else {"use": name},
            )
            try:
                trials, cost = searched(seeded, options.out / f"{name}-{seed}", executor)
            except RecipeError as error:
                print(f"{name} is left out: {error}", flush=True)
                break
            values[name, seed] = [trial.values for trial in known(trials)]
            before = f", of which learning first took the place of {cost}" if cost else ""
            print(f"{name}, seed {seed}: {len(values[name, seed])} points{before}", flush=True)
    _print_table(search, values, whole, options.seeds)


def _print_table(
    search: Search,
    values: Mapping[tuple[str, int], Sequence[tuple[float, ...]]],
    whole: Sequence[tuple[float, ...]],
    seeds: int,
) -> None:
    objectives = search.space.objectives
    everything = [*whole, *(value for found in values.values() for value in found)]
    reference = [
        min(0.0, *(value[place] for value in everything))
        if each.is_maximised
        else max(value[place] for value in everything)
        for place, each in enumerate(objectives)
    ]
    figures: dict[str, Any] = {
        f"best {objectives[0].name}": lambda found: max((value[0] for value in found), default=0.0),
        "hypervolume": lambda found: hypervolume(found, reference, objectives),
    }
    print(f"\n{search.space.size} points, {search.space.trials} trials, {seeds} seeds\n")
    print("| strategy | " + " | ".join(f"{name} | to random" for name in figures) + " |")
    print("|---" * (1 + 2 * len(figures)) + "|")
    for strategy in dict.fromkeys(name for name, _ in values):
        if (strategy, seeds - 1) not in values:
            continue
        cells = []
        for figure in figures.values():
            mine = [figure(values[strategy, seed]) for seed in range(seeds)]
            theirs = [figure(values["random", seed]) for seed in range(seeds)]
            spread = f" +- {statistics.stdev(mine):.4f}" if seeds > 1 else ""
            cells += [f"{statistics.mean(mine):.4f}{spread}", "" if strategy == "random" else _difference(mine, theirs)]
        print(f"| {strategy} | {' | '.join(cells)} |")
    if whole:
        print(f"| all points | {' | | '.join(f'{figure(whole):.4f}' for figure in figures.values())} | |")


def _difference(mine: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the mean paired difference with its 95 % interval."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.4f}"
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1))
    reach = quantile * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{mean:+.4f} [{mean - reach:+.4f}, {mean + reach:+.4f}]"


if __name__ == "__main__":
    main()
