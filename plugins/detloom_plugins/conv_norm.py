"""A convolution and the batch norm after it as one convolution.

With scale ``t = gamma / sqrt(variance + eps)``: ``W' = t W``, ``b' = beta + t (b - mean)``, all in float64.

Shape letters: O output channels.

Reference: Ioffe and Szegedy, Batch normalization (2015), section 3.1; Jacob et al., Quantization and training of
neural networks (2018), section 3.2, for the folded form.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from detloom.errors import PluginError

__all__ = ["fused_kernel", "scale_and_shift"]


def fused_kernel(conv: _ConvNd, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of the convolution that equals both; an identity stands for a norm fused before."""
    weight = conv.weight.double()
    bias_O = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.double()
    if isinstance(norm, nn.Identity):
        return weight, bias_O
    scale_O, shift_O = scale_and_shift(norm)
    if isinstance(conv, _ConvTransposeNd):
        # [in, out / groups, ...]: the groups lie along the inputs.
        grouped = weight.view(conv.groups, -1, *weight.shape[1:])
        per_output = scale_O.view(conv.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (grouped * per_output).flatten(0, 1), bias_O * scale_O + shift_O
    return weight * scale_O.view(-1, *[1] * (weight.dim() - 1)), bias_O * scale_O + shift_O


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return what a batch norm multiplies each channel by, and adds."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise PluginError(f"a {type(norm).__name__} is no batch norm with running statistics, it cannot be fused")
    scale_O = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_O = scale_O * norm.weight.double()
    shift_O = -norm.running_mean.double() * scale_O
    return scale_O, shift_O if norm.bias is None else shift_O + norm.bias.double()
