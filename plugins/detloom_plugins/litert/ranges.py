"""Which numbers the values of a graph hold on calibration pictures.

Pictures are looked at a few at a time and nothing of them is kept, however many there are: extremes take one pass,
percentiles a second one, in which a histogram of each value is filled between its extremes.

References: Jacob et al. 2018, arXiv:1712.05877, section 3; for percentiles Wu et al. 2020, arXiv:2004.09602, section 5.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from detloom.errors import ExportError
from detloom_plugins.litert.graph import Graph
from detloom_plugins.litert.scales import Range

__all__ = ["Calibration", "observe"]

Calibration = Literal["auto", "min-max", "percentile"]

BINS = 4096
# Of all pictures that are computed at once, so that large inputs take no more memory than small ones.
PIXELS = 4 * 320 * 320
# Without a percentile, as the widest.
EVERYTHING = 100.0
# Long tails, as those before SiLU, are cut; more than this would cut off what is rare because it is an object.
TRIED = (EVERYTHING, 99.999)


def observe(
    graph: Graph, pictures_NCHW: Tensor, *, calibration: Calibration, percentile: float
) -> dict[float, dict[str, Range]]:
    """Return the range of each value, by the percentile that it is; 100 for the extremes.

    The outputs keep their extremes whatever is chosen: the largest numbers there are the objects that were found.

    Args:
        graph: What is to be written.
        pictures_NCHW: RGB in [0, 1].
        calibration: ``min-max`` for the extremes, ``percentile`` to leave out what is rarest, ``auto`` for several
            ranges, of which the best is to be found out.
        percentile: How many of a hundred numbers are kept, the others being divided equally among both ends.

    Raises:
        ExportError: A value is not finite.
    """
    wanted = {"auto": TRIED, "min-max": (EVERYTHING,), "percentile": (percentile,)}[calibration]
    extremes = _extremes(graph, pictures_NCHW)
    if wanted == (EVERYTHING,):
        return {EVERYTHING: extremes}
    histograms = _histograms(graph, pictures_NCHW, extremes)
    outputs = {name: extremes[name] for name in graph.outputs}
    return {
        each: {name: _kept(counts, extremes[name], each) for name, counts in histograms.items()} | outputs
        for each in wanted
    }


def _batches(pictures_NCHW: Tensor) -> Iterator[Tensor]:
    size = max(1, PIXELS // pictures_NCHW.shape[2:].numel())
    yield from torch.split(pictures_NCHW, size)


def _extremes(graph: Graph, pictures_NCHW: Tensor) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for batch in _batches(pictures_NCHW):
        for name, value in graph.values(batch):
            low, high = (float(each) for each in value.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                path = graph.nodes[name].path if name in graph.nodes else ""
                raise ExportError(
                    f"{path or 'the detector'}: its numbers on the calibration pictures reach from {low} to {high}; "
                    "8 bits need finite ones. Export weights that training has not ruined, as best.safetensors"
                )
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]))
    return found


def _histograms(graph: Graph, pictures_NCHW: Tensor, extremes: Mapping[str, Range]) -> dict[str, Tensor]:
    counts: dict[str, Tensor] = {}
    for batch in _batches(pictures_NCHW):
        for name, value in graph.values(batch):
            low, high = extremes[name]
            new = torch.histc(value, BINS, low, high).double()
            counts[name] = counts[name] + new if name in counts else new
    return counts


def _kept(counts: Tensor, extremes: Range, percentile: float) -> Range:
    """Return the range between which a percentage of the counted numbers lies."""
    if percentile == EVERYTHING:
        return extremes
    low, high = extremes
    total = counts.cumsum(0)
    tail = float(total[-1]) * (100 - percentile) / 200
    first = int((total <= tail).sum())
    last = int((total < float(total[-1]) - tail).sum())
    width = (high - low) / BINS
    return low + first * width, low + (last + 1) * width
