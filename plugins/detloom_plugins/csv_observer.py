"""A table of the run, one row an epoch, for spreadsheets and plotting."""

import csv
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detloom.durable import write_whole
from detloom.engine.run import EpochRecord, Run
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Metrics, Observer

__all__ = ["CsvObserver"]


class CsvObserver(Observer):
    """Write losses, rates and metrics of every epoch to a CSV file in the run's directory.

    The file is written anew from the run's history each time, so that a resumed run has no row twice.

    Args:
        file: The file's name.
    """

    def __init__(self, *, file: str = "log.csv") -> None:
        if Path(file).name != file or not file:
            raise RecipeError(f"file must be a plain name within the run's directory, got {file!r}")
        self.file = file

    @hookimpl
    def run_started(self, run: Run) -> None:
        """Forget rows beyond the state from which the run goes on."""
        self._write(run)

    @hookimpl
    def epoch_finished(self, run: Run, epoch: int, losses: Mapping[str, float], metrics: Metrics | None) -> None:  # noqa: ARG002 - the hook's arguments
        """Add the epoch's row."""
        self._write(run)

    def _write(self, run: Run) -> None:
        rows = [_row(record) for record in run.history]
        # Losses and metrics may come and go, so the columns are those of all rows, in order of appearance.
        columns = list(dict.fromkeys(name for row in rows for name in row))

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                if columns:
                    writer.writeheader()
                writer.writerows(rows)

        write_whole(run.directory / self.file, fill)


def _row(record: EpochRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": record.epoch, "step": record.step, "seconds": record.seconds}
    row["learning_rate"] = record.learning_rate
    row |= {f"loss/{name}": value for name, value in record.losses.items()}
    row |= {f"val/{name}": "" if math.isnan(value) else value for name, value in (record.metrics or {}).items()}
    if record.fitness is not None:
        row["fitness"] = record.fitness
    return row


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the observer."""
    register("csv", CsvObserver)
