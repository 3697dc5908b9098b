"""What a host is told of a file whose input and outputs are real numbers."""

from typing import Literal

from detloom.data.letterbox import FILL
from detloom.export.network import Network
from detloom.host_spec import InputSpec, TensorSpec
from detloom_plugins.equal_maps import maps_of_module

__all__ = ["INPUT", "described_input", "described_outputs"]

INPUT = "images"
"""What files call their input."""


def described_input(network: Network, numbers: Literal["float32", "float16"] = "float32") -> InputSpec:
    """Return the input for a host."""
    height, width = network.image_size
    return InputSpec(
        name=INPUT, layout="NCHW", height=height, width=width, dtype=numbers, scale=None, zero_point=0, fill=FILL
    )


def described_outputs(network: Network, numbers: Literal["float32", "float16"] = "float32") -> tuple[TensorSpec, ...]:
    """Return the outputs for a host, in the order of the network's maps and by their names."""
    shapes = [list(each.shape) for each in maps_of_module(network, network.example_BCHW())]
    return tuple(
        TensorSpec(name=name, layout="NCHW", shape=shape, dtype=numbers, scale=None, zero_point=0)
        for name, shape in zip(network.map_names, shapes, strict=True)
    )
