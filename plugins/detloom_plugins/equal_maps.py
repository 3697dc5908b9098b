"""Whether an exported file gives the raw maps that the network gives.

Shape letters: B images, C channels, h and w rows and columns of a map.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from detloom.errors import ExportError
from detloom.export.network import Network

__all__ = ["demand_equality", "maps_of_module", "rounding_of_module", "worst_decibels"]

# A file may round in another order than torch does, and as often.
ROUNDINGS = 10


def worst_decibels(found: Sequence[NDArray[np.float32]], wanted: Sequence[NDArray[np.float32]]) -> float:
    """Return the least signal-to-noise ratio of the maps: the wanted one's power over that of the difference."""
    ratios = [
        np.square(its, dtype=np.float64).sum() / max(np.square(its - mine, dtype=np.float64).sum(), 1e-300)
        for mine, its in zip(found, wanted, strict=True)
    ]
    return float(10 * np.log10(max(min(ratios), 1e-30)))


def maps_of_module(network: Network, images_BCHW: torch.Tensor) -> list[NDArray[np.float32]]:
    """Return the network's own maps ``[B, C, h, w]``."""
    with torch.inference_mode():
        return [each.float().numpy() for each in network.module(images_BCHW)]


def rounding_of_module(network: Network, images_BCHW: torch.Tensor) -> list[float]:
    """Return for each map by how much torch itself, in float32, misses what it gives in float64, at most."""
    module = copy.deepcopy(network.module).double()
    with torch.inference_mode():
        exact = module(images_BCHW.double())
        return [float((ours - its).abs().max()) for ours, its in zip(network.module(images_BCHW), exact, strict=True)]


def demand_equality(
    found: Sequence[NDArray[np.float32]],
    wanted: Sequence[NDArray[np.float32]],
    names: Sequence[str],
    *,
    tolerance: float,
    rounding: Callable[[], Sequence[float]],
    where: str,
) -> str:
    """Return a sentence that states the largest difference of each map.

    Args:
        found: Of the file, in the order of the names.
        wanted: Of the network.
        names: Of the maps.
        tolerance: What a difference may be, over 1 + the largest magnitude of its map.
        rounding: By how much torch's own rounding shifts each map, asked for where the tolerance does not do: in
            networks of hundreds of layers it adds up.
        where: What ran the file, for the message.

    Raises:
        ExportError: A map has another shape, or differs by more.
    """
    said = []
    for place, (name, mine, its) in enumerate(zip(names, found, wanted, strict=True)):
        if mine.shape != its.shape:
            raise ExportError(
                f"{where}: the output '{name}' has the shape {list(mine.shape)}, the network's map {list(its.shape)}. "
                "Nothing was written. Export with other settings, or report it with the recipe."
            )
        largest = float(np.abs(mine - its).max())
        allowed = tolerance * (1 + float(np.abs(its).max()))
        if largest > allowed:
            allowed = max(allowed, ROUNDINGS * rounding()[place])
        # Written so that what is no number is refused.
        if not largest <= allowed:
            raise ExportError(
                f"{where}: the output '{name}' differs from the network's map by {largest:.3g}, and at most "
                f"{allowed:.3g} is rounding. Nothing was written. Export with numbers = 'float32' or another opset, or "
                "report it with the recipe."
            )
        said.append(f"{name} {largest:.2g}")
    return f"{where}: largest difference from torch on one seeded picture: {', '.join(said)}."
