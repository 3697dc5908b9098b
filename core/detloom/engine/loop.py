"""The training loop: passes, steps, epochs; what is saved when; what can go wrong.

Nothing random is carried from one step to the next: batches depend on the seed and their position,
and the global generators are seeded at every step. So a state is weights, average, optimizer and
position, and a run that goes on from it repeats the run that was never stopped.

Losses stay on the device and are looked at every ``log_every`` steps, which is the only time that
the device is waited for within an epoch, apart from the sizes that an assigner asks for.

Shape letters: B images, H and W rows and columns, L losses.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detloom.artifacts import save_artifact
from detloom.data.loader import Batch
from detloom.engine.attention import Attention
from detloom.engine.checkpoint import load_state, save_state
from detloom.engine.failures import advice_on_memory, check_losses, check_weights
from detloom.engine.optimise import set_rates_
from detloom.engine.preparation import Prepared
from detloom.engine.processes import numerics
from detloom.engine.progress import RunView
from detloom.engine.run import EpochRecord, Run
from detloom.engine.settings import TrainSettings
from detloom.errors import ArtifactError
from detloom.interfaces import Metrics

__all__ = ["Batches", "Training"]

STEP_SEED, RANK_SEED = 1_000_003, 7_919
LARGEST_SEED = 2**63


class Batches(Protocol):
    """What the loop needs of a loader."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from one of them on."""


