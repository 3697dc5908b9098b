"""Run a study: check its cells, train what is not trained, time the detectors, compare."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from detloom.data.faults import refuse_faults
from detloom.data.splits import open_splits
from detloom.errors import ArtifactError
from detloom.kinds import Kind
from detloom.recipe import Recipe
from detloom.study.cells import Cell, base_of, checked_cells
from detloom.study.directory import StudyDirectory
from detloom.study.executor import Executor, LocalExecutor, WorkItem, visible_devices
from detloom.study.reporting import Report
from detloom.study.results import CellResult, compared, read_result
from detloom.study.settings import Study
from detloom.study.statistics import METHOD
from detloom.study.work import latency_task, train_task

__all__ = ["View", "data_of", "estimated_seconds", "prepare", "report_of", "run_study"]

TIMED_SIDE = 2


class View(Protocol):
    """What is told while a study or a search runs."""

    def __call__(self, text: str, done: int, total: int, /) -> None:
        """Take what happened, and how many runs of all are done."""


def prepare(study: Study, progress: Callable[[int, int], None] | None = None) -> list[Cell]:
    """Return the checked cells for the classes of the data.

    Raises:
        RecipeError: The study cannot be used.
        DataError: The data cannot be used.
    """
    train, _ = data_of(base_of(study), study.settings.data)
    return checked_cells(study, num_classes=len(train.names), progress=progress)


def data_of(recipe: Recipe, data: str) -> Any:
    """Return the splits to learn from and to measure on, as training will find them.

    Raises:
        DataError: They cannot be used.
    """
    splits = open_splits(data, recipe.data, recipe.tables.get(Kind.DATASET))
    refuse_faults(splits, skip_bad=recipe.data.skip_bad)
    return splits


def run_study(
    study: Study,
    cells: Sequence[Cell],
    directory: StudyDirectory,
    *,
    view: View,
    jobs: int = 1,
    executor: Executor | None = None,
) -> None:
    """Do what is left to do of a study; its directory is open.

    A run that fails is told and kept, and the others go on. A run that was cut off goes on where it was.

    Args:
        study: The study.
        cells: Checked; those that are impossible have no runs.
        directory: Where the runs lie.
        view: Told of each run that ends.
        jobs: Runs at once.
        executor: Who trains; processes of this machine when not given.
    """
    possible = [cell for cell in cells if cell.recipe is not None]
    # Seed by seed, so that all cells can be compared early.
    waiting = [(cell, seed) for seed in study.settings.seeds for cell in possible]
    waiting = [(cell, seed) for cell, seed in waiting if not directory.is_finished(cell.name, seed)]
    total = len(possible) * len(study.settings.seeds)
    done = total - len(waiting)
    items = {f"{cell.name}, seed {seed}": (cell, seed) for cell, seed in waiting}
    held = (directory.lock_number,) if directory.lock_number >= 0 else ()
    executor = executor or LocalExecutor(jobs, devices=visible_devices(), keep_open=held)
    # Closed on Ctrl-C, so that what is running is stopped at once.
    with closing(executor.run([_train_item(study, directory, *each) for each in waiting])) as outcomes:
        for outcome in outcomes:
            cell, seed = items[outcome.item.name]
            error = outcome.error
            if not error and not directory.is_finished(cell.name, seed):
                error = f"the process left no result; its output: {outcome.item.log}"
            directory.note(cell.name, seed, error)
            done += 1
            view(f"{outcome.item.name}: {error or 'finished'}", done, total)
    # Alone on the machine, after all training: others at work would be timed, too.
    alone = LocalExecutor(1, keep_open=held)
    with closing(alone.run(list(_latency_items(study, possible, directory)))) as outcomes:
        for outcome in outcomes:
            if outcome.error:
                view(f"{outcome.item.name}: {outcome.error}", total, total)


def report_of(
    study: Study,
    cells: Sequence[Cell],
    directory: StudyDirectory,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Return what the finished runs of a study show."""
    results = [_result(study, cell, directory) for cell in cells]
    settings = study.settings
    comparisons = compared(results, resamples=settings.resamples, confidence=settings.confidence, progress=progress)
    about = {
        "name": study.name,
        "recipe": settings.recipe,
        "data": settings.data,
        "design": study.design,
        "baseline": cells[0].name,
        "seeds": list(settings.seeds),
        "weights": settings.weights,
        "resamples": settings.resamples,
        "confidence": settings.confidence,
        "method": METHOD,
    }
    return Report(about, tuple(zip(results, comparisons, strict=True)))


