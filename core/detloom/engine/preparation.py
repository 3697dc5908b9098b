"""All that a training needs before its first step, made before anything is written.

A mistake in the settings then leaves no directory behind that would refuse the next attempt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
import torch
from accelerate import Accelerator
from torch import nn

from detloom.engine.optimise import Schedule, build_optimizer
from detloom.engine.processes import share_statistics
from detloom.engine.settings import TrainSettings
from detloom.errors import PluginError, RecipeError, suggest
from detloom.hookspecs import PROJECT, RunHooks
from detloom.interfaces import Ema, Observer

__all__ = ["Prepared", "observing", "prepare"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A detector that is ready to be trained.

    Attributes:
        accelerator: Device, precision and processes.
        plain: The detector itself.
        model: What is called: the detector in the wrappings of its precision and processes.
        optimizer: Of the parameters that are trained.
        schedule: Of its rates.
        frozen: Modules that compute as in evaluation.
        ema: The average, where the recipe has one.
        hooks: Calls the observers.
    """

    accelerator: Accelerator
    plain: nn.Module
    model: nn.Module
    optimizer: Any
    schedule: Schedule
    frozen: tuple[nn.Module, ...]
    ema: Ema | None
    hooks: Any


def prepare(
    detector: nn.Module,
    num_batches: int,
    *,
    settings: TrainSettings,
    accelerator: Accelerator,
    make_ema: Callable[[nn.Module], Ema] | None,
    observers: Sequence[Observer],
) -> Prepared:
    """Move a detector to its device and build what trains it; nothing is written.

    Args:
        detector: Changed in place.
        num_batches: Batches of an epoch.
        settings: The recipe's ``[train]``.
        accelerator: Device, precision and processes.
        make_ema: Makes the average of a model, where the recipe has one.
        observers: Components that follow the run.

    Raises:
        RecipeError: A setting cannot be used.
        PluginError: An observer has a hook that nobody calls, or a norm cannot be shared.
    """
    hooks = observing(observers)
    schedule = Schedule(settings, num_batches)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    detector.to(accelerator.device).to(memory_format=layout)
    _freeze_(detector, settings.freeze)
    optimizer = build_optimizer(detector, settings)
    ema = make_ema(detector) if make_ema else None
    if accelerator.num_processes > 1:
        detector = share_statistics(detector, accelerator.device)
    model, prepared = accelerator.prepare(detector, optimizer)
    return Prepared(
        accelerator,
        detector,
        model,
        prepared,
        schedule,
        tuple(_unchanging(detector, settings.freeze)),
        ema,
        hooks,
    )


def observing(observers: Sequence[Observer]) -> Any:
    """Return pluggy's hooks of a run, which call the observers in their order.

    Raises:
        PluginError: A method is no hook of a run, or does not fit its hook.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    known = [name for name in vars(RunHooks) if not name.startswith("_")]
    # pluggy calls the last first; a recipe's order is the order of calls.
    for observer in reversed(observers):
        who = f"the observer {type(observer).__name__} ({type(observer).__module__})"
        for name in dir(observer):
            if manager.parse_hookimpl_opts(observer, name) is not None and name not in known:
                raise PluginError(
                    f"{who} implements '{name}', which is no hook of a run.{suggest(name, known)}\n"
                    f"  hooks: {', '.join(known)}"
                )
        try:
            manager.register(observer)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{who} does not fit its hook: {str(error).splitlines()[-1]}") from error
    return manager.hook


def _freeze_(model: nn.Module, names: Sequence[str]) -> None:
    """Keep the weights of parts of a model as they are."""
    known = [path for path, _ in model.named_modules() if path]
    for name in names:
        if name not in known:
            children = ", ".join(path for path, _ in model.named_children())
            raise RecipeError(
                f"[train] freeze: the model has no part '{name}'.{suggest(name, known)}\n  parts: {children}"
            )
        model.get_submodule(name).requires_grad_(requires_grad=False)


def _unchanging(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules of frozen parts that compute as in evaluation: normalisation, dropout and other leaves.

    What they are put together in stays in training mode, in which necks and heads have auxiliary outputs.
    """
    return [
        module
        for name in names
        for module in model.get_submodule(name).modules()
        # Some batch norms have an activation inside.
        if isinstance(module, nn.modules.batchnorm._NormBase) or not any(module.children())  # noqa: SLF001 - torch has no public name for all of them
    ]
