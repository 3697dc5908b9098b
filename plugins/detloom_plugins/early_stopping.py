"""Stop when nothing gets better (Prechelt, Early stopping, but when?, 1998)."""

from collections.abc import Callable, Mapping
from typing import Any

from detloom.engine.run import Run
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Metrics, Observer

__all__ = ["EarlyStoppingObserver"]


class EarlyStoppingObserver(Observer):
    """Ask a run to stop when its fitness has not risen for a number of epochs.

    It reads the run's history and remembers nothing, so that a resumed run stops where it would have.

    Args:
        patience: Epochs without a rise that are borne.
        least_rise: A rise below this counts for nothing.
        first_epoch: The run is not stopped before this epoch, counted from 1.
    """

    def __init__(self, *, patience: int = 30, least_rise: float = 0.0, first_epoch: int = 1) -> None:
        if patience < 1:
            raise RecipeError(f"patience must be at least 1 epoch, got {patience}")
        if least_rise < 0:
            raise RecipeError(f"least_rise must be at least 0, got {least_rise}")
        self.patience = patience
        self.least_rise = least_rise
        self.first_epoch = first_epoch

    @hookimpl
    def epoch_finished(self, run: Run, epoch: int, losses: Mapping[str, float], metrics: Metrics | None) -> bool:  # noqa: ARG002 - the hook's arguments
        """Return whether patience is at an end."""
        found = [(record.epoch, record.fitness) for record in run.history if record.fitness is not None]
        if not found or epoch < self.first_epoch:
            return False
        return epoch - self.best_epoch(found) >= self.patience

    def best_epoch(self, fitnesses: list[tuple[int, float]]) -> int:
        """Return the last epoch with a rise worth counting, from epochs and their fitness in order."""
        best, at = fitnesses[0][1], fitnesses[0][0]
        for epoch, fitness in fitnesses[1:]:
            if fitness > best and fitness >= best + self.least_rise:
                best, at = fitness, epoch
        return at


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the observer."""
    register("early-stopping", EarlyStoppingObserver)
