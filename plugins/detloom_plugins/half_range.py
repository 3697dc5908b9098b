"""Whether a network's numbers fit float16, which ends at 65504.

A runtime need not show that they do not: on processors without float16 arithmetic onnxruntime computes in float32, and
the device alone gives infinities.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from detloom.errors import ExportError
from detloom.export.network import Network

__all__ = ["demand_half_range"]

LARGEST = float(torch.finfo(torch.float16).max)


def demand_half_range(network: Network) -> None:
    """Refuse a network whose weights, or whose maps of one seeded picture, float16 cannot hold.

    Raises:
        ExportError: Names the first module that leaves the range.
    """
    for name, tensor in network.module.state_dict().items():
        _demand(name, tensor)
    hooks = [
        module.register_forward_hook(partial(_look, path)) for path, module in network.module.named_modules() if path
    ]
    try:
        with torch.inference_mode():
            network.module(network.example_BCHW())
    finally:
        for hook in hooks:
            hook.remove()


def _look(path: str, module: nn.Module, inputs: object, outputs: object) -> None:
    """Refuse what a module returns where float16 cannot hold it."""
    del module, inputs
    for tensor in _tensors(outputs):
        _demand(path, tensor)


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list)):
        for each in outputs:
            yield from _tensors(each)


def _demand(where: str, tensor: Tensor) -> None:
    largest = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
    if not largest <= LARGEST:
        raise ExportError(
            f"{where}: float16 ends at {LARGEST:.0f}, and this reaches {largest:.4g}; a device would give infinities, "
            "even where a runtime here computes in float32 and hides it. Nothing was written. Export with numbers = "
            "'float32', or fold the network's norms first."
        )
