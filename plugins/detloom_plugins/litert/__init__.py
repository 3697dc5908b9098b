"""Full-integer LiteRT files, written from torch's exported graph without a converter of anybody else.

A network is read (``reading``, ``layers``, ``arithmetic``), simplified, its ranges are observed, scales are chosen, and
it is written. Other exporters build on ``graph_of``, ``convert_to_float`` and ``convert_to_int8``.

Source: LiteRT's schema and the 8-bit quantisation specification of its operators; Jacob et al. 2018, arXiv:1712.05877.
"""

from collections.abc import Callable
from typing import Any

from detloom.hookspecs import hookimpl
from detloom_plugins.litert.conversion import Converted, convert_to_float, convert_to_int8, graph_of
from detloom_plugins.litert.exporter import LitertExporter
from detloom_plugins.litert.ranges import Calibration
from detloom_plugins.litert.runners import make_runner
from detloom_plugins.litert.writer import Operator

__all__ = [
    "Calibration",
    "Converted",
    "LitertExporter",
    "Operator",
    "convert_to_float",
    "convert_to_int8",
    "graph_of",
    "make_runner",
]


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("litert", LitertExporter)