def estimated_seconds(study: Study, cells: Sequence[Cell]) -> dict[str, float]:
    """Return a guess of what training each cell with all seeds takes, one run at a time.

    A pass of the baseline is timed here, forward and backward; operations do the rest. Reading pictures is not in it.
    """
    base = cells[0]
    assert base.recipe is not None  # noqa: S101 - the baseline is possible
    assert base.report is not None  # noqa: S101 - the same
    train, val = data_of(base.recipe, study.settings.data)
    seconds = _seconds_of_a_picture(base.recipe, train.names)
    found = {}
    for cell in cells:
        if cell.recipe is None or cell.report is None:
            continue
        settings = cell.recipe.train
        evaluations = settings.epochs // settings.evaluate_every + 1 if settings.evaluate_every else 0
        # Evaluation needs the forward pass alone, a third of the work.
        passes = len(train.images) * settings.epochs + len(val.images) * (evaluations + 1) / 3
        share = cell.report.training_gflops / base.report.training_gflops
        found[cell.name] = seconds * share * passes * len(study.settings.seeds)
    return found


def _seconds_of_a_picture(recipe: Recipe, names: tuple[str, ...]) -> float:
    import torch

    from detloom.assembly import assemble
    from detloom.building import without_initial_weights
    from detloom.structures import Targets
    from detloom.workshop import workshop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        detector = assemble(without_initial_weights(recipe, workshop()), names=names).to(device).train()
    size = recipe.data.image_size
    height, width = (size, size) if isinstance(size, int) else size
    box_14 = torch.tensor([[width * 0.25, height * 0.25, width * 0.6, height * 0.6]])
    boxes, labels = [box_14] * TIMED_SIDE, [torch.zeros(1, dtype=torch.int64)] * TIMED_SIDE
    targets = Targets.from_lists(boxes, labels, (height, width)).to(device)
    images_BCHW = torch.rand(TIMED_SIDE, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    taken = 0.0
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        losses = detector(images_BCHW, targets)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        if device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - started
    return taken / TIMED_SIDE


def _train_item(study: Study, directory: StudyDirectory, cell: Cell, seed: int) -> WorkItem:
    task = train_task(
        cell.seeded(seed),
        data=study.settings.data,
        out=directory.run(cell.name, seed),
        weights=study.settings.weights,
    )
    return WorkItem(f"{cell.name}, seed {seed}", task, directory.log(cell.name, f"seed-{seed}"))


def _latency_items(study: Study, cells: Sequence[Cell], directory: StudyDirectory) -> Iterator[WorkItem]:
    for cell in cells:
        runs = [seed for seed in study.settings.seeds if directory.is_finished(cell.name, seed)]
        if runs and not directory.latency(cell.name).exists():
            run, out = directory.run(cell.name, runs[0]), directory.latency(cell.name)
            plugins = cell.recipe.plugins if cell.recipe else ()
            task = latency_task(run, out=out, weights=study.settings.weights, plugins=plugins)
            yield WorkItem(f"{cell.name}, latency", task, directory.log(cell.name, "latency"))


def _result(study: Study, cell: Cell, directory: StudyDirectory) -> CellResult:
    if cell.recipe is None:
        return CellResult(cell.name, cell.overrides, reason=cell.reason)
    runs = tuple(
        read_result(directory.run(cell.name, seed), seed, directory.error(cell.name, seed), study.settings.weights)
        for seed in study.settings.seeds
    )
    file = directory.latency(cell.name)
    try:
        latency = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ArtifactError(f"{file}: cannot be read: {error}; remove the file") from error
    return CellResult(cell.name, cell.overrides, runs, report=cell.report, latency=latency)
