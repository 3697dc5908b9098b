"""Parallel branches of a RepConv into one 3x3 convolution.

Each branch is a 3x3 kernel and a bias once its norm is folded in: the 1x1 kernel stands in the middle of zeros, and the
identity is a kernel of ones at the own channel. Kernels and biases are added.

References: Ding et al., RepVGG (2021), section 3.3; Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 4.2, for RepConv
without identity.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.conv_norm import fused_kernel, scale_and_shift
from detloom_plugins.layers import RepConv
from detloom_plugins.repconv_flow import identities
from detloom_plugins.sharing import Sharing

__all__ = ["MergeRepConvPass", "merged_kernel", "own_channel"]

REMEDY = "it should have none (YOLOv7, section 4.2): plan-repconv rewrites it"


class MergeRepConvPass(ReparamPass):
    """Replace each RepConv, with or without identity, by one convolution and its activation.

    Works before and after norms were fused. Warns of an identity that should not be there.
    """

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every RepConv: what is added up, or why it stays."""
        sharing = Sharing(model)
        found = identities(model)
        plan = []
        for path, module in model.named_modules():
            if not isinstance(module, RepConv):
                continue
            objection = _objection(module, sharing)
            branches = "3x3 + 1x1" + (" + identity" if module.identity is not None else "")
            warning = f"its identity {found.repeated[path]}; {REMEDY}" if path in found.repeated else ""
            plan.append(
                Fold(
                    path,
                    applies=not objection,
                    reason=objection or f"{branches} into one 3x3",
                    warning=warning or found.unread.get(path, ""),
                )
            )
        return plan

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the convolution, which has a bias, and the activation."""
        if not isinstance(module, RepConv):
            raise PluginError(f"merge-repconv: {fold.path or 'the model'} is no RepConv")
        kernel, bias = merged_kernel(module)
        old = module.conv3
        # On the meta device nothing is drawn at random, only to be overwritten.
        conv = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            3,
            old.stride[0],
            1,
            groups=old.groups,
            device="meta",
            dtype=old.weight.dtype,
        )
        conv.weight = nn.Parameter(kernel.to(old.weight.dtype))
        conv.bias = nn.Parameter(bias.to(old.weight.dtype))
        return nn.Sequential(OrderedDict(conv=conv, act=module.act))


def merged_kernel(module: RepConv) -> tuple[Tensor, Tensor]:
    """Return kernel and bias, in float64, of the convolution that equals the sum of a RepConv's branches."""
    kernel, bias = fused_kernel(module.conv3, module.bn3)
    small, small_bias = fused_kernel(module.conv1, module.bn1)
    kernel = kernel + functional.pad(small, (1, 1, 1, 1))
    bias = bias + small_bias
    if module.identity is not None:
        scale_O, shift_O = scale_and_shift(module.identity)
        kernel = kernel + functional.pad(own_channel(module.conv3, scale_O), (1, 1, 1, 1))
        bias = bias + shift_O
    return kernel, bias


def own_channel(conv: nn.Conv2d, scale_O: Tensor) -> Tensor:
    """Return the 1x1 kernel that multiplies each channel by its scale, in the groups of a convolution."""
    inside = conv.in_channels // conv.groups
    place_O = torch.arange(conv.out_channels, device=scale_O.device) % inside
    return functional.one_hot(place_O, inside).to(scale_O.dtype).mul(scale_O[:, None])[:, :, None, None]


def _objection(module: RepConv, sharing: Sharing) -> str:
    if type(module) is not RepConv:
        return f"{type(module).__name__} may do more than a RepConv"
    for name, norm in (("bn3", module.bn3), ("bn1", module.bn1), ("identity", module.identity)):
        if isinstance(norm, _BatchNorm) and norm.running_mean is None:
            return f"{name} keeps no statistics, it uses those of each batch"
    return sharing.objection(module)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("merge-repconv", MergeRepConvPass)
