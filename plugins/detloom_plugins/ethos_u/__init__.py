"""Export for Arm's Ethos-U NPUs: an int8 LiteRT file, compiled by Vela."""

from collections.abc import Callable
from typing import Any

from detloom.hookspecs import hookimpl
from detloom_plugins.ethos_u.exporter import EthosUExporter

__all__ = ["EthosUExporter"]


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the exporter."""
    register("ethos-u", EthosUExporter)
