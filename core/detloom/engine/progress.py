"""How a run is followed by eye: bars on a terminal, plain lines elsewhere, both to stderr."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from detloom.engine.run import EpochRecord, Run

__all__ = ["LinesView", "RunView", "SilentView", "TerminalView", "open_view"]

LINE_EVERY = 30.0
"""Seconds between plain lines within an epoch."""


class RunView(ABC):
    """What the engine tells whoever is watching; epochs and steps count from 1, batches from 0."""

    @abstractmethod
    def started(self, run: Run) -> None:
        """A run begins, or goes on."""

    @abstractmethod
    def epoch_started(self, epoch: int, batch: int, batches: int) -> None:
        """An epoch begins, or goes on at a batch."""

    @abstractmethod
    def advanced(self, batches: int) -> None:
        """So many batches of the epoch are done."""

    @abstractmethod
    def losses_seen(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Losses were looked at."""

    @abstractmethod
    def epoch_finished(self, record: EpochRecord) -> None:
        """An epoch is done, and evaluated where it was to be."""

    @abstractmethod
    def said(self, text: str) -> None:
        """Something worth a line."""

    @abstractmethod
    def closed(self) -> None:
        """The run is over."""


def open_view(*, is_shown: bool = True) -> RunView:
    """Return bars on a terminal, lines elsewhere, or nothing."""
    if not is_shown:
        return SilentView()
    console = Console(stderr=True)
    return TerminalView(console) if console.is_terminal else LinesView()


class SilentView(RunView):
    """Shows nothing."""

    def started(self, run: Run) -> None:
        """Say nothing."""

    def epoch_started(self, epoch: int, batch: int, batches: int) -> None:
        """Say nothing."""

    def advanced(self, batches: int) -> None:
        """Say nothing."""

    def losses_seen(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Say nothing."""

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say nothing."""

    def said(self, text: str) -> None:
        """Say nothing."""

    def closed(self) -> None:
        """Say nothing."""


class LinesView(RunView):
    """One line an epoch, and one every half minute."""

    def __init__(self) -> None:
        self._epochs = 0
        self._epoch = 0
        self._batch = 0
        self._batches = 0
        self._said = 0.0

    def started(self, run: Run) -> None:
        """Say where the run is."""
        self._epochs = run.epochs
        done = f", {_epochs(len(run.history))} done" if run.history else ""
        self.said(f"run {run.directory}: {run.recipe.name}, {_epochs(run.epochs)}{done}")

    def epoch_started(self, epoch: int, batch: int, batches: int) -> None:
        """Remember the epoch."""
        self._epoch, self._batch, self._batches = epoch, batch, batches

    def advanced(self, batches: int) -> None:
        """Count."""
        self._batch += batches

    def losses_seen(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Say the losses, if nothing was said for a while."""
        if time.monotonic() - self._said >= LINE_EVERY:
            where = f"epoch {self._epoch}/{self._epochs}, batch {self._batch}/{self._batches}, step {step}"
            self.said(f"{where}: {_worded(losses)}, lr {learning_rate:.3g}")

    def epoch_finished(self, record: EpochRecord) -> None:
        """Say how the epoch went."""
        self.said(_summary(record, self._epochs))

    def said(self, text: str) -> None:
        """Print a line."""
        self._said = time.monotonic()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def closed(self) -> None:
        """Say nothing."""


class TerminalView(RunView):
    """A bar for the run and one for the epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._run: TaskID | None = None
        self._epoch: TaskID | None = None
        self._epochs = 0

    def started(self, run: Run) -> None:
        """Show the run's bar."""
        self._epochs = run.epochs
        self._bars.start()
        self.said(f"{run.recipe.name} in {run.directory}")
        self._run = self._bars.add_task("epochs", total=run.epochs, completed=len(run.history), note="")
        self._epoch = self._bars.add_task("batches", total=None, note="")

    def epoch_started(self, epoch: int, batch: int, batches: int) -> None:
        """Begin the epoch's bar."""
        if self._epoch is not None:
            self._bars.reset(self._epoch, total=batches, completed=batch, description=f"epoch {epoch}")

    def advanced(self, batches: int) -> None:
        """Move the epoch's bar."""
        if self._epoch is not None:
            self._bars.advance(self._epoch, batches)

    def losses_seen(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Show the losses beside the epoch's bar."""
        if self._epoch is not None:
            self._bars.update(self._epoch, note=f"step {step}: {_worded(losses)}, lr {learning_rate:.3g}")

    def epoch_finished(self, record: EpochRecord) -> None:
        """Move the run's bar and leave a line above it."""
        self.said(_summary(record, self._epochs))
        if self._run is not None:
            self._bars.advance(self._run)

    def said(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.print(text, markup=False, highlight=False)

    def closed(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def _summary(record: EpochRecord, epochs: int) -> str:
    metrics = record.metrics or {}
    found = "".join(f", {name} {metrics[name]:.3f}" for name in ("AP", "AP50") if name in metrics)
    return f"epoch {record.epoch}/{epochs}: {_worded(record.losses)}{found}, {record.seconds:.1f} s"


def _worded(losses: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in losses.items())


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count != 1 else ''}"
