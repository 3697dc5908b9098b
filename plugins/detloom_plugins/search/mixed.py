"""A place in a network that holds one module for each option of a key, and gives their weighted sum.

Where one option is chosen it alone is computed, and what it gives is returned as it is: the network is then that of
the option, at its cost.

References: Liu, Simonyan and Yang, DARTS (2019), arXiv:1806.09055, section 2.2, for the mixed operation; Wu et al.,
FBNet (2019), arXiv:1812.03443, equation 6, for one of whose weights are those of a draw.

Shape letter: O options.
"""

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Gate", "Mixed", "parts_of", "shapes_of"]


class Gate:
    """How the options of a key are weighted at the moment, for all places that the key changes.

    Attributes:
        key: Of the space.
        num_options: How many there are.
        index: The option that alone is computed, where there are no weights.
        weights_O: Of the options, all of which are computed then.
    """

    def __init__(self, key: str, num_options: int) -> None:
        self.key = key
        self.num_options = num_options
        self.index = 0
        self.weights_O: Tensor | None = None

    def choose(self, index: int) -> None:
        """Compute one option alone."""
        self.index, self.weights_O = index, None

    def weigh(self, weights_O: Tensor) -> None:
        """Compute all options, and their sum with weights."""
        self.weights_O = weights_O


class Mixed(nn.Module):
    """One module for each option of a key.

    Args:
        gate: Of the key.
        options: In the key's order; what they return has the same shapes.
    """

    def __init__(self, gate: Gate, options: Sequence[nn.Module]) -> None:
        super().__init__()
        self.gate = gate
        self.options = nn.ModuleList(options)
        for module in self.options.modules():
            # One option would write into what the next one reads.
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment] # a plain attribute, which nn.Module knows not of
        # What is asked of a backbone or a neck.
        if hasattr(options[0], "out_specs"):
            self.out_specs = options[0].out_specs

    @property
    def chosen(self) -> nn.Module:
        """Return the option that alone is computed."""
        return self.options[self.gate.index]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the chosen option does, or the weighted sum of all."""
        weights_O = self.gate.weights_O
        if weights_O is None:
            return self.chosen(*args, **kwargs)
        return _sum([option(*args, **kwargs) for option in self.options], weights_O)


def shapes_of(output: Any) -> Hashable:
    """Return the shapes of what a module returned, in its form: of tensors, sequences and data classes."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, list | tuple | dict) or dataclasses.is_dataclass(output):
        return type(output).__qualname__, tuple((name, shapes_of(each)) for name, each in parts_of(output))
    return type(output).__qualname__


def parts_of(output: Any) -> Iterator[tuple[Any, Any]]:
    """Yield names and values of the parts of what a module returned; nothing of what has none."""
    if isinstance(output, dict):
        yield from output.items()
    elif isinstance(output, list | tuple):
        yield from enumerate(output)
    elif dataclasses.is_dataclass(output):
        yield from ((field.name, getattr(output, field.name)) for field in dataclasses.fields(output))


def _sum(outputs: Sequence[Any], weights_O: Tensor) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        terms = [weight.to(each.dtype) * each for weight, each in zip(weights_O, outputs, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
    if not (isinstance(first, list | tuple | dict) or dataclasses.is_dataclass(first)):
        return first
    sums = {name: _sum([dict(parts_of(each))[name] for each in outputs], weights_O) for name, _ in parts_of(first)}
    if isinstance(first, dict):
        return sums
    if dataclasses.is_dataclass(first):
        return dataclasses.replace(first, **sums)  # type: ignore[type-var] # mypy takes it for a class
    return type(first)(*sums.values()) if hasattr(first, "_fields") else type(first)(sums.values())
