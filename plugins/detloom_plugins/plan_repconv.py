"""RepConvs whose identity repeats a path of the network become RepConvs without identity, equal in evaluation mode.

The identity goes into the 1x1 branch, of which it is a special case: with scale ``t`` and shift ``s`` of the norms of
the 1x1 branch (1) and the identity (0), the kernel becomes ``t1 W1 + t0 I`` and the norm one that only adds
``s1 + s0``. What is trained from there has no path of its own for its input.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 4.2, "planned re-parameterized convolution", RepConvN.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.conv_norm import scale_and_shift
from detloom_plugins.layers import RepConv
from detloom_plugins.merge_repconv import own_channel
from detloom_plugins.repconv_flow import identities
from detloom_plugins.sharing import Sharing

__all__ = ["PlanRepConvPass"]


class PlanRepConvPass(ReparamPass):
    """Take the identity from each RepConv whose output meets a residual or a concatenation unweighted."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every RepConv with an identity: what it repeats, or that it may keep it."""
        found = identities(model)
        sharing = Sharing(model)
        plan = []
        for path, module in model.named_modules():
            if not isinstance(module, RepConv) or module.identity is None:
                continue
            objection = _objection(module, sharing)
            if path in found.unread:
                unread = found.unread[path]
                plan.append(Fold(path, applies=False, reason="whether it may stay is not known", warning=unread))
            elif path not in found.repeated:
                plan.append(Fold(path, applies=False, reason="the identity repeats no path, it may stay"))
            elif objection:
                warning = f"its identity {found.repeated[path]}, and it cannot be rewritten: {objection}"
                plan.append(Fold(path, applies=False, reason=objection, warning=warning))
            else:
                plan.append(Fold(path, applies=True, reason=f"the identity {found.repeated[path]}"))
        return plan

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the RepConv with its identity inside its 1x1 branch."""
        if not isinstance(module, RepConv) or module.identity is None:
            raise PluginError(f"plan-repconv: {fold.path or 'the model'} is no RepConv with an identity")
        norm, dtype = module.bn1, module.conv1.weight.dtype
        identity_O, identity_shift_O = scale_and_shift(module.identity)
        scale_O, shift_O = scale_and_shift(norm)
        kernel = module.conv1.weight.double() * scale_O[:, None, None, None] + own_channel(module.conv1, identity_O)
        module.conv1.weight = nn.Parameter(kernel.to(dtype))
        norm.running_mean = torch.zeros_like(scale_O, dtype=dtype)
        norm.running_var = torch.ones_like(scale_O, dtype=dtype)
        # The norm divides by sqrt(1 + eps), which its weight makes good.
        norm.weight = nn.Parameter(torch.full_like(scale_O, (1 + norm.eps) ** 0.5, dtype=dtype))
        norm.bias = nn.Parameter((shift_O + identity_shift_O).to(dtype))
        module.identity = None
        return module


def _objection(module: RepConv, sharing: Sharing) -> str:
    if type(module) is not RepConv:
        return f"{type(module).__name__} may do more than a RepConv"
    if not isinstance(module.bn1, nn.BatchNorm2d):
        return "the norm of its 1x1 branch is gone; plan before fuse-bn"
    if module.bn1.running_mean is None or module.identity is None or module.identity.running_mean is None:
        return "it keeps no statistics, it uses those of each batch"
    return sharing.objection_to_all(module)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("plan-repconv", PlanRepConvPass)
