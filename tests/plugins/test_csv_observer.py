"""The CSV file says what the run's history says."""

import csv
from pathlib import Path

import pytest

from detloom.engine.run import EpochRecord, Run
from detloom.errors import RecipeError
from detloom.recipe import Recipe
from detloom_plugins.csv_observer import CsvObserver


def record(epoch: int, precision: float | None) -> EpochRecord:
    metrics = None if precision is None else {"AP": precision, "APs": float("nan")}
    return EpochRecord(epoch, 10 * epoch, {"box": 0.5}, 0.01, 2.0, metrics, None, precision)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, Recipe("r", {}, {}), ("a",), "data", {"AP": 1.0}, 3)


def rows(run: Run) -> list[dict[str, str]]:
    with (run.directory / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_epoch_is_a_row(run: Run) -> None:
    observer = CsvObserver()
    observer.run_started(run)
    for epoch, precision in ((1, None), (2, 0.25)):
        run.history.append(record(epoch, precision))
        observer.epoch_finished(run, epoch, {}, None)

    found = rows(run)

    assert [row["epoch"] for row in found] == ["1", "2"]
    assert [row["loss/box"] for row in found] == ["0.5", "0.5"]
    assert [row["val/AP"] for row in found] == ["", "0.25"]
    assert [row["val/APs"] for row in found] == ["", ""]


def test_resumed_run_forgets_rows_that_are_done_again(run: Run) -> None:
    run.history = [record(1, 0.1), record(2, 0.2)]
    CsvObserver().run_started(run)
    run.history = [record(1, 0.1)]

    CsvObserver().run_started(run)

    assert [row["epoch"] for row in rows(run)] == ["1"]


@pytest.mark.parametrize("file", ["", "../log.csv", "a/b.csv"])
def test_file_stays_in_the_directory(file: str) -> None:
    with pytest.raises(RecipeError, match="plain name"):
        CsvObserver(file=file)
