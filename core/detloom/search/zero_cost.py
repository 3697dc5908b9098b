"""Zero-cost scores: what a network is worth, told from its drawn weights in a second or two.

They rank networks of one space; they are no AP, and between spaces they mean nothing.

Shape letters: B images, C channels, H and W rows and columns, N units, L pixels and channels of a map.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.export.network import RawMaps

__all__ = ["SCORERS", "naswot", "synflow"]

SIDE = 64
BATCH = 16


def synflow(detector: Detector) -> float:
    """Return the logarithm of the summed synaptic saliencies of a detector's raw maps.

    All parameters are made positive, the picture is one, and a parameter's saliency is itself times its gradient.
    Norms would make the sum meaningless, so theirs is left out; the logarithm is of a sum in float64.

    Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow (2020),
    arXiv:2006.05467, equation 1 and algorithm 1; as a score of architectures: Abdelfattah et al., Zero-cost proxies
    for lightweight NAS (2021), arXiv:2101.08134, section 3.

    Raises:
        RecipeError: The sum is beyond the numbers that there are, as in networks of hundreds of wide layers.
    """
    module = _without_norms(RawMaps(detector).double().eval())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    side = _side(detector)
    with torch.enable_grad():
        maps = module(torch.ones(1, 3, side, side, dtype=torch.float64))
        total = torch.stack([each.sum() for each in maps]).sum()
        parameters = [each for each in module.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    saliency = sum(
        float((each.detach() * gradient).sum())
        for each, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    )
    if not 0 < saliency < math.inf:
        raise RecipeError(
            f"synflow is {saliency} for this network, which no float64 can tell from others; use 'naswot' or train"
        )
    return math.log(saliency)


def naswot(detector: Detector) -> float:
    """Return the log-determinant of how alike the activation patterns of noise pictures are.

    A pattern is which inputs of the activations are above 0. Mellor et al., Neural architecture search without training
    (2021), arXiv:2006.04647, equations 1 and 2; here for all activations, not rectified ones alone.

    Raises:
        RecipeError: The network has no activations, or they are alike for all pictures.
    """
    side = _side(detector)
    images_BCHW = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    alike_BB = torch.zeros(BATCH, BATCH, dtype=torch.float64)

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        on_BL = (inputs[0].flatten(1) > 0).double()
        alike_BB.add_(on_BL @ on_BL.T + (1 - on_BL) @ (1 - on_BL).T)

    module = RawMaps(detector).train()
    hooks = [each.register_forward_pre_hook(note) for each in module.modules() if _is_activation(each)]
    try:
        # Dropped paths are drawn from the global generator, whose state is nobody's to move.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module(images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    score = float(torch.linalg.slogdet(alike_BB).logabsdet)
    if not math.isfinite(score):
        raise RecipeError(
            f"naswot is {score} for this network: its activations do not tell pictures apart; use 'synflow'"
        )
    return score


SCORERS: Mapping[str, Callable[[Detector], float]] = {"synflow": synflow, "naswot": naswot}


def _side(detector: Detector) -> int:
    return max(SIDE, detector.max_stride * 2)


def _is_activation(module: nn.Module) -> bool:
    is_one = type(module).__module__ in (nn.ReLU.__module__, "timm.layers.activations")
    return is_one and not isinstance(module, nn.MultiheadAttention)


def _unchanged(input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
    return input


def _without_norms(module: nn.Module) -> nn.Module:
    """Let the norms pass what they are given."""
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):  # noqa: SLF001 - the base of them all has no other name
            each.forward = _unchanged  # type: ignore[method-assign] # of this detector alone
            each.requires_grad_(requires_grad=False)
    return module
