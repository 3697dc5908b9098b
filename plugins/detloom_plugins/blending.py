"""What averages of weights have in common: their copy of the model, and how they take in weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from detloom.errors import PluginError
from detloom.interfaces import Ema

__all__ = ["BlendedEma", "averaged_copy"]


class BlendedEma(Ema):
    """An average that keeps the share that ``decay_at`` says; at a share of 1 it takes in nothing."""

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step, counted from 1.

        Raises:
            PluginError: The model no longer has the entries of the average.
        """
        decay = self.decay_at(step)
        if decay < 1:
            _blend_(self.averaged, model, decay)


def averaged_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model, in evaluation mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _blend_(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Keep a share of the average and take the rest from the model; integer entries are the model's.

    Args:
        averaged: The average; entries are matched by name, and keep their precision.
        model: Whose weights are taken in.
        decay: From 0, at which the average becomes equal to the model, to below 1.

    Raises:
        PluginError: The model no longer has the entries of the average.
    """
    averages, live = averaged.state_dict(), model.state_dict()
    _check_names(averages, live)
    floating = [name for name, entry in averages.items() if entry.is_floating_point() and decay > 0]
    if floating:
        torch._foreach_lerp_(
            [averages[name] for name in floating],
            [live[name].to(averages[name].dtype) for name in floating],
            1 - decay,
        )
    for name in averages.keys() - floating:
        averages[name].copy_(live[name])


def _check_names(averages: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    if averages.keys() != live.keys():
        only_average = ", ".join(sorted(averages.keys() - live.keys())[:5]) or "none"
        only_live = ", ".join(sorted(live.keys() - averages.keys())[:5]) or "none"
        raise PluginError(
            f"the model's entries are not those of its average. Only in the average: {only_average}; "
            f"only in the model: {only_live}. Make a new average when the model changes"
        )
    for name, entry in averages.items():
        if entry.shape != live[name].shape:
            raise PluginError(
                f"{name} has shape {tuple(live[name].shape)}, its average {tuple(entry.shape)}. "
                "Make a new average when the model changes"
            )
