"""Scaling by width alone, channels inside blocks included.

Reference: Tan and Le, EfficientNet (2019), section 3.2; in Wang, Bochkovskiy and Liao, YOLOv7 (2022), table 3, what
compound scaling is compared with.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from detloom.hookspecs import hookimpl
from detloom.interfaces import Scaling
from detloom.ops.scaling import check_factor, check_multiple, rescaled, snapped
from detloom.structures import Extent

__all__ = ["WidthScaling"]


class WidthScaling(Scaling):
    """All widths by one factor, those inside blocks too; depths stay.

    Args:
        width: Factor of all widths.
        multiple: Widths become whole multiples of it.
    """

    changes = frozenset({Extent.WIDTH, Extent.HIDDEN})

    def __init__(self, *, width: float = 1.25, multiple: int = 8) -> None:
        check_factor("width", width)
        check_multiple(multiple)
        self.width = width
        self.multiple = multiple

    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return the widths that change."""
        wider = partial(snapped, factor=self.width, multiple=self.multiple)
        return rescaled(tables, extents, dict.fromkeys(self.changes, wider))


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the scaling."""
    register("width", WidthScaling)
