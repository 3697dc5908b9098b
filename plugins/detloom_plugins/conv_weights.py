"""A convolution like another, with other weights.

Shape letters: I and O channels in and out, H and W rows and columns of the kernel.
"""

from torch import Tensor, nn

__all__ = ["with_weights"]


def with_weights(conv: nn.Conv2d, weight_OIHW: Tensor, bias_O: Tensor | None, *, times: int = 1) -> nn.Conv2d:
    """Return a convolution with these weights, which moves and pads as another does, or so many times as far."""
    outputs, inputs, height, width = weight_OIHW.shape
    rows, columns = conv.stride
    made = nn.Conv2d(
        inputs * conv.groups,
        outputs,
        (height, width),
        (rows * times, columns * times),
        _padding(conv, times),
        (conv.dilation[0], conv.dilation[1]),
        conv.groups,
        bias=bias_O is not None,
        padding_mode=conv.padding_mode,
        # Nothing is drawn at random, only to be overwritten.
        device="meta",
        dtype=weight_OIHW.dtype,
    )
    made.weight = nn.Parameter(weight_OIHW)
    made.bias = None if bias_O is None else nn.Parameter(bias_O)
    return made


def _padding(conv: nn.Conv2d, times: int) -> str | tuple[int, int]:
    if isinstance(conv.padding, str):
        return conv.padding
    rows, columns = conv.padding
    return rows * times, columns * times
