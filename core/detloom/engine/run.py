"""Run directories: everything that one training produced.

    recipe.toml          the resolved recipe
    origins.json         the file that set each of its values
    run.json             data, class names, versions, status
    metrics.jsonl        one line an epoch: losses, rates, metrics (NaN is null)
    last.safetensors     artifact of the last epoch: the averaged weights, where the recipe has an average
    best.safetensors     artifact of the epoch with the best fitness
    epoch-NNNN.safetensors  artifacts of single epochs, where the recipe asks for them: the weights as they were trained
    state.safetensors    from which a killed run resumes; the truth about how far it came
    .lock                held by the process that writes here

Observers add their own files, such as ``log.csv``. A directory never mixes two runs.
"""

import json
import math
import os
import platform
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import torch

from detloom.durable import UNFINISHED, remove_leftovers, write_text
from detloom.errors import ArtifactError, reason, suggest
from detloom.interfaces import Metrics
from detloom.json_values import are_equal, without_nan
from detloom.plugin_source import plugin_options
from detloom.recipe import PLUGINS, Recipe
from detloom.wording import shown

__all__ = ["EpochRecord", "Run", "Status", "check_directory", "differences", "has_state", "open_run", "read_run"]

Status = Literal["running", "finished", "stopped", "interrupted", "failed"]
"""``stopped``: an observer asked for it; ``interrupted``: the user did, and the run can be resumed."""

