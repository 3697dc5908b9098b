"""Compose object detectors out of plugins, from a recipe.

    detector = detloom.assemble("yolov7-tiny", {"head.num_classes": 3})
    run = detloom.fit("my.toml", data="data/bccd")
    detections = detloom.load("run/best.safetensors").predict(["a.jpg"])

Importing this module imports no torch; each name does when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detloom.artifacts import load_artifact as load
    from detloom.assembly import assemble, check
    from detloom.detector import Detector
    from detloom.engine.averaging import average
    from detloom.engine.fit import fit
    from detloom.errors import DetloomError
    from detloom.hookspecs import PLUGIN_API, hookimpl
    from detloom.recipe import Recipe, load_recipe
    from detloom.structures import Detections

__all__ = [  # noqa: RUF022 - sorted as dir() sorts
    "Detections",
    "Detector",
    "DetloomError",
    "PLUGIN_API",
    "Recipe",
    "assemble",
    "average",
    "check",
    "fit",
    "hookimpl",
    "load",
    "load_recipe",
]

_HOMES = {
    "PLUGIN_API": ("detloom.hookspecs", "PLUGIN_API"),
    "Detections": ("detloom.structures", "Detections"),
    "Detector": ("detloom.detector", "Detector"),
    "DetloomError": ("detloom.errors", "DetloomError"),
    "Recipe": ("detloom.recipe", "Recipe"),
    "assemble": ("detloom.assembly", "assemble"),
    "average": ("detloom.engine.averaging", "average"),
    "check": ("detloom.assembly", "check"),
    "fit": ("detloom.engine.fit", "fit"),
    "hookimpl": ("detloom.hookspecs", "hookimpl"),
    "load": ("detloom.artifacts", "load_artifact"),
    "load_recipe": ("detloom.recipe", "load_recipe"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'detloom' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    # What this module imports for itself is nobody's to use.
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
