"""Which layers suffer most from eight bits: each is rounded by itself, and the noise in the outputs is measured.

The layers that make most noise are the ones to keep in more bits. What is measured of each alone adds up only roughly,
because noise of several layers can cancel out or be clipped away, so that the ranking says more than the numbers.

Reference: Krishnamoorthi 2018, arXiv:1806.08342, section 3 (per-channel weights, per-tensor activations); the measure
is the ratio of signal to quantisation noise.

Shape letters: B images, H and W rows and columns.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detloom.errors import ExportError
from detloom.export.fake_quantisation import Range, Rounding, rounded_output, rounded_weight, roundings
from detloom.export.fidelity import decibels, maps_on, noise_share
from detloom.export.network import Network

__all__ = ["PICTURES", "Sensitivity", "most_sensitive", "sensitivities"]

PICTURES = 4
"""Pictures that each layer is measured on; a ranking needs few."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What becomes of the outputs when one layer alone has eight bits.

    Attributes:
        module: Path of the layer.
        sqnr_db: Signal over noise, the mean noise share of all outputs, in decibels: the lower, the more sensitive.
    """

    module: str
    sqnr_db: float


def sensitivities(network: Network, images_BCHW: Tensor) -> tuple[Sensitivity, ...]:
    """Return the layers of a network, the most sensitive first.

    Weights and output of each convolution or linear layer are rounded at a time, on the first of some pictures.

    Args:
        network: Left as it is.
        images_BCHW: RGB in [0, 1].
    """
    model, images_BCHW = copy.deepcopy(network.module), images_BCHW[:PICTURES]
    places = [each for each in roundings(model, images_BCHW[:1]) if each.product]
    ranges = _ranges(model, places, images_BCHW)
    expected = maps_on(model, images_BCHW)
    result = []
    for place in places:
        found = _with_one_rounded(model, place, ranges[place], images_BCHW)
        shares = [noise_share(ours, theirs) for ours, theirs in zip(expected, found, strict=True)]
        result.append(Sensitivity(place.product, decibels(sum(shares) / len(shares))))
    return tuple(sorted(result, key=lambda each: each.sqnr_db))


def most_sensitive(ranking: tuple[Sensitivity, ...], count: int) -> tuple[str, ...]:
    """Return the paths of the most sensitive layers.

    Raises:
        ExportError: There are not so many.
    """
    if count > len(ranking):
        raise ExportError(f"--mixed {count}: the network has {len(ranking)} layers with weights; ask for fewer")
    return tuple(each.module for each in ranking[:count])


def _ranges(model: nn.Module, places: list[Rounding], images_BCHW: Tensor) -> dict[Rounding, Range]:
    ranges = {place: Range() for place in places}
    handles = [
        model.get_submodule(place.output).register_forward_hook(lambda _, __, output, seen=seen: seen.see_(output))
        for place, seen in ranges.items()
    ]
    try:
        maps_on(model, images_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


@torch.no_grad()
def _with_one_rounded(model: nn.Module, place: Rounding, seen: Range, images_BCHW: Tensor) -> tuple[Tensor, ...]:
    product = model.get_submodule(place.product)
    weight = product.weight
    assert isinstance(weight, nn.Parameter)  # noqa: S101 - narrows the type: convolutions and linear layers have one
    before = weight.clone()
    handle = model.get_submodule(place.output).register_forward_hook(rounded_output(seen.grid))
    try:
        weight.copy_(rounded_weight(weight, product))
        return maps_on(model, images_BCHW)
    finally:
        weight.copy_(before)
        handle.remove()
