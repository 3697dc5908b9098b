"""What can go wrong in a run and in prediction, and what to change; checked and worded here, raised there."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from detloom.engine.run import Run
from detloom.engine.settings import TrainSettings
from detloom.errors import TrainingError

__all__ = ["advice_on_memory", "check_losses", "check_weights", "explained_shortage"]


def check_losses(losses: Mapping[str, float], where: str, settings: TrainSettings, run: Run) -> None:
    """Refuse to go on with losses that are not finite.

    Raises:
        TrainingError: Names the losses, and what to change.
    """
    bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"{where}: the loss {', '.join(bad)}, since at most {settings.log_every} steps ago\n"
            f"  Lower [train] learning_rate (now {settings.learning_rate:g}), lengthen the warm-up, "
            f"set clip_norm, for example to 10, or try precision = 'float32'.\n  {_kept(run)}"
        )


def check_weights(model: nn.Module, where: str, settings: TrainSettings, run: Run) -> None:
    """Refuse to save weights that are not finite.

    Raises:
        TrainingError: Says what to change.
    """
    floats = [entry for entry in model.state_dict().values() if entry.is_floating_point()]
    if floats and not bool(torch.stack([entry.isfinite().all() for entry in floats]).all()):
        raise TrainingError(
            f"{where}: the weights are not finite any more\n"
            f"  Lower [train] learning_rate (now {settings.learning_rate:g}) or set clip_norm, for example to 10.\n"
            f"  {_kept(run)}"
        )


@contextmanager
def advice_on_memory(where: str, device: torch.device, settings: TrainSettings, run: Run) -> Iterator[None]:
    """Turn a lack of memory in training into advice.

    Raises:
        TrainingError: Says what to lower.
    """
    advice = (
        f"Lower [train] batch (now {settings.batch}; nominal_batch keeps the steps as large as they are) "
        "or [data] image_size, or take a smaller model."
    )
    with explained_shortage(where, device, lambda: f"{advice}\n  {_kept(run)}"):
        yield


@contextmanager
def explained_shortage(where: str, device: torch.device, advice: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory into an error that says where, and what to do.

    Raises:
        TrainingError: Ends with the advice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error) or "no reason given").splitlines()[0]
        raise TrainingError(f"{where}: the memory of {device} does not suffice: {reason}\n  {advice()}") from error


def _kept(run: Run) -> str:
    if run.last.exists():
        return f"The last good weights are in {run.last}."
    return "No epoch was finished, so no artifact was written."


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("can't allocate memory", "not enough memory", "out of memory"))
