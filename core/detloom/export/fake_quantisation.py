"""Eight-bit arithmetic played in float: what a network computes when its numbers are rounded to a grid.

Weights have a symmetric grid for each output channel, activations an asymmetric one for each tensor. Gradients pass
through the rounding, and stop where a number is cut off at the end of its grid (the straight-through estimator).
An activation that only cuts off (ReLU, ReLU6) is one operation with the convolution before it, as on chips: the numbers
between the two are never stored, and are not rounded.

It stands for no chip in particular: operations that are no modules, as sums and concatenations, stay exact.

References: Jacob et al. 2018, arXiv:1712.05877, sections 2 and 3; Krishnamoorthi 2018, arXiv:1806.08342, sections 2-3.

Shape letters: O output channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PRODUCTS", "Grid", "Range", "Rounding", "rounded_output", "rounded_weight", "roundings"]

PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Modules whose weights are rounded."""

# What only cuts off, and is done by the convolution before it.
FUSED = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
# What passes numbers on as they are, on the grid on which they come.
PASSING = (nn.Identity, nn.Dropout, nn.MaxPool2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.Flatten)

LEAST_SCALE = 1e-8
WEIGHT_LIMIT = 127
STEPS = 255


@dataclass(frozen=True, slots=True)
class Rounding:
    """A place where an activation is stored, and so rounded.

    Attributes:
        output: Path of the module whose output it is.
        product: Path of the convolution or linear layer whose result it is; empty where it is none's.
    """

    output: str
    product: str


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers that eight bits can hold: ``(q - zero_point) * scale``, for ``q`` of 0 to 255; zero is one of them."""

    scale: Tensor
    zero_point: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Return values rounded to the grid."""
        scale, zero_point = self.scale.to(values.device), self.zero_point.to(values.device)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, 0, STEPS)


class Range:
    """The smallest and the largest number seen, zero included: the extremes of all, or those that follow.

    Attributes:
        share: Weight of what is newly seen, for a range that follows; None keeps the extremes of all.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    @torch.no_grad()
    def see_(self, values: Tensor) -> None:
        """Take in some numbers."""
        low, high = (each.float() for each in torch.aminmax(values.detach()))
        if self._low is not None and self._high is not None:
            # A model may be moved to another device once its ranges have begun.
            self._low, self._high = self._low.to(low), self._high.to(high)
        if self._low is None or self._high is None:
            self._low, self._high = low, high
        elif self.share is None:
            self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        else:
            self._low, self._high = self._low.lerp(low, self.share), self._high.lerp(high, self.share)

    @property
    def grid(self) -> Grid:
        """Return the grid that reaches over the range."""
        assert self._low is not None  # noqa: S101 - narrows the type: callers see numbers first
        assert self._high is not None  # noqa: S101 - the same
        low, high = self._low.clamp(max=0), self._high.clamp(min=0)
        scale = ((high - low) / STEPS).clamp(min=LEAST_SCALE)
        return Grid(scale, (-low / scale).round().clamp(0, STEPS).int())


def rounded_weight(weight: Tensor, module: nn.Module) -> Tensor:
    """Return a module's weight, rounded to the grid of each of its output channels."""
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    others = [each for each in range(weight.dim()) if each != axis]
    scale_O = (weight.detach().abs().amax(others) / WEIGHT_LIMIT).clamp(min=LEAST_SCALE)
    zero_O = torch.zeros_like(scale_O, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale_O, zero_O, axis, -WEIGHT_LIMIT, WEIGHT_LIMIT)


@torch.no_grad()
def roundings(model: nn.Module, example: Tensor) -> tuple[Rounding, ...]:
    """Return where activations are stored, in the order in which the model computes them.

    Args:
        model: Run once, as it is.
        example: What to run it on.
    """
    calls = _Calls(model)
    try:
        model(example)
    finally:
        calls.close()
    return calls.roundings()


class _Calls:
    """Which leaf modules a model runs, and which of them reads the output of which.

    Tensors are told apart as objects: what works in place returns the one that it was given.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[str, nn.Module] = {}
        self._readers: list[tuple[str, Tensor]] = []
        self._outputs: dict[str, Tensor] = {}
        self._handles = []
        for path, module in model.named_modules():
            if not any(True for _ in module.children()):
                self._modules[path] = module
                self._handles.append(module.register_forward_hook(self._hook(path)))

    def _hook(self, path: str) -> Any:
        def seen(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            is_alias = any(output is each for each in inputs) and isinstance(module, PASSING)
            if not is_alias:
                self._readers += [(path, each) for each in inputs if isinstance(each, Tensor)]
            if isinstance(output, Tensor) and output.is_floating_point() and path not in self._outputs:
                self._outputs[path] = output

        return seen

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def roundings(self) -> tuple[Rounding, ...]:
        products = [path for path in self._outputs if isinstance(self._modules[path], PRODUCTS)]
        fused = {path: reader for path in products if (reader := self._fused_with(path))}
        made_by = {reader: path for path, reader in fused.items()}
        return tuple(
            Rounding(path, made_by.get(path, path if path in products else ""))
            for path in self._outputs
            if path not in fused and not isinstance(self._modules[path], PASSING)
        )

    def _fused_with(self, path: str) -> str:
        """Return the activation that cuts off the output of a product before anything else reads it, if any does."""
        readers = [reader for reader, tensor in self._readers if tensor is self._outputs[path]]
        if not readers or not isinstance(self._modules[readers[0]], FUSED):
            return ""
        is_in_place = self._outputs[readers[0]] is self._outputs[path]
        return readers[0] if is_in_place or len(readers) == 1 else ""


def rounded_output(grid: Grid) -> Any:
    """Return a forward hook that rounds what a module returns."""

    def hook(_: nn.Module, __: Sequence[Any], output: Tensor) -> Tensor:
        return grid(output)

    return hook
