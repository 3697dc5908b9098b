"""Auxiliary levels and outputs, which serve training alone, out of the deployed form.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 4.3 and figure 5, on auxiliary heads.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, Head, Neck, ReparamPass
from detloom.structures import Role

__all__ = ["DropAuxiliaryPass"]


class DropAuxiliaryPass(ReparamPass):
    """Empty the list ``auxiliary`` of necks and heads: the parts that they run in training mode alone."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every neck and head with auxiliary parts."""
        return [
            Fold(path, applies=True, reason=f"{len(parts)} auxiliary levels serve training alone")
            for path, module in model.named_modules()
            if isinstance(module, Neck | Head) and (parts := _auxiliary(module))
        ]

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the neck or head without its auxiliary parts."""
        if not isinstance(module, Neck | Head) or not _auxiliary(module):
            raise PluginError(f"drop-auxiliary: {fold.path or 'the model'} has no auxiliary parts")
        module.auxiliary = nn.ModuleList()
        if isinstance(module, Neck):
            module.out_specs = tuple(spec for spec in module.out_specs if spec.role is Role.LEAD)
        return module


def _auxiliary(module: nn.Module) -> list[nn.Module]:
    parts = getattr(module, "auxiliary", None)
    return list(parts) if isinstance(parts, nn.ModuleList) else []


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("drop-auxiliary", DropAuxiliaryPass)
