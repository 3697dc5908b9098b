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
    def __init__(self, patience: int = 3) -> None:
        super().__init__(patience=patience)


class DividingObserver(PlainObserver):
    def __init__(self, *, patience: int = 3) -> None:
        super().__init__(patience=patience)
        self.share = 1 / max(patience, 0)


class MisspeltObserver(PlainObserver):
    @hookimpl
    def epoch_finnished(self, run: Run) -> None:
        """Be called never."""


class EvaluatedObserver(PlainObserver):
    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        # It takes for granted that every epoch after the third is evaluated anew by this observer.
        if epoch == 4 and self.last_step == 0:
            raise KeyError("what the first epoch remembered")
        self.last_step = run.step
        return None


class LateObserver(PlainObserver):
    def close(self, run: Run) -> None:
        run.history[-1].losses.items()


class CommonObserver(PlainObserver):
    calls: list[int] = []  # noqa: RUF012 - the mistake

    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        self.calls.append(epoch)
        return len(self.calls) > 6


class WordyObserver(PlainObserver):
    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        return "stop" if epoch == 3 else None


class TidyingObserver(PlainObserver):
    def answer(self, run: Run, epoch: int, metrics: Metrics | None) -> object:
        run.history[-1].losses.clear()
        return None


WRONG: dict[str, tuple[type[Observer], str, set[str]]] = {
    "settings_are_keyword_only_and_typed": (PositionalObserver, "every setting is keyword-only", set()),
    "numbers_without_sense_are_refused_by_name": (DividingObserver, "patience=-1 raises ZeroDivisionError", set()),
    "methods_are_hooks_of_a_run": (
        MisspeltObserver,
        "Did you mean 'epoch_finished'?",
        {name.__name__ for name in observers.CHECKS[3:]},
    ),
    "run_is_followed_to_its_end": (EvaluatedObserver, "raised KeyError", set()),
    "run_that_fails_at_once_is_followed": (LateObserver, "raised IndexError", set()),
    "two_runs_do_not_mix": (CommonObserver, "keep nothing in the class", set()),
    "epoch_is_answered_yes_no_or_not": (WordyObserver, "returned 'stop'", set()),
    "run_is_left_alone": (TidyingObserver, "the run's history was changed", set()),
}


def test_right_observer_passes_all() -> None:
    check_component(PlainObserver)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_observer_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    CommonObserver.calls.clear()
    cls, message, also = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name, *also}
    assert message in broken[name]


def test_every_check_of_observers_has_a_wrong_one() -> None:
    assert [check.__name__ for check in observers.CHECKS] == list(WRONG)
