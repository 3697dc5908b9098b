"""Arithmetic of scaling: numbers among settings, found by their paths and changed by a rule.

References: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3.2; Tan and Le, EfficientNet (2019), section 3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detloom.errors import RecipeError
from detloom.structures import Extent

__all__ = ["Rule", "check_factor", "check_multiple", "deepened", "rescaled", "snapped"]

Rule = Callable[[float], float]
"""What becomes of a number."""

EACH = "*"


def rescaled(tables: Mapping[str, Any], extents: Mapping[str, Extent], rules: Mapping[Extent, Rule]) -> dict[str, Any]:
    """Return the settings that rules change, by section and name; nothing is changed in place.

    >>> rescaled({"neck": {"widths": [8, 16]}}, {"neck.widths": Extent.WIDTH}, {Extent.WIDTH: lambda width: 2 * width})
    {'neck.widths': [16, 32]}
    """
    found: dict[str, Any] = {}
    for path, extent in extents.items():
        if extent in rules:
            section, setting, *members = path.split(".")
            key = f"{section}.{setting}"
            # A setting may be measured in several places.
            found[key] = _changed(found.get(key, tables[section][setting]), members, rules[extent])
    return {key: value for key, value in found.items() if value != _setting(tables, key)}


def snapped(value: float, factor: float, multiple: int) -> int:
    """Return a width or side times a factor, the nearest whole multiple, at least one; a half is rounded up.

    A factor of 1 leaves numbers that are no multiples as they are, and 0 stays 0.

    >>> snapped(64, 1.3, 8), snapped(20, 0.1, 8), snapped(0, 1.3, 8), snapped(20, 1.0, 8)
    (80, 8, 0, 20)
    """
    if factor == 1 or value == 0:
        return int(value)
    return multiple * max(1, math.floor(value * factor / multiple + 0.5))


def deepened(value: float, factor: float) -> int:
    """Return a depth times a factor as the nearest whole number, at least 1; a half is rounded up, and 0 stays 0.

    >>> deepened(6, 1.3333), deepened(1, 0.3), deepened(0, 2.0)
    (8, 1, 0)
    """
    return max(1, math.floor(value * factor + 0.5)) if value else 0


def check_factor(name: str, factor: float) -> None:
    """Refuse a factor that leaves no network.

    Raises:
        RecipeError: It is not finite, or not above 0.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise RecipeError(f"{name} must be a finite factor above 0, as 1.25, got {factor}")


def check_multiple(multiple: int) -> None:
    """Refuse a multiple that no width is one of.

    Raises:
        RecipeError: It is below 1.
    """
    if multiple < 1:
        raise RecipeError(f"multiple must be at least 1, got {multiple}; 8 suits most hardware")


def _changed(value: Any, members: Sequence[str], rule: Rule) -> Any:
    """Return a number, or the numbers of a list that a path leads to, by a rule; tuples become lists."""
    if not isinstance(value, list | tuple):
        return rule(value)
    if not members:
        return [_changed(each, (), rule) for each in value]
    first, *rest = members
    return [
        _changed(each, rest, rule) if first in (EACH, str(place)) else _changed(each, (), _same)
        for place, each in enumerate(value)
    ]


def _setting(tables: Mapping[str, Any], key: str) -> Any:
    section, setting = key.split(".")
    return _changed(tables[section][setting], (), _same)


def _same(value: float) -> float:
    return value
