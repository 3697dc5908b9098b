"""How true an exported form is to the network in float: noise and largest error of each raw map, and time on this CPU.

Shape letters: B images, H and W rows and columns, h and w of a map, C channels of a map.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.engine.predict import Forward
from detloom.errors import PluginError
from detloom.export.network import Network, Runner

__all__ = ["Fidelity", "decibels", "fidelities", "forward_of", "maps_on", "median_ms", "noise_share"]

BATCH = 8
WARM, MEASURED = 3, 15


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far one output is from that of the network in float.

    Attributes:
        output: Its name.
        sqnr_db: Signal over quantisation noise in decibels, over all pictures; infinite where it is the same.
        largest_error: Largest absolute difference.
        peak: Largest absolute value in float, which an error is to be seen against.
    """

    output: str
    sqnr_db: float
    largest_error: float
    peak: float


def forward_of(runner: Runner, network: Network, stage: str) -> Forward:
    """Return a runner as what makes raw maps of torch's pictures; checks what it returns."""
    names = network.map_names

    def forward(images_BCHW: Tensor) -> tuple[Tensor, ...]:
        # A runner that computes in torch is not to be surprised by tensors of inference.
        with torch.inference_mode(mode=False), torch.no_grad():
            found = runner(images_BCHW.contiguous().numpy())
        if len(found) != len(names):
            raise PluginError(
                f"the exporter's runner '{stage}' returned {len(found)} maps; the network has {len(names)}: "
                f"{', '.join(names)}"
            )
        return tuple(torch.from_numpy(each).float() for each in found)

    return forward


@torch.inference_mode()
def maps_on(forward: Callable[[Tensor], Sequence[Tensor]], images_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Return the raw maps of pictures, ``[B, C, h, w]`` each, computed in small batches."""
    parts = [forward(some) for some in torch.split(images_BCHW, BATCH)]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def fidelities(expected: Sequence[Tensor], found: Sequence[Tensor], names: Sequence[str]) -> tuple[Fidelity, ...]:
    """Return how true each output is.

    Raises:
        PluginError: An output has another shape.
    """
    result = []
    for name, ours, theirs in zip(names, expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise PluginError(
                f"the output '{name}' has the shape {list(theirs.shape)} where the network's has {list(ours.shape)}; "
                "a runner returns maps [B, C, h, w] in the order of the network's"
            )
        error = float((ours.double() - theirs.double()).abs().max())
        peak = float(ours.abs().max())
        result.append(Fidelity(name, decibels(noise_share(ours, theirs)), error, peak))
    return tuple(result)


def noise_share(expected: Tensor, found: Tensor) -> float:
    """Return the energy of the difference over that of the signal."""
    noise = float((expected.double() - found.double()).square().sum())
    signal = float(expected.double().square().sum())
    return noise / signal if signal else (math.inf if noise else 0.0)


def decibels(share: float) -> float:
    """Return signal over noise in decibels, of noise over signal."""
    return math.inf if share == 0 else -10 * math.log10(share)


@torch.inference_mode()
def median_ms(forward: Callable[[Tensor], object], images_BCHW: Tensor) -> float:
    """Return the median time of one picture in milliseconds, once warm: a figure of this machine at this moment."""
    image_1CHW = images_BCHW[:1]
    times = []
    for number in range(WARM + MEASURED):
        start = time.perf_counter()
        forward(image_1CHW)
        if number >= WARM:
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000
