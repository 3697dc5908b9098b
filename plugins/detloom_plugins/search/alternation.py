"""Two learners that take turns: which batches each sees, and an optimizer for each behind one face.

The weights learn on one half of the training pictures and the logits on the other, as a choice that is judged on the
pictures that the weights have learned by heart would favour what learns by heart best.

Reference: Liu, Simonyan and Yang, DARTS (2019), arXiv:1806.09055, section 2.3 and algorithm 1, in its first-order form.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from detloom.data.loader import Batch
from detloom.engine.loop import Batches

__all__ = ["AlternatingBatches", "AlternatingOptimizer"]


class AlternatingBatches:
    """Batches of the weights and of the logits in turn; while the logits wait, of the weights alone.

    An epoch has a turn of each for every batch of the weights. Those of the logits begin anew where they are fewer.

    Args:
        weights: The training batches of the weights.
        logits: Those of the logits.
        warm_epochs: At the start, in which the logits wait.
        begin_turn: Told the number of each turn, from 0 over the whole run, before its batch is handed out.
    """

    def __init__(
        self, weights: Batches, logits: Batches, *, warm_epochs: int, begin_turn: Callable[[int], None]
    ) -> None:
        self._weights = weights
        self._logits = logits
        self._warm_epochs = warm_epochs
        self._begin_turn = begin_turn

    def __len__(self) -> int:
        """Return the number of turns of an epoch."""
        return 2 * len(self._weights)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, from one of its turns on."""
        batches = self._warm(epoch, start_batch) if epoch < self._warm_epochs else self._mixed(epoch, start_batch)
        for turn, batch in enumerate(batches, epoch * len(self) + start_batch):
            self._begin_turn(turn)
            yield batch

    def _warm(self, epoch: int, start: int) -> Iterator[Batch]:
        # Pictures are seen twice; epochs of one loader follow upon one another, as its workers serve one at a time.
        count = len(self._weights)
        for half in range(start // count, 2):
            yield from self._weights.epoch(2 * epoch + half, max(start - half * count, 0))

    def _mixed(self, epoch: int, start: int) -> Iterator[Batch]:
        # From here on each has its own epochs, after all that were seen in the warm-up.
        number = epoch + self._warm_epochs
        weights = self._weights.epoch(number, (start + 1) // 2)
        logits = self._endless(number, start // 2)
        for turn in range(start, len(self)):
            yield next(logits if turn % 2 else weights)

    def _endless(self, epoch: int, start: int) -> Iterator[Batch]:
        first = start % len(self._logits)
        while True:
            yield from self._logits.epoch(epoch, first)
            first = 0


class AlternatingOptimizer:
    """Several optimizers as one, each of which changes what has a gradient.

    Args:
        scheduled: The one whose rates follow the schedule.
        others: With rates of their own.
    """

    def __init__(self, scheduled: torch.optim.Optimizer, *others: torch.optim.Optimizer) -> None:
        self.param_groups = scheduled.param_groups
        self._all: Sequence[torch.optim.Optimizer] = (scheduled, *others)

    @property
    def state(self) -> dict[Any, dict[str, Any]]:
        """Return what is remembered of each parameter."""
        return {parameter: entries for each in self._all for parameter, entries in each.state.items()}

    def step(self) -> None:
        """Change the parameters that have a gradient."""
        for each in self._all:
            each.step()

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget all gradients: without one, a parameter stays as it is in the next turn."""
        for each in self._all:
            each.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all, by their place."""
        states = {str(place): each.state_dict() for place, each in enumerate(self._all)}
        return {
            "state": {place: state["state"] for place, state in states.items()},
            "param_groups": {place: state["param_groups"] for place, state in states.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what ``state_dict`` returned."""
        for place, each in enumerate(self._all):
            name = str(place)
            each.load_state_dict({"state": state["state"][name], "param_groups": state["param_groups"][name]})
        self.param_groups = self._all[0].param_groups
