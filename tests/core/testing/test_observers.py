"""Observers that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002 - hooks are called with all of their arguments

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from detloom.engine.run import Run
from detloom.hookspecs import hookimpl
from detloom.interfaces import Metrics, Observer
from detloom.testing import check_component, observers

Caught = Callable[[type[Any]], dict[str, str]]


class PlainObserver(Observer):
    """Asks for a stop after some epochs."""

    def __init__(self, *, patience: int = 3) -> None:
        self.patience = patience
        self.last_step = 0

    @hookimpl
    def epoch_finished(self, run: Run, epoch: int, losses: Mapping[str, float], metrics: Metrics | None) -> object:
        return self.answer(run, epoch, metrics)

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        return epoch >= self.patience

    @hookimpl
    def run_finished(self, run: Run) -> None:
        self.close(run)

    def close(self, run: Run) -> None:
        """Have nothing to close."""


class PositionalObserver(PlainObserver):
    """Takes its setting by position as well."""

    def __init__(self, patience: int = 3) -> None:
        super().__init__(patience=patience)


class DividingObserver(PlainObserver):
    """Divides by its setting, whatever it is."""

    def __init__(self, *, patience: int = 3) -> None:
        super().__init__(patience=patience)
        self.share = 1 / max(patience, 0)


class DeafObserver(Observer):
    """Implements no hook."""


class MisspeltObserver(PlainObserver):
    """Implements a hook that there is not."""

    @hookimpl
    def epoch_finnished(self, run: Run) -> None:
        """Be called never."""


class EvaluatedObserver(PlainObserver):
    """Takes for granted that it has followed the run from its first epoch."""

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        # It takes for granted that every epoch after the third is evaluated anew by this observer.
        if epoch == 4 and self.last_step == 0:
            raise KeyError("what the first epoch remembered")
        self.last_step = run.step
        return None


class LateObserver(PlainObserver):
    """Takes for granted that a run has an epoch."""

    def close(self, run: Run) -> None:
        run.history[-1].losses.items()


class CommonObserver(PlainObserver):
    """Counts the epochs of all runs together."""

    calls: list[int] = []  # noqa: RUF012 - the mistake

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        self.calls.append(epoch)
        return len(self.calls) > 6


class WordyObserver(PlainObserver):
    """Asks for a stop in a word."""

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        return "stop" if epoch == 3 else None


class TidyingObserver(PlainObserver):
    """Clears the losses of the run's last epoch."""

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        run.history[-1].losses.clear()
        return None


WRONG: dict[str, tuple[type[Observer], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalObserver, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (DividingObserver, "patience=-1 raises ZeroDivisionError"),
    "methods_are_hooks_of_a_run": (DeafObserver, "it implements no hook of a run"),
    "run_is_followed_to_its_end": (EvaluatedObserver, "raised KeyError"),
    "run_that_fails_at_once_is_followed": (LateObserver, "raised IndexError"),
    "two_runs_do_not_mix": (CommonObserver, "keep nothing in the class"),
    "epoch_is_answered_yes_no_or_not": (WordyObserver, "returned 'stop'"),
    "run_is_left_alone": (TidyingObserver, "the run's history was changed"),
}


def test_right_observer_passes_all() -> None:
    check_component(PlainObserver)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_observer_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    CommonObserver.calls.clear()
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_misspelt_hook_is_told_by_every_check_that_calls_one(caught: Caught) -> None:
    broken = caught(MisspeltObserver)

    assert set(broken) == {check.__name__ for check in observers.CHECKS[2:]}
    assert "Did you mean 'epoch_finished'?" in broken["methods_are_hooks_of_a_run"]


def test_every_check_of_observers_has_a_wrong_one() -> None:
    assert [check.__name__ for check in observers.CHECKS] == list(WRONG)
