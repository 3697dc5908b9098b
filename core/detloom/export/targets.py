"""What can be exported to: exporters by name, and the devices that they know by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detloom.building import build
from detloom.errors import ExportError, RecipeError, suggest
from detloom.interfaces import Exporter
from detloom.kinds import Kind
from detloom.recipe import USE
from detloom.workshop import Workshop, workshop

__all__ = ["Chosen", "Target", "choose_target", "known_targets"]

BETWEEN = "/"
"""Stands between an exporter and a device, where several exporters know one of that name."""


@dataclass(frozen=True, slots=True)
class Target:
    """What ``--target`` may name.

    Attributes:
        name: The exporter's own, or that of a device.
        exporter: The exporter's name.
        settings: What stands for the device.
        missing: What has to be installed first, or nothing.
    """

    name: str
    exporter: str
    settings: Mapping[str, Any]
    missing: str | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A target, with the exporter built for it.

    Attributes:
        target: As it was named.
        name: The exporter's.
        settings: What it was built with.
        exporter: Itself.
    """

    target: str
    name: str
    settings: Mapping[str, Any]
    exporter: Exporter


def known_targets(shop: Workshop | None = None) -> tuple[Target, ...]:
    """Return all targets: of each exporter itself first, then its devices."""
    shop = shop or workshop()
    found: list[Target] = []
    for name in shop.names(Kind.EXPORTER):
        cls: type[Exporter] = shop.component(Kind.EXPORTER, name)
        missing = cls.missing()
        found.append(Target(name, name, {}, missing))
        found += [Target(device, name, settings, missing) for device, settings in cls.targets.items()]
    return tuple(found)


def choose_target(wanted: str, settings: Mapping[str, Any], *, shop: Workshop | None = None) -> Chosen:
    """Return the exporter of a target, built.

    Args:
        wanted: An exporter's name, that of a device, or both with a ``/`` between them.
        settings: Of the exporter, over those that stand for the device.
        shop: Where exporters are looked up; the environment's workshop when not given.

    Raises:
        ExportError: Nothing has that name, several exporters have, or packages are missing.
        RecipeError: A setting is wrong.
    """
    shop = shop or workshop()
    exporter, _, device = wanted.rpartition(BETWEEN)
    known = known_targets(shop)
    found = [each for each in known if each.name == device and exporter in ("", each.exporter)]
    if not found:
        raise ExportError(_unknown(wanted, known))
    if len(found) > 1:
        choices = " or ".join(f"--target {each.exporter}{BETWEEN}{each.name}" for each in found)
        raise ExportError(f"--target {wanted}: several exporters know a device of that name; say which: {choices}")
    (target,) = found
    if target.missing:
        raise ExportError(f"--target {wanted}: {target.missing}")
    if USE in settings:
        raise RecipeError(f"--set {USE}: the exporter is named by --target; --set changes its settings alone")
    table = {**target.settings, **settings}
    where = f"--target {wanted}" + ("" if wanted == target.exporter else f", the exporter '{target.exporter}'")
    built = build(Kind.EXPORTER, {USE: target.exporter, **table}, where=where, shop=shop)
    assert isinstance(built, Exporter)  # noqa: S101 - narrows the type: its kind was read off its class
    return Chosen(wanted, target.exporter, table, built)


def _unknown(wanted: str, known: tuple[Target, ...]) -> str:
    names = [each.name for each in known]
    exporters = [each.name for each in known if each.name == each.exporter]
    near = suggest(wanted.rpartition(BETWEEN)[2], names)
    return (
        f"--target {wanted}: no exporter and no device is called that.{near}\n"
        f"  exporters: {', '.join(exporters) or 'none is installed'}     "
        "`detloom export --targets` lists them with their devices."
    )
