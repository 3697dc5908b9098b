"""Parameter groups, warm-up and schedule (YOLOv7's training, sections 2 and 3 of its facts).

Everything here is a pure function of the settings and of the position in the run, so that a
resumed run needs nothing of it saved.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2, list_optimizers
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from detloom.engine.settings import TrainSettings
from detloom.errors import RecipeError, suggest

__all__ = ["Groups", "Rates", "Schedule", "build_optimizer", "parameter_groups", "set_rates_"]

NO_DECAY, DECAY, BIAS = "no_decay", "decay", "bias"
PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 - torch has no public name for all convolutions


@dataclass(frozen=True, slots=True)
class Groups:
    """Trainable parameters by how they are treated.

    Attributes:
        no_decay: Scales of normalisation, and other tensors of one number a channel.
        decay: All other weights.
        bias: Everything called ``bias``; it has a warm-up of its own.
    """

    no_decay: tuple[nn.Parameter, ...]
    decay: tuple[nn.Parameter, ...]
    bias: tuple[nn.Parameter, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return the number of tensors of each group."""
        return len(self.no_decay), len(self.decay), len(self.bias)


def parameter_groups(model: nn.Module) -> Groups:
    """Sort the trainable parameters of a model.

    A parameter with at most one axis longer than 1 holds one number a channel and is not decayed,
    unless it is the weight of a convolution or a linear layer that happens to be so narrow.
    """
    found: dict[str, list[nn.Parameter]] = {NO_DECAY: [], DECAY: [], BIAS: []}
    for owner, name, parameter in _trainable(model):
        if name == "bias":
            found[BIAS].append(parameter)
        elif isinstance(owner, PRODUCTS) or sum(side > 1 for side in parameter.shape) > 1:
            found[DECAY].append(parameter)
        else:
            found[NO_DECAY].append(parameter)
    return Groups(tuple(found[NO_DECAY]), tuple(found[DECAY]), tuple(found[BIAS]))


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return timm's optimizer over the three groups, which carry their name as ``role``.

    Raises:
        RecipeError: timm knows no such optimizer, nothing is left to train, or a setting does not fit.
    """
    groups = parameter_groups(model)
    if sum(groups.sizes) == 0:
        raise RecipeError("[train] freeze leaves nothing to train; name fewer parts")
    name = settings.optimizer.lower()
    known = [str(each) for each in list_optimizers()]
    if name.removeprefix("lookahead_") not in known:
        raise RecipeError(
            f"[train] optimizer: timm knows no '{settings.optimizer}'.{suggest(name, known)}\n"
            f"  known optimizers: {', '.join(known)}"
        )
    tables = [
        {"params": list(parameters), "role": role, "weight_decay": decay}
        for role, parameters, decay in (
            (NO_DECAY, groups.no_decay, 0.0),
            (DECAY, groups.decay, scaled_decay(settings)),
            (BIAS, groups.bias, 0.0),
        )
        if parameters
    ]
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            tables,
            opt=name,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            betas=(settings.momentum, 0.999),
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[train] optimizer '{settings.optimizer}' cannot be made: {error}") from error
    return optimizer


def scaled_decay(settings: TrainSettings) -> float:
    """Return the weight decay for the pictures of one optimiser step (YOLOv7: 128 pictures, twice that of 64)."""
    if settings.nominal_batch == 0:
        return settings.weight_decay
    return settings.weight_decay * settings.batch * _accumulated(settings) / settings.nominal_batch


@dataclass(frozen=True, slots=True)
class Rates:
    """What an optimiser step is taken with."""

    learning_rate: float
    bias_learning_rate: float
    momentum: float


class Schedule:
    """Rates and accumulation at every forward pass of a run.

    Forward passes count from 0 over the whole run: ``epoch * batches_per_epoch + batch``.
    """

    def __init__(self, settings: TrainSettings, batches_per_epoch: int) -> None:
        self._settings = settings
        self._batches = batches_per_epoch
        self.warmup = max(round(settings.warmup_epochs * batches_per_epoch), settings.warmup_min_steps)
        self.factors = _epoch_factors(settings)

    def rates_at(self, forward_pass: int) -> Rates:
        """Return the rates of an optimiser step that ends with a forward pass."""
        settings = self._settings
        epoch = min(forward_pass // self._batches, settings.epochs - 1)
        target = settings.learning_rate * self.factors[epoch]
        if forward_pass >= self.warmup:
            return Rates(target, target, settings.momentum)
        share = forward_pass / self.warmup
        return Rates(
            share * target,
            settings.warmup_bias_lr + share * (target - settings.warmup_bias_lr),
            settings.warmup_momentum + share * (settings.momentum - settings.warmup_momentum),
        )

    def accumulated_at(self, forward_pass: int) -> int:
        """Return how many forward passes are accumulated from one on; it ramps up from 1 in the warm-up."""
        settings = self._settings
        if settings.nominal_batch == 0:
            return 1
        if forward_pass >= self.warmup:
            return _accumulated(settings)
        share = forward_pass / self.warmup
        return max(1, round(1 + share * (settings.nominal_batch / settings.batch - 1)))

    @property
    def steps(self) -> int:
        """Return how many optimiser steps the run has; one ends with each epoch, however few passes it has."""
        found = 0
        warm_epochs = min(math.ceil(self.warmup / self._batches), self._settings.epochs)
        for epoch in range(warm_epochs):
            done = 0
            while done < self._batches:
                done += self.accumulated_at(epoch * self._batches + done)
                found += 1
        each = math.ceil(self._batches / self.accumulated_at(self.warmup))
        return found + each * (self._settings.epochs - warm_epochs)


def set_rates_(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give an optimizer of ``build_optimizer`` the rates of its next step."""
    for group in optimizer.param_groups:
        group["lr"] = rates.bias_learning_rate if group["role"] == BIAS else rates.learning_rate
        if "momentum" in group:
            group["momentum"] = rates.momentum


