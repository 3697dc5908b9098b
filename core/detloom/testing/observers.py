"""Checks of observers, which follow short runs that train nothing."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pluggy

from detloom.engine.preparation import observing
from detloom.engine.run import EpochRecord, Run
from detloom.errors import PluginError
from detloom.hookspecs import RunHooks
from detloom.interfaces import Metrics
from detloom.recipe import Recipe
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["CHECKS"]

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
EPOCHS = 3


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A patience of -1 is a mistake of a recipe."""
    check_numbers(build)


def methods_are_hooks_of_a_run(build: Build) -> None:
    """A hook whose name or arguments are misspelt is refused when a run begins."""
    observer = build()
    try:
        observing([observer])
    except PluginError as error:
        raise AssertionError(str(error)) from error
    manager = pluggy.PluginManager("detloom")
    hooks = [name for name in vars(RunHooks) if not name.startswith("_")]
    marked = [name for name in hooks if manager.parse_hookimpl_opts(observer, name) is not None]
    demand(marked, f"it implements no hook of a run; mark one of {', '.join(hooks)} with @detloom.hookimpl")


def run_is_followed_to_its_end(build: Build) -> None:
    """Epochs with and without an evaluation, numbers that are NaN, and a run that goes on after its third epoch."""
    with _run() as run:
        _follow(build, run, 1, EPOCHS)
        _follow(build, run, EPOCHS + 1, EPOCHS + 2)


def run_that_fails_at_once_is_followed(build: Build) -> None:
    """It ends before its first step."""
    with _run() as run:
        hook = observing([build()])
        hook.run_started(run=run)
        run.status = "failed"
        hook.run_finished(run=run)


def two_runs_do_not_mix(build: Build) -> None:
    """Observers of two runs, one after the other in one process, say the same of the same."""
    answers = []
    for _ in range(2):
        with _run() as run:
            answers.append(_follow(build, run, 1, EPOCHS))
    demand(
        answers[0] == answers[1], f"the same run is answered {answers[0]}, then {answers[1]}; keep nothing in the class"
    )


def epoch_is_answered_yes_no_or_not(build: Build) -> None:
    """True asks the run to stop, and nothing else does."""
    with _run() as run:
        for answer in _follow(build, run, 1, EPOCHS):
            demand(
                answer is None or isinstance(answer, bool),
                f"epoch_finished returned {answer!r}; return True to ask for a stop, else False or None",
            )


def run_is_left_alone(build: Build) -> None:
    """It belongs to the training, and other observers read it."""
    with _run() as run, _run() as other:
        _follow(build, run, 1, EPOCHS)
        _walk(other, 1, EPOCHS)
        for name in ("history", "names", "step", "epochs", "data", "fitness_weights"):
            mine, theirs = getattr(run, name), getattr(other, name)
            demand(repr(mine) == repr(theirs), f"the run's {name} was changed; read it alone")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    methods_are_hooks_of_a_run,
    run_is_followed_to_its_end,
    run_that_fails_at_once_is_followed,
    two_runs_do_not_mix,
    epoch_is_answered_yes_no_or_not,
    run_is_left_alone,
)


@contextmanager
def _run() -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe("kit", {}, {}, "")
        yield Run(Path(folder), recipe, ("cat", "dog"), "kit", {"AP": 0.9, "AP50": 0.1}, EPOCHS + 2)


def _walk(run: Run, first: int, last: int, hook: Any = None) -> list[Any]:
    """Go through epochs of two steps as a training does; return what is answered after each."""
    answers = []
    for epoch in range(first, last + 1):
        losses = {"box": 1 / epoch, "classes": float("nan") if epoch == last else 0.5}
        for _ in range(2):
            run.step += 1
            if hook:
                hook.step_finished(run=run, step=run.step, losses=dict(losses), learning_rate=0.01)
        value = 0.1 * epoch
        evaluated = epoch != 2
        summary = {name: float("nan") if name == "APl" else value for name in SUMMARY}
        classes = {name: {"AP": value, "AP50": value} for name in run.names}
        metrics = Metrics(summary, classes) if evaluated else None
        record = EpochRecord(epoch, run.step, dict(losses), 0.01, 1.5)
        if evaluated:
            record = EpochRecord(epoch, run.step, dict(losses), 0.01, 1.5, summary, classes, value)
        run.history.append(deepcopy(record))
        if hook:
            answers += hook.epoch_finished(run=run, epoch=epoch, losses=dict(losses), metrics=metrics)
    return answers


def _follow(build: Build, run: Run, first: int, last: int) -> list[Any]:
    hook = observing([build()])
    hook.run_started(run=run)
    answers = _walk(run, first, last, hook)
    hook.run_finished(run=run)
    return answers
