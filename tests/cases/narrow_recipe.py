"""YOLOv7-tiny so narrow that a test can train it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["NARROW", "NARROW_NECK"]

NARROW_NECK: Mapping[str, Any] = MappingProxyType(
    {
        "neck.hidden": [8, 8, 8],
        "neck.widths": [8, 8, 8],
        "neck.outputs": [16, 16, 16],
    }
)
NARROW: Mapping[str, Any] = MappingProxyType(
    {
        "backbone.stem": [[3, 2, 8], [3, 2, 8]],
        "backbone.hidden": [8, 8, 8, 8],
        "backbone.widths": [8, 16, 16, 16],
        **NARROW_NECK,
    }
)
