"""Numbers that JSON cannot hold: NaN and infinity."""

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["without_nan"]


def without_nan(value: Any) -> Any:
    """Return a value with None in the place of each number that is not finite; tables and lists are copied."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value