ROOT = Path("runs")
RECIPE, ORIGINS, ABOUT, STATE, LOCK = "recipe.toml", "origins.json", "run.json", "state.safetensors", ".lock"
ABSENT = object()
ELSEWHERE = "Choose another place with --out (in Python out=...), below a folder that can be written."
# All that can be in a directory before its recipe, which makes it one of a run.
BEFORE_RECIPE = (LOCK, ORIGINS, ABOUT)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What is known of a finished epoch.

    Attributes:
        epoch: Counted from 1.
        step: Optimiser steps taken by its end.
        losses: Mean of each weighted loss.
        learning_rate: Of its last step, without the biases' own.
        seconds: That it took, evaluation included; of a resumed epoch, since it was resumed.
        metrics: The evaluator's summary, where it was evaluated.
        per_class: The evaluator's metrics of each class.
        fitness: What the best artifact has most of.
    """

    epoch: int
    step: int
    losses: dict[str, float]
    learning_rate: float
    seconds: float
    metrics: dict[str, float] | None = None
    per_class: dict[str, dict[str, float]] | None = None
    fitness: float | None = None


@dataclass(slots=True, eq=False)
class Run:
    """A training and its directory; what observers are shown.

    Attributes:
        directory: Where its files lie.
        recipe: The resolved recipe.
        names: Class names by index.
        data: The data set's path.
        fitness_weights: The weight of each metric in the fitness.
        epochs: Epochs that it is to have.
        step: Optimiser steps taken.
        history: Finished epochs.
        status: How it stands.
        message: What went wrong, or what to do next.
    """

    directory: Path
    recipe: Recipe
    names: tuple[str, ...]
    data: str
    fitness_weights: Mapping[str, float]
    epochs: int
    step: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    status: Status = "running"
    message: str = ""
    lock: IO[str] | None = field(default=None, repr=False)

    @property
    def last(self) -> Path:
        """Return the path of the last epoch's artifact."""
        return self.directory / "last.safetensors"

    @property
    def best(self) -> Path:
        """Return the path of the best epoch's artifact; the last one's where nothing was evaluated."""
        best = self.directory / "best.safetensors"
        return best if best.exists() else self.last

    def snapshot(self, epoch: int) -> Path:
        """Return the path of the artifact that is kept of an epoch; names in their order are epochs in theirs."""
        return self.directory / f"epoch-{epoch:04}.safetensors"

    @property
    def state(self) -> Path:
        """Return the path of the state from which the run resumes."""
        return self.directory / STATE

    @property
    def best_epoch(self) -> EpochRecord | None:
        """Return the epoch with the highest fitness, the first of equals, if any was evaluated."""
        evaluated = [record for record in self.history if record.fitness is not None]
        return max(evaluated, key=lambda record: record.fitness or 0.0, default=None)

    @property
    def metrics(self) -> Mapping[str, float] | None:
        """Return the best epoch's metrics."""
        best = self.best_epoch
        return None if best is None else best.metrics

    def command(self, *words: str) -> str:
        """Return a command of ``detloom`` to paste into a shell, with the files of plugins that the run needs."""
        return shlex.join(("detloom", *words, *plugin_options(self.recipe.plugins)))

    def fitness_of(self, metrics: Metrics) -> float:
        """Return the weighted sum of metrics; a metric that could not be measured counts as 0."""
        values = {name: metrics.summary[name] for name in self.fitness_weights}
        return sum(self.fitness_weights[name] * (0.0 if math.isnan(value) else value) for name, value in values.items())

    def write_records(self) -> None:
        """Write ``run.json`` and ``metrics.jsonl`` as things stand."""
        self.write_about()
        lines = [json.dumps(without_nan(asdict(record))) for record in self.history]
        write_text(self.directory / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def write_about(self) -> None:
        """Write ``run.json`` as things stand."""
        about = {
            "name": self.recipe.name,
            "data": self.data,
            "names": list(self.names),
            "epochs": self.epochs,
            "epochs_done": len(self.history),
            "steps_done": self.step,
            "status": self.status,
            "message": self.message,
            "best_epoch": self.best_epoch.epoch if self.best_epoch else None,
            "metrics": self.metrics,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        }
        write_text(self.directory / ABOUT, json.dumps(without_nan(about), indent=2) + "\n")

    def close(self) -> None:
        """Let other processes write to the directory."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(record) for record in self.history)
        return (
            f"<p>{self.recipe.name}: {self.status}, {self.directory}</p>"
            f"<table><tr><th>epoch</th><th>loss</th><th>AP</th><th>AP50</th></tr>{rows}</table>"
        )


def check_directory(out: Path | str | None, *, resume: bool) -> None:
    """Refuse early what ``open_run`` would refuse late; makes nothing.

    Raises:
        ArtifactError: There is no run to resume, or a new one would share its directory.
    """
    if out is None:
        if resume:
            raise ArtifactError("to resume, say which run: out='runs/NAME-N'")
        return
    directory = Path(out)
    if resume:
        if not directory.is_dir():
            raise ArtifactError(f"{directory}: there is no run to resume; leave resume out to begin one there")
    elif directory.is_dir() and _is_occupied(directory):
        go_on = f"Go on with the run that is there (detloom train --resume {directory}; in Python resume=True), or c"
        raise ArtifactError(
            f"{directory}: the directory is not empty, and a run shares its directory with nothing\n"
            f"  {go_on if (directory / RECIPE).exists() else 'C'}hoose another directory."
        )


def has_state(out: Path | str | None) -> bool:
    """Return whether there is a run that came so far that it does not start anew when resumed."""
    return out is not None and (Path(out) / STATE).exists()


def open_run(
    recipe: Recipe,
    *,
    data: str,
    names: Sequence[str],
    out: Path | str | None,
    resume: bool,
) -> Run:
    """Make the directory of a new run, or take up that of an old one.

    Args:
        recipe: The resolved recipe.
        data: The data set's path.
        names: Class names by index.
        out: The directory; ``runs/NAME-N`` when not given.
        resume: Whether to go on with the run that is there.

    Raises:
        ArtifactError: The directory holds something else, is in use, or cannot be written.
    """
    directory = _directory(recipe.name, out, resume=resume)
    lock = _locked(directory)
    settings = recipe.train
    run = Run(
        directory,
        recipe,
        tuple(names),
        data,
        {str(name): weight for name, weight in settings.fitness.items()},
        settings.epochs,
        lock=lock,
    )
    try:
        remove_leftovers(directory)
        if resume:
            _check_same(run)
        if not (directory / RECIPE).exists():
            write_text(directory / ORIGINS, json.dumps(dict(recipe.origins), indent=2) + "\n")
            run.write_about()
            # Last: with its recipe a directory is that of a run that can be resumed.
            write_text(directory / RECIPE, recipe.to_toml())
    except ArtifactError:
        run.close()
        raise
    return run


def read_run(directory: Path | str) -> tuple[Recipe, str]:
    """Return the recipe and the data path of a run, with which it can be resumed.

    Raises:
        ArtifactError: There is no run that can be resumed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ArtifactError(
            f"{directory}: there is no such directory.{_near(directory)} Give that of a run, as in {ROOT}/NAME-1."
        )
    if not (directory / RECIPE).is_file():
        runs = sorted(path.parent for path in directory.glob(f"*/{RECIPE}"))
        hint = f"Did you mean {runs[-1]}?" if runs else f"Give the directory of a run, as in {ROOT}/NAME-1."
        raise ArtifactError(
            f"{directory}: there is no run here that can be resumed: it has no {RECIPE}\n"
            f"  {hint} Or begin it anew, with recipe and data, in a directory that does not exist yet."
        )
    try:
        text = (directory / RECIPE).read_text(encoding="utf-8")
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        return Recipe.from_toml(text, str(directory / RECIPE), name=str(about["name"])), str(about["data"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{directory}: there is no run here that can be resumed: {_reason(error)}\n"
            "  Begin it anew, with recipe and data, in a directory that does not exist yet."
        ) from error


def _near(directory: Path) -> str:
    """Return a suggestion of a run whose name is much like that of a directory that is not there."""
    return suggest(str(directory), (str(path.parent) for path in directory.parent.glob(f"*/{RECIPE}")))


def _directory(name: str, out: Path | str | None, *, resume: bool) -> Path:
    try:
        check_directory(out, resume=resume)
        if out is None:
            return _numbered(name)
        directory = Path(out)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{out or ROOT}: the run's directory cannot be made: {reason(error)}\n  {ELSEWHERE}"
        ) from error
    return directory


def _is_occupied(directory: Path) -> bool:
    """Return whether there is more than a run that was killed while its directory was made."""
    names = {path.name for path in directory.iterdir()}
    return any(name not in BEFORE_RECIPE and not name.endswith(UNFINISHED) for name in names)


def _numbered(name: str) -> Path:
    ROOT.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        directory = ROOT / f"{name}-{number}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory


def _locked(directory: Path) -> IO[str] | None:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; two runs in one directory go unnoticed there.
        return None
    try:
        lock = (directory / LOCK).open("w", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{directory}: the directory cannot be written: {reason(error)}\n  {ELSEWHERE}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ArtifactError(
            f"{directory}: another process is training in this directory; wait for it, or stop it"
        ) from error
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _check_same(run: Run) -> None:
    file = run.directory / RECIPE
    if not file.exists():
        stray = [path.name for path in run.directory.iterdir() if path.name not in BEFORE_RECIPE]
        if stray:
            raise ArtifactError(
                f"{run.directory}: this is no directory of a run: it holds {', '.join(sorted(stray)[:5])}"
            )
        return
    old, new = tomllib.loads(file.read_text(encoding="utf-8")), tomllib.loads(run.recipe.to_toml())
    for tables in (old, new):
        tables.pop(PLUGINS, None)  # a file may have been moved
    different = differences(old, new)
    if different:
        raise ArtifactError(
            f"{run.directory}: the run was begun with another recipe; it differs in {', '.join(different[:8])}\n"
            f"  Resume with {file}, or begin a new run in another directory; "
            f"with train.init_from={run.last} it starts from these weights, and may be longer."
        )
    about = run.directory / ABOUT
    if about.exists():
        names = json.loads(about.read_text(encoding="utf-8")).get("names")
        if names != list(run.names):
            raise ArtifactError(
                f"{run.directory}: the run was begun with the classes {names}, the data now has {list(run.names)}"
            )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Return in words where two tables differ, key by key."""
    found = []
    for key in sorted({*old, *new}):
        one, other, here = old.get(key, ABSENT), new.get(key, ABSENT), f"{path}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{here}.")
        elif not are_equal(one, other):
            was, now = ("not set" if value is ABSENT else shown(value) for value in (one, other))
            found.append(f"{here} ({was}, now {now})")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {reason(error)}"
    return f"{ABOUT} has no {error}" if isinstance(error, KeyError) else reason(error)


def _html_row(record: EpochRecord) -> str:
    metrics = record.metrics or {}
    cells = [f"{record.epoch}", f"{sum(record.losses.values()):.4f}"]
    cells += [f"{metrics[name]:.3f}" if name in metrics else "" for name in ("AP", "AP50")]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
