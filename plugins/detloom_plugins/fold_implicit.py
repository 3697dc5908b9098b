"""Implicit knowledge into the convolution beside it: ``W' = diag(m) W``, ``b' = m (b + W a)``.

Reference: Wang, Yeh and Liao, You only learn one representation (2021), section 3; equations restated for a 1x1
convolution.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.anchor_head import ImplicitConv
from detloom_plugins.sharing import Sharing

__all__ = ["FoldImplicitPass"]


class FoldImplicitPass(ReparamPass):
    """Put added and multiplied constants into the kernel and bias of a head's convolution."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every convolution with implicit knowledge."""
        sharing = Sharing(model)
        plan = []
        for path, module in model.named_modules():
            if isinstance(module, ImplicitConv):
                objection = sharing.objection(module) or sharing.objection_to_all(module.conv)
                reason = objection or "constants before and after a 1x1 convolution"
                plan.append(Fold(path, applies=not objection, reason=reason, parts=("conv",)))
        return plan

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the plain convolution."""
        if not isinstance(module, ImplicitConv):
            raise PluginError(f"fold-implicit: {fold.path or 'the model'} has no implicit knowledge")
        dtype = module.conv.weight.dtype
        # Rounding once, not at each product.
        weight, bias = module.double().explicit()
        conv = module.conv
        conv.weight = nn.Parameter(weight.to(dtype))
        conv.bias = nn.Parameter(bias.to(dtype))
        return conv


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("fold-implicit", FoldImplicitPass)
