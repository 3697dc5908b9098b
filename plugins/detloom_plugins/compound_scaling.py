"""Compound scaling of networks that concatenate.

A deeper chain gives its concatenation more channels, so what follows must become wider, too: depth and the widths
between the blocks are scaled together, and the channels inside the blocks stay.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3.2 and figure 3.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Scaling
from detloom.ops.scaling import check_factor, check_multiple, deepened, rescaled, snapped
from detloom.structures import Extent

__all__ = ["CompoundScaling"]

DEFAULTS = (1.5, 1.25)
"""Depth and width of YOLOv7-X over ``yolov7x-light`` (arXiv:2207.02696, table 3)."""


class CompoundScaling(Scaling):
    """Deeper blocks and wider transitions, together; the widths inside blocks stay.

    Args:
        depth: Factor of the depths of blocks, rounded to whole numbers. Left out together with ``width``: 1.5 and 1.25,
            which make YOLOv7-X of ``yolov7x-light``.
        width: Factor of the widths between blocks; that by which a block's concatenation grows with its depth.
        multiple: Widths become whole multiples of it.
    """

    changes = frozenset({Extent.DEPTH, Extent.WIDTH})

    def __init__(self, *, depth: float | None = None, width: float | None = None, multiple: int = 8) -> None:
        if (depth is None) != (width is None):
            given, missing = ("depth", "width") if width is None else ("width", "depth")
            raise RecipeError(
                f"{given} is scaled and {missing} is not: give both factors, 1.0 for one that is to stay, or neither, "
                "for 1.5 and 1.25"
            )
        depth, width = DEFAULTS if depth is None or width is None else (depth, width)
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
