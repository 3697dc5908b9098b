"""Compound scaling of networks that concatenate.

A deeper chain gives its concatenation more channels, so what follows must become wider, too: depth and the widths
between the blocks are scaled together, and the channels inside the blocks stay.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3.2 and figure 3.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detloom.hookspecs import hookimpl
from detloom.interfaces import Scaling
from detloom.ops.scaling import check_factor, check_multiple, deepened, rescaled, snapped
from detloom.structures import Extent

__all__ = ["CompoundScaling"]


class CompoundScaling(Scaling):
    """Deeper blocks and wider transitions, together; the widths inside blocks stay.

    The defaults make YOLOv7-X of ``yolov7x-light``.

    Args:
        depth: Factor of the depths of blocks, rounded to whole numbers.
        width: Factor of the widths between blocks; that by which a block's concatenation grows with its depth.
        multiple: Widths become whole multiples of it.
    """

    changes = frozenset({Extent.DEPTH, Extent.WIDTH})

    def __init__(self, *, depth: float = 1.5, width: float = 1.25, multiple: int = 8) -> None:
        check_factor("depth", depth)
        check_factor("width", width)
        check_multiple(multiple)
        self.depth = depth
        self.width = width
        self.multiple = multiple

    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return the depths and the widths between blocks that change."""
        deeper = partial(deepened, factor=self.depth)
        wider = partial(snapped, factor=self.width, multiple=self.multiple)
        return rescaled(tables, extents, {Extent.DEPTH: deeper, Extent.WIDTH: wider})


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the scaling."""
    register("compound", CompoundScaling)
