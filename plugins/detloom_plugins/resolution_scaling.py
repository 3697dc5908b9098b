"""Scaling by the size of pictures, anchors included.

Reference: Tan and Le, EfficientNet (2019), section 3.2.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detloom.hookspecs import hookimpl
from detloom.interfaces import Scaling
from detloom.ops.scaling import check_factor, check_multiple, rescaled, snapped
from detloom.structures import Extent

__all__ = ["ResolutionScaling"]


class ResolutionScaling(Scaling):
    """Larger or smaller pictures for the same network; anchors grow with the objects that they are sizes of.

    Args:
        resolution: Factor of the sides of pictures, and of anchors.
        multiple: Sides become whole multiples of it: of the largest stride of the network, 64 in those for large
            pictures, or a multiple of that.
    """

    changes = frozenset({Extent.IMAGE, Extent.LENGTH})

    def __init__(self, *, resolution: float = 1.25, multiple: int = 32) -> None:
        check_factor("resolution", resolution)
        check_multiple(multiple)
        self.resolution = resolution
        self.multiple = multiple

    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return the size of pictures, and the anchors where there are some."""
        larger = partial(snapped, factor=self.resolution, multiple=self.multiple)
        return rescaled(tables, extents, {Extent.IMAGE: larger, Extent.LENGTH: self._longer})

    def _longer(self, length: float) -> float:
        # A hundredth of a pixel is less than any anchor search tells apart.
        return length if self.resolution == 1 else round(length * self.resolution, 2)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the scaling."""
    register("resolution", ResolutionScaling)