def _trainable(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    for owner in model.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield owner, name, parameter


def _accumulated(settings: TrainSettings) -> int:
    # Python's round, as YOLOv7's: halves go to the even number.
    return max(round(settings.nominal_batch / settings.batch), 1)


def _epoch_factors(settings: TrainSettings) -> tuple[float, ...]:
    """Return the learning rate of each epoch over the full one."""
    if settings.schedule == "constant":
        return (1.0,) * settings.epochs
    carrier = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, _ = create_scheduler_v2(carrier, **_timm_schedule(settings))
    factors = []
    for epoch in range(settings.epochs):
        scheduler.step(epoch)
        factors.append(max(float(carrier.param_groups[0]["lr"]), settings.final_fraction))
    return tuple(factors)


def _timm_schedule(settings: TrainSettings) -> dict[str, Any]:
    table: dict[str, Any] = {
        "sched": settings.schedule,
        "min_lr": settings.final_fraction,
        "num_epochs": settings.epochs,
    }
    match settings.schedule:
        case "linear":
            # YOLOv7's line reaches its end in the last epoch, not after it; it is timm's polynomial of degree 1.
            table |= {"sched": "poly", "decay_rate": 1.0, "num_epochs": max(settings.epochs - 1, 1)}
        case "step":
            table |= {"decay_epochs": _first_decay(settings), "decay_rate": settings.decay_rate}
        case "multistep":
            _first_decay(settings)
            # timm's milestones fall one epoch before their number.
            milestones = [epoch + 1 for epoch in settings.decay_epochs]
            table |= {"decay_milestones": milestones, "decay_rate": settings.decay_rate}
    return table


def _first_decay(settings: TrainSettings) -> int:
    if not settings.decay_epochs:
        raise RecipeError(
            f"[train] schedule = '{settings.schedule}' needs decay_epochs, for example decay_epochs = "
            f"[{max(settings.epochs * 2 // 3, 1)}]"
        )
    return settings.decay_epochs[0]
