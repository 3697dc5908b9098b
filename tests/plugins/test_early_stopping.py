"""Patience is counted from the last rise."""

from pathlib import Path

import pytest

from detloom.engine.run import EpochRecord, Run
from detloom.errors import RecipeError
from detloom.recipe import Recipe
from detloom_plugins.early_stopping import EarlyStoppingObserver


def stops_at(observer: EarlyStoppingObserver, fitnesses: list[float | None]) -> int | None:
    run = Run(Path(), Recipe("r", {}, {}), ("a",), "data", {"AP": 1.0}, len(fitnesses))
    for epoch, fitness in enumerate(fitnesses, 1):
        run.history.append(EpochRecord(epoch, epoch, {}, 0.01, 1.0, None, None, fitness))
        if observer.epoch_finished(run, epoch, {}, None):
            return epoch
    return None


def test_run_stops_when_patience_is_at_an_end() -> None:
    assert stops_at(EarlyStoppingObserver(patience=2), [0.1, 0.3, 0.2, 0.3, 0.4]) == 4


def test_rising_run_goes_on() -> None:
    assert stops_at(EarlyStoppingObserver(patience=1), [0.1, 0.2, 0.3]) is None


def test_small_rises_do_not_count() -> None:
    assert stops_at(EarlyStoppingObserver(patience=2, least_rise=0.1), [0.1, 0.15, 0.19, 0.3]) == 3


def test_small_rises_add_up() -> None:
    assert stops_at(EarlyStoppingObserver(patience=3, least_rise=0.1), [0.1, 0.15, 0.19, 0.2, 0.25, 0.3]) is None


def test_run_is_left_alone_before_its_first_epoch() -> None:
    assert stops_at(EarlyStoppingObserver(patience=1, first_epoch=4), [0.5, 0.1, 0.1, 0.1]) == 4


def test_epochs_without_evaluation_count_as_time() -> None:
    assert stops_at(EarlyStoppingObserver(patience=2), [None, 0.5, None, None]) == 4


@pytest.mark.parametrize(("settings", "name"), [({"patience": 0}, "patience"), ({"least_rise": -0.1}, "least_rise")])
def test_senseless_settings_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(RecipeError, match=name):
        EarlyStoppingObserver(**settings)  # type: ignore[arg-type]  # int and float in one table
