"""What every ATen operator that can be written means; any other is refused."""

from collections.abc import Mapping
from types import MappingProxyType

from detloom_plugins.litert.arithmetic import ARITHMETIC
from detloom_plugins.litert.calls import Handler
from detloom_plugins.litert.layers import LAYERS

__all__ = ["MEANINGS"]

MEANINGS: Mapping[str, Handler] = MappingProxyType({**LAYERS, **ARITHMETIC})
"""By ATen's name without overload, as ``conv2d``."""
