"""A run as curves in TensorBoard; needs the extra ``detloom[tensorboard]``."""

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from detloom.engine.run import Run
from detloom.errors import ArtifactError, PluginError, reason
from detloom.hookspecs import hookimpl
from detloom.interfaces import Metrics, Observer

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["TensorboardObserver"]


class TensorboardObserver(Observer):
    """Write losses, learning rate and metrics as event files that TensorBoard shows.

    Args:
        folder: Folder of the event files, within the run's directory.
    """

    def __init__(self, *, folder: str = "tensorboard") -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise PluginError(
                "the observer 'tensorboard' needs the package tensorboard, which is not installed: "
                "pip install 'detloom[tensorboard]', or take [observers.tensorboard] out of the recipe"
            )
        self.folder = folder
        self._writer: SummaryWriter | None = None

    @hookimpl
    def run_started(self, run: Run) -> None:
        """Open the event files; points beyond the state from which the run goes on are hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            self._writer = SummaryWriter(
                str(run.directory / self.folder), purge_step=run.step + 1 if run.step else None
            )
        except OSError as error:
            raise ArtifactError(
                f"{run.directory / self.folder}: event files cannot be written: {reason(error)}"
            ) from error

    @hookimpl
    def step_finished(self, run: Run, step: int, losses: Mapping[str, float], learning_rate: float) -> None:  # noqa: ARG002 - the hook's arguments
        """Add a point to each loss and to the learning rate."""
        self._add({f"loss/{name}": value for name, value in losses.items()}, step)
        self._add({"learning_rate": learning_rate}, step)

    @hookimpl
    def epoch_finished(self, run: Run, epoch: int, losses: Mapping[str, float], metrics: Metrics | None) -> None:  # noqa: ARG002 - the hook's arguments
        """Add a point to each metric, at the step that ended the epoch."""
        self._add({f"epoch/{name}": value for name, value in losses.items()}, run.step)
        if metrics is not None:
            self._add({f"val/{name}": value for name, value in metrics.summary.items()}, run.step)

    @hookimpl
    def run_finished(self, run: Run) -> None:  # noqa: ARG002 - the hook's arguments
        """Close the event files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the observer."""
    register("tensorboard", TensorboardObserver)
