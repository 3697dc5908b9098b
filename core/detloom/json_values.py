"""Values of JSON and TOML: numbers that JSON cannot hold, and which values say the same."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["are_equal", "without_nan"]


def without_nan(value: Any) -> Any:
    """Return a value with None in the place of each number that is not finite; tables and lists are copied."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value


def are_equal(one: Any, other: Any) -> bool:
    """Return whether two values of TOML or JSON say the same: 1 and 1.0 do, 1 and true do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(are_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