@dataclass(slots=True)
class _Position:
    """Where a run stands, always between two optimiser steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    is_stopped: bool = False


class Training:
    """One run of a detector over its data.

    Args:
        prepared: The detector, which called with images and targets returns its named losses, and what trains it.
        batches: The training batches.
        run: The run's directory and history.
        settings: The recipe's ``[train]``.
        evaluate: Measures a model, where there is something to measure on.
        view: Shows it.
        renew_statistics: Gives the batch norms of an average that asks for it statistics of its own.
    """

    def __init__(
        self,
        prepared: Prepared,
        batches: Batches,
        run: Run,
        *,
        settings: TrainSettings,
        evaluate: Callable[[nn.Module], Metrics] | None,
        view: RunView,
        renew_statistics: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self._batches = batches
        self._run = run
        self._settings = settings
        self._accelerator = prepared.accelerator
        self._evaluate = evaluate
        self._renew_statistics = renew_statistics
        self._view = view
        self._schedule = prepared.schedule
        self._hooks = prepared.hooks
        self._frozen = prepared.frozen
        self._ema = prepared.ema
        self._plain = prepared.plain
        self._model, self._optimizer = prepared.model, prepared.optimizer
        self._position = _Position()
        self._names: tuple[str, ...] = ()
        self._seen: Tensor | None = None
        self._passes_seen = 0
        self._epoch_sums: dict[str, float] = {}
        self._epoch_passes = 0
        self._learning_rate = 0.0
        # What this process was asked for, and what all of them have agreed on.
        self._attention = Attention()
        self._wants_out = False
        self._wants_state = False
        self._saved_at = 0.0

    @property
    def averaged(self) -> nn.Module:
        """Return the model that is validated, saved and used."""
        return self._plain if self._ema is None else self._ema.averaged

    def resume(self) -> None:
        """Go on from the run's state, if it has one.

        Raises:
            ArtifactError: The state is broken, or of another model.
        """
        if not self._run.state.exists():
            return
        state = load_state(self._run.state)
        try:
            self._plain.load_state_dict(state["model"])
            if self._ema is not None:
                self._ema.averaged.load_state_dict(state["average"])
                self._ema.load_state_dict(state["average_extra"])
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
            _match_layout_(self._optimizer)
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
            self._position = _Position(**state["position"])
            self._epoch_sums = state["epoch_sums"]
            self._epoch_passes = state["epoch_passes"]
            self._learning_rate = state["learning_rate"]
            self._run.history = [EpochRecord(**record) for record in state["history"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{self._run.state}: the state does not fit this run: {error}") from error
        self._run.step = self._position.step
        if self._position.batch == 0:
            # The process may have died after the state and before the artifacts.
            self._save_artifacts()

    def train(self) -> None:
        """Train to the end, to a stop that an observer asks for, or to Ctrl-C.

        Raises:
            TrainingError: A loss is not finite, or memory is short.
            ArtifactError: The run's directory cannot be written any more.
        """
        run, settings = self._run, self._settings
        run.status = "running"
        with numerics(settings, self._accelerator.device), self._attention:
            try:
                if self._accelerator.is_main_process:
                    run.write_records()
                    self._view.started(run)
                    self._hooks.run_started(run=run)
                if self._position.epoch >= settings.epochs:
                    self._say_that_it_is_finished()
                while self._position.epoch < settings.epochs and not (self._position.is_stopped or self._wants_out):
                    self._epoch()
                is_done = self._position.epoch >= settings.epochs
                run.status = "stopped" if self._position.is_stopped else "finished" if is_done else "interrupted"
                self._say_the_end()
            except BaseException as error:
                run.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                run.message = str(error) or type(error).__name__
                # What went wrong first is what is told.
                with suppress(ArtifactError):
                    self._close()
                raise
            self._close()

    def _epoch(self) -> None:
        position, settings = self._position, self._settings
        total = len(self._batches)
        started = time.monotonic()
        self._saved_at = started
        self._wants_state = False
        self._view.epoch_started(position.epoch + 1, position.batch, total)
        batches = self._batches.epoch(position.epoch, position.batch)
        while position.batch < total:
            first = position.epoch * total + position.batch
            passes = min(self._schedule.accumulated_at(first), total - position.batch)
            with advice_on_memory(self._where(), self._accelerator.device, self._settings, self._run):
                self._step(batches, first, passes)
            position.batch += passes
            position.step += 1
            self._run.step = position.step
            self._view.advanced(passes)
            if self._accelerator.num_processes == 1:
                self._wants_out, self._wants_state = self._attention.is_asked, self._is_due()
            if position.step % settings.log_every == 0:
                self._look()
            if self._wants_out or self._wants_state:
                self._look()
                if position.batch < total:
                    check_weights(self.averaged, self._where(), self._settings, self._run)
                    self._save_state()
                self._saved_at, self._wants_state = time.monotonic(), False
            if self._wants_out and position.batch < total:
                return
        self._finish_epoch(started)

    def _step(self, batches: Iterator[Batch], first: int, passes: int) -> None:
        """Take an optimiser step with the gradient of several forward passes."""
        accelerator, settings = self._accelerator, self._settings
        torch.manual_seed(
            (settings.seed + STEP_SEED * self._position.step + RANK_SEED * accelerator.process_index) % LARGEST_SEED
        )
        self._model.train()
        for module in self._frozen:
            module.training = False
        for index in range(passes):
            batch = next(batches).to(accelerator.device, non_blocking=True)
            images_BCHW = batch.images_BCHW.float() / 255
            if not settings.channels_last:
                images_BCHW = images_BCHW.contiguous()
            together: AbstractContextManager[Any] = (
                nullcontext() if index == passes - 1 else accelerator.no_sync(self._model)
            )
            with together:
                losses = self._model(images_BCHW, batch.targets)
                self._remember(losses)
                accelerator.backward(torch.stack(list(losses.values())).sum() / passes)
        rates = self._schedule.rates_at(first + passes - 1)
        self._learning_rate = rates.learning_rate
        set_rates_(self._optimizer, rates)
        if settings.clip_norm:
            accelerator.clip_grad_norm_(self._model.parameters(), settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update(self._plain, self._position.step + 1)

    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        self._names = tuple(losses)
        losses_L = torch.stack([loss.detach().float() for loss in losses.values()])
        self._seen = losses_L if self._seen is None else self._seen + losses_L
        self._passes_seen += 1

    def _look(self) -> None:
        """Bring the losses since the last look from the device; the same in all processes."""
        if self._seen is None:
            return
        sums_L = self._seen
        if self._accelerator.num_processes > 1:
            # Two more entries tell whether any process was asked to stop, or finds it time to save, so that all do
            # so at one step.
            wishes = sums_L.new_tensor([float(self._attention.is_asked), float(self._is_due())])
            sums_L = self._accelerator.reduce(torch.cat((sums_L, wishes)), reduction="mean")
        sums = sums_L.tolist()
        if self._accelerator.num_processes > 1:
            self._wants_state = sums.pop() > 0
            self._wants_out = sums.pop() > 0
        means = {name: value / self._passes_seen for name, value in zip(self._names, sums, strict=True)}
        check_losses(means, self._where(), self._settings, self._run)
        for name, value in zip(self._names, sums, strict=True):
            self._epoch_sums[name] = self._epoch_sums.get(name, 0.0) + value
        self._epoch_passes += self._passes_seen
        self._seen, self._passes_seen = None, 0
        step, rate = self._position.step, self._learning_rate
        self._view.losses_seen(step, means, rate)
        if self._accelerator.is_main_process:
            self._hooks.step_finished(run=self._run, step=step, losses=means, learning_rate=rate)

    def _finish_epoch(self, started: float) -> None:
        position, settings, run = self._position, self._settings, self._run
        self._look()
        check_weights(self.averaged, self._where(), self._settings, self._run)
        losses = {name: value / self._epoch_passes for name, value in self._epoch_sums.items()}
        position.epoch, position.batch = position.epoch + 1, 0
        self._epoch_sums, self._epoch_passes = {}, 0
        if self._accelerator.is_main_process:
            with advice_on_memory(self._where(), self._accelerator.device, self._settings, self._run):
                if self._renew_statistics is not None and self._ema and self._ema.needs_statistics(position.step):
                    self._renew_statistics(self.averaged)
                metrics = self._evaluated(position.epoch)
            record = EpochRecord(
                epoch=position.epoch,
                step=position.step,
                losses=losses,
                learning_rate=self._learning_rate,
                seconds=round(time.monotonic() - started, 3),
                metrics=None if metrics is None else dict(metrics.summary),
                per_class=None if metrics is None else {name: dict(each) for name, each in metrics.per_class.items()},
                fitness=None if metrics is None else run.fitness_of(metrics),
            )
            run.history.append(record)
            answers = self._hooks.epoch_finished(run=run, epoch=position.epoch, losses=losses, metrics=metrics)
            position.is_stopped = any(answers)
            self._view.epoch_finished(record)
        self._agree()
        is_last = position.epoch == settings.epochs or position.is_stopped or self._wants_out
        # The state comes first, and a best epoch always has one: on a GPU an epoch that is run again is another one,
        # and the best artifact would then belong to none that is recorded.
        if is_last or position.epoch % settings.save_every == 0 or run.best_epoch is run.history[-1]:
            self._save_state()
        self._save_artifacts()

    def _evaluated(self, epoch: int) -> Metrics | None:
        settings = self._settings
        is_due = settings.evaluate_every and (epoch % settings.evaluate_every == 0 or epoch == settings.epochs)
        if self._evaluate is None or not is_due:
            return None
        self.averaged.eval()
        with torch.no_grad():
            return self._evaluate(self.averaged)

    def _agree(self) -> None:
        """Let all processes know whether the main one stops, or any was asked to."""
        self._wants_out = self._attention.is_asked
        if self._accelerator.num_processes > 1:
            flags = torch.tensor(
                [float(self._position.is_stopped), float(self._attention.is_asked)], device=self._accelerator.device
            )
            stopped, out = self._accelerator.reduce(flags, reduction="sum").tolist()
            self._position.is_stopped, self._wants_out = stopped > 0, out > 0

    def _save_artifacts(self) -> None:
        run = self._run
        if not (self._accelerator.is_main_process and run.history):
            return
        record, best = run.history[-1], run.best_epoch
        extra = {"epoch": record.epoch, "step": record.step, "metrics": _measured(record.metrics)}
        if best is record:
            save_artifact(
                run.directory / "best.safetensors", self.averaged, recipe=run.recipe, names=run.names, extra=extra
            )
        every = self._settings.snapshot_every
        if every and (record.epoch % every == 0 or record.epoch == self._settings.epochs):
            # The plain weights: an average of averages would count what lies between them again.
            said = {"epoch": record.epoch, "step": record.step}
            save_artifact(run.snapshot(record.epoch), self._plain, recipe=run.recipe, names=run.names, extra=said)
        save_artifact(run.last, self.averaged, recipe=run.recipe, names=run.names, extra=extra)

    def _save_state(self) -> None:
        if not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        state = {
            "model": self._plain.state_dict(),
            "average": {} if self._ema is None else self._ema.averaged.state_dict(),
            "average_extra": {} if self._ema is None else self._ema.state_dict(),
            "optimizer": self._optimizer.state_dict()["state"],
            "scaler": None if scaler is None else scaler.state_dict(),
            "position": asdict(self._position),
            "epoch_sums": self._epoch_sums,
            "epoch_passes": self._epoch_passes,
            "learning_rate": self._learning_rate,
            "history": [asdict(record) for record in self._run.history],
        }
        save_state(self._run.state, state)
        self._run.write_records()

    def _is_due(self) -> bool:
        minutes = self._settings.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= minutes * 60

    def _where(self) -> str:
        return f"epoch {self._position.epoch + 1}, step {self._position.step}"

    def _say_that_it_is_finished(self) -> None:
        run = self._run
        settings = ("--set", f"train.init_from={run.last}", "--set", "train.epochs=NUMBER")
        longer = ("train", f"{run.directory / 'recipe.toml'}", "--data", run.data, *settings)
        run.message = (
            f"{run.directory}: this run is finished: all of its {run.epochs} epochs are done\n"
            f"  To train longer, begin a new one with its weights: {run.command(*longer)}"
        )

    def _say_the_end(self) -> None:
        run = self._run
        if run.status == "interrupted":
            run.message = f"stopped on request after step {run.step}; go on with: " + run.command(
                "train", "--resume", str(run.directory)
            )
        elif run.status == "stopped":
            run.message = f"an observer ended the run after epoch {len(run.history)}"
        if run.message:
            self._view.said(run.message)

    def _close(self) -> None:
        try:
            if self._accelerator.is_main_process:
                self._view.closed()
                self._hooks.run_finished(run=self._run)
                self._run.write_records()
        finally:
            # accelerate lays its forward over the model's own.
            for name in ("forward", "_original_forward"):
                vars(self._plain).pop(name, None)
            self._run.close()


def _match_layout_(optimizer: torch.optim.Optimizer) -> None:
    # The layout decides in which order a processor rounds, so momentum gets that of its weights.
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _measured(metrics: Mapping[str, float] | None) -> dict[str, float] | None:
    if metrics is None:
        return None
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
