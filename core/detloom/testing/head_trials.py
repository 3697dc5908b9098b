"""Maps that heads are given to decode, drawn and fixed.

Shape letters: see ``batches``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from detloom.interfaces import Head
from detloom.structures import FeatureSpec, HeadMaps
from detloom.testing.batches import NUM_CLASSES, SIZE
from detloom.testing.construction import Build
from detloom.testing.drawing import counted, holds_for_drawn

__all__ = ["LEVELS", "demand_of_maps", "level_tensors", "maps_of"]

LEVELS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))


@dataclass(frozen=True, slots=True)
class DrawnMaps:
    """Raw maps of a head, random.

    Attributes:
        size: Of the images, in pixels.
        spread: Standard deviation of the values.
    """

    num_images: int
    size: tuple[int, int]
    num_classes: int
    spread: int
    seed: int = 5

    @property
    def where(self) -> str:
        """Return what is asked."""
        return "decode"

    def __str__(self) -> str:
        """Return it in words."""
        images, classes = counted(self.num_images, "image", "images"), counted(self.num_classes, "class", "classes")
        return f"maps of {images} of {self.size[0]} x {self.size[1]}, {classes}, random values about {self.spread}"

    def head(self, build: Build) -> Head:
        """Return a head in evaluation mode."""
        head: Head = build(LEVELS, self.num_classes)
        return head.eval()

    def maps(self, head: Head) -> tuple[Tensor, ...]:
        """Return maps of the shapes that the head's have."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [raw.shape for raw in maps_of(head, level_tensors(size=self.size, num_images=self.num_images))]
        return tuple(self.spread * torch.randn(shape, generator=generator) for shape in shapes)


def demand_of_maps(build: Build, spread: int, demanded: Callable[[Head, tuple[Tensor, ...]], None]) -> None:
    """Demand something of maps that are drawn, and of fixed ones.

    Args:
        build: What builds the head.
        spread: The largest standard deviation of the maps' values.
        demanded: Raises an AssertionError where it is not met.
    """
    sides = st.integers(1, 4).map(lambda cells: 32 * cells)
    cases = st.builds(
        DrawnMaps,
        num_images=st.integers(1, 3),
        size=st.tuples(sides, sides),
        num_classes=st.integers(1, 5),
        spread=st.integers(0, spread),
        seed=st.integers(0, 100),
    )

    def asked(case: DrawnMaps) -> None:
        head = case.head(build)
        demanded(head, case.maps(head))

    holds_for_drawn(cases, asked)
    asked(DrawnMaps(2, SIZE, NUM_CLASSES, spread))


def level_tensors(
    specs: Sequence[FeatureSpec] = LEVELS, size: tuple[int, int] = SIZE, num_images: int = 2
) -> list[Tensor]:
    """Return levels of images of a size, always the same."""
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(num_images, spec.channels, size[0] // spec.stride, size[1] // spec.stride, generator=generator)
        for spec in specs
    ]


def maps_of(head: Head, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the lead maps."""
    with torch.no_grad():
        maps: HeadMaps = head(levels)
    return maps.lead
