"""Cross-layer equalisation: channels of a convolution as wide as those that the next one makes of them.

A factor ``1 / s`` on a channel of one convolution, and ``s`` on the weights that read it, changes nothing where all
that lies between is positively homogeneous. With ``r1`` the largest weight that makes a channel and ``r2`` the largest
that reads it, ``s = sqrt(r1 / r2)`` makes both ``sqrt(r1 r2)``. A quantiser that has one scale for a whole tensor then
loses no channel for another's sake.

Shape letters: I and O channels in and out.

Reference: Nagel et al., Data-free quantization through weight equalization and bias correction (2019),
arXiv:1906.04721, section 4.1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloom.errors import PluginError, RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.scaled_flow import Link, scaled_flow

__all__ = ["EqualisePass", "factors"]

# A plan sees no numbers on the meta device, so that what was equalised is known by a mark.
_MARK = "is_equalised"


class EqualisePass(ReparamPass):
    """Equalise the ranges of channels across convolutions, for a quantiser; outputs stay equal up to rounding.

    Norms must have been fused before. Channels that go through SiLU, a sum or another function that keeps no factor
    stay as they are; the plan says so of each convolution.

    Args:
        rounds: How often all convolutions are gone through; each changes the ranges of its neighbours.
    """

    def __init__(self, *, rounds: int = 5) -> None:
        if rounds < 1:
            raise RecipeError(f"equalise: rounds must be at least 1, got {rounds}")
        self.rounds = rounds

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return the model, if there are convolutions to equalise, and each that stays, with the reason."""
        flow = scaled_flow(model)
        refused = [Fold(path, applies=False, reason=reason) for path, reason in flow.refused.items()]
        if all(hasattr(model.get_submodule(path), _MARK) for path in flow.links):
            return [*(Fold(path, applies=False, reason="it is equalised") for path in flow.links), *refused]
        parts = dict.fromkeys((*flow.links, *(link.reader for links in flow.links.values() for link in links)))
        count = len(flow.links) + len(refused)
        reason = f"the channels of {len(flow.links)} of {count} convolutions with those that read them"
        return [Fold("", applies=True, reason=reason, parts=tuple(parts)), *refused]

    @torch.no_grad()
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the model with other weights and biases."""
        convs = {path: conv for path in fold.parts if isinstance(conv := module.get_submodule(path), nn.Conv2d)}
        links = scaled_flow(module).links
        if not links or not set(links) <= set(convs):
            raise PluginError("equalise: the model is not the one that was planned; plan it again")
        kinds = {path: conv.weight.dtype for path, conv in convs.items()}
        for conv in convs.values():
            # Rounding once, not in each round.
            conv.double()
        for _ in range(self.rounds):
            for path, readers in links.items():
                _scale_(convs, path, readers)
        for path, conv in convs.items():
            conv.to(kinds[path])
        for path in links:
            setattr(convs[path], _MARK, True)
        return module


def factors(made_O: Tensor, read_O: Tensor) -> Tensor:
    """Return what each channel is to be divided by, so that both ranges become their geometric mean.

    A channel that nothing makes, or nothing reads, keeps its weights.
    """
    is_used_O = (made_O > 0) & (read_O > 0)
    return torch.where(is_used_O, made_O / read_O, torch.ones_like(made_O)).sqrt()


def _scale_(convs: Mapping[str, nn.Conv2d], path: str, readers: Sequence[Link]) -> None:
    conv = convs[path]
    made_O = conv.weight.abs().amax(dim=(1, 2, 3))
    count = conv.out_channels
    ranges = [_read_ranges(convs[link.reader])[link.start : link.start + count] for link in readers]
    factor_O = factors(made_O, torch.stack(ranges).amax(dim=0))
    conv.weight /= factor_O[:, None, None, None]
    if conv.bias is not None:
        conv.bias /= factor_O
    for link in readers:
        reader = convs[link.reader]
        factor_I = torch.ones(reader.in_channels, dtype=factor_O.dtype, device=factor_O.device)
        factor_I[link.start : link.start + count] = factor_O
        # Each group reads inputs of its own.
        _grouped(reader).mul_(factor_I.view(reader.groups, 1, -1, 1, 1))


def _read_ranges(reader: nn.Conv2d) -> Tensor:
    """Return the largest weight of a convolution on each of its inputs."""
    return _grouped(reader).abs().amax(dim=(1, 3, 4)).flatten()


def _grouped(conv: nn.Conv2d) -> Tensor:
    """Return a view of the weights, ``[groups, O / groups, I / groups, ...]``."""
    return conv.weight.view(conv.groups, -1, *conv.weight.shape[1:])


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("equalise", EqualisePass)
