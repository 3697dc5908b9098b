"""Raw maps of a head, put together.

Shape letters: B images, A priors of a cell, O outputs of a prior, H and W rows and columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from detloom.decode_spec import DecodeSpec, maps_of

__all__ = ["whole_maps"]


def whole_maps(spec: DecodeSpec, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return one map ``[B, A * O, H, W]`` of each level, from maps of which each holds some of its outputs.

    Args:
        spec: What each map holds.
        maps: In the order of ``decode_spec.maps_of``.
    """
    channels = {output["name"]: output["channels"] for output in spec["outputs"]}
    parts: list[dict[str, Tensor]] = [{} for _ in spec["levels"]]
    for each, raw in zip(maps_of(spec), maps, strict=True):
        batch, _, height, width = raw.shape
        raw_BAOHW = raw.reshape(batch, len(spec["levels"][each["level"]]["priors"]), -1, height, width)
        split = torch.split(raw_BAOHW, [channels[name] for name in each["outputs"]], dim=2)
        parts[each["level"]].update(zip(each["outputs"], split, strict=True))
    return tuple(torch.cat([part[name] for name in channels], dim=2).flatten(1, 2) for part in parts)
