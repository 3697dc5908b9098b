"""Scaling by depth alone.

Reference: Tan and Le, EfficientNet (2019), section 3.2; in Wang, Bochkovskiy and Liao, YOLOv7 (2022), table 3, what
compound scaling is compared with.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detloom.hookspecs import hookimpl
from detloom.interfaces import Scaling
from detloom.ops.scaling import check_factor, deepened, rescaled
from detloom.structures import Extent

__all__ = ["DepthScaling"]


class DepthScaling(Scaling):
    """All depths by one factor; widths stay, so that longer concatenations are narrowed more.

    Args:
        depth: Factor of the depths of blocks, rounded to whole numbers.
    """

    changes = frozenset({Extent.DEPTH})

    def __init__(self, *, depth: float = 2.0) -> None:
        check_factor("depth", depth)
        self.depth = depth

    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return the depths that change."""
        return rescaled(tables, extents, {Extent.DEPTH: partial(deepened, factor=self.depth)})


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the scaling."""
    register("depth", DepthScaling)
