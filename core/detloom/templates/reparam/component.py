"""Two 1x1 convolutions with nothing between them, as one.

The composition of two linear maps is one: ``W = W2 W1`` and ``b = W2 b1 + b2``.

Shape letters: O outputs, M outputs of the first convolution, I inputs.

Reference: Ding et al., Diverse branch block (2021), section 3.2, transform III.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from detloom import hookimpl
from detloom.errors import PluginError
from detloom.interfaces import Fold, ReparamPass

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(ReparamPass):
    """Merge neighbours in an ``nn.Sequential``."""

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return each pair of convolutions that are neighbours: merged, or why not."""
        folds: list[Fold] = []
        for path, module in model.named_modules():
            taken = ""
            for first, second in pairwise(module.named_children() if type(module) is nn.Sequential else ()):
                parts = (first[0], second[0])
                if taken == first[0] or not all(isinstance(part, nn.Conv2d) for _, part in (first, second)):
                    continue
                wide = [name for name, part in (first, second) if not _is_pointwise(part)]
                if wide:
                    reason = f"{' and '.join(wide)} not 1x1, or with stride, padding or groups"
                else:
                    reason, taken = "nothing lies between them", second[0]
                folds.append(Fold(path, applies=not wide, reason=reason, parts=parts))
        return folds

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the sequence with one convolution, and an identity in the place of the other."""
        first, second = (module.get_submodule(name) for name in fold.parts)
        if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)):
            raise PluginError(f"{fold.path}: {' and '.join(fold.parts)} are no convolutions")
        first_MI, second_OM = first.weight[:, :, 0, 0], second.weight[:, :, 0, 0]
        merged = nn.Conv2d(first.in_channels, second.out_channels, 1).to(first.weight)
        assert merged.bias is not None
        merged.weight.copy_((second_OM @ first_MI)[:, :, None, None])
        merged.bias.zero_()
        if first.bias is not None:
            merged.bias.add_(second_OM @ first.bias)
        if second.bias is not None:
            merged.bias.add_(second.bias)
        setattr(module, fold.parts[0], merged)
        setattr(module, fold.parts[1], nn.Identity())
        return module


def _is_pointwise(part: nn.Module) -> bool:
    return (
        type(part) is nn.Conv2d
        and part.kernel_size == part.stride == (1, 1)
        and part.padding == (0, 0)
        and part.groups == 1
    )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass under the name that recipes use."""
    register("new-component", NewComponent)
