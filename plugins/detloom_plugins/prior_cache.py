"""Priors of a head, laid once for each size of its maps.

They are plain data, not buffers: they follow from the settings and stand in no artifact.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.structures import Priors

__all__ = ["PriorCache"]


class PriorCache:
    """Keep the priors of the last few map sizes on each device.

    Args:
        strides: Of each level, finest first.
        sizes_LA2: Widths and heights in pixels of each level's priors, as nested sequences.
        auxiliary: Strides of the levels that have auxiliary maps, finest first: of all or some.
        capacity: Sizes to keep; training on several scales has a few, evaluation on rectangles has more.

    Raises:
        RecipeError: Auxiliary levels have strides that the lead levels have not.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes_LA2: Sequence[Sequence[Sequence[float]]],
        *,
        auxiliary: Sequence[int] = (),
        capacity: int = 16,
    ) -> None:
        self.auxiliary_levels = tuple(level for level, stride in enumerate(strides) if stride in auxiliary)
        if [strides[level] for level in self.auxiliary_levels] != list(auxiliary):
            raise RecipeError(
                f"auxiliary levels must have the strides of lead levels, {list(strides)}, or of some of them in this "
                f"order, got {list(auxiliary)}"
            )
        self.strides = tuple(strides)
        self.sizes_LA2 = tuple(tuple(tuple(pair) for pair in level) for level in sizes_LA2)
        self.capacity = capacity
        self.kept: dict[tuple[tuple[tuple[int, int], ...], torch.device], Priors] = {}

    def of(self, maps: Sequence[Tensor]) -> Priors:
        """Return the priors of lead maps, or of auxiliary maps, on their device; fewer maps are auxiliary ones."""
        # Fake tensors and compilers see sizes that are no numbers, and must leave nothing behind.
        if torch.compiler.is_compiling() or type(maps[0]) is not Tensor:
            return self._laid(maps)
        key = (tuple((each.shape[-2], each.shape[-1]) for each in maps), maps[0].device)
        found = self.kept.get(key)
        if found is None:
            if len(self.kept) >= self.capacity:
                del self.kept[next(iter(self.kept))]
            # What inference mode makes cannot be used in training later.
            with torch.inference_mode(mode=False):
                found = self.kept[key] = self._laid(maps)
        return found

    def _laid(self, maps: Sequence[Tensor]) -> Priors:
        levels = range(len(self.strides)) if len(maps) == len(self.strides) else self.auxiliary_levels
        shapes: list[tuple[int, int] | None] = [None] * len(self.strides)
        for level, each in zip(levels, maps, strict=True):
            shapes[level] = (each.shape[-2], each.shape[-1])
        return Priors.on_grids(shapes, self.strides, torch.tensor(self.sizes_LA2, device=maps[0].device))
