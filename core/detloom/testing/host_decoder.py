"""A decoder for a host without torch: it knows the words of ``detloom.decode_spec`` and nothing of any head.

Shape letters: H and W rows and columns, A priors of a cell, O outputs of a prior, R bins, P priors, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decoded"]

Array = NDArray[np.float32]


def decoded(spec: dict[str, Any], maps: Sequence[Array]) -> tuple[Array, Array]:
    """Return ``[P, 4]`` boxes and ``[P, C]`` scores of one image's maps, in the order of the priors.

    Raises:
        ValueError: The outputs do not fill the channels, or there are other levels than maps.
        KeyError: A word is none of the description's.
    """
    boxes, scores = [], []
    for level, raw in zip(spec["levels"], maps, strict=True):
        priors = np.array(level["priors"], np.float32)
        _, height, width = raw.shape
        raw_HWAO = raw.reshape(len(priors), -1, height, width).transpose(2, 3, 0, 1)
        ends = np.cumsum([output["channels"] for output in spec["outputs"]])
        if ends[-1] != raw_HWAO.shape[-1]:
            raise ValueError(f"outputs have {ends[-1]} channels, the map has {raw_HWAO.shape[-1]} of each prior")
        names = [output["name"] for output in spec["outputs"]]
        part = dict(zip(names, np.split(raw_HWAO, ends[:-1], axis=-1), strict=True))
        cell_HW12 = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)[:, :, None].astype(np.float32)
        box = FORMS[spec["box"]["form"]](spec["box"], part, cell_HW12, priors, level["stride"])
        boxes.append(box.reshape(-1, 4))
        factors = [_sigmoid(part[name]) for name in spec["score"]]
        scores.append(np.prod(np.broadcast_arrays(*factors), axis=0).reshape(-1, spec["num_classes"]))
    return np.concatenate(boxes), np.concatenate(scores)


def _sigmoid(t: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-t)), np.float32)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": _sigmoid, "exp": np.exp, "identity": np.asarray}


def _by_center_and_size(box: dict[str, Any], part: dict[str, Array], cell: Array, priors: Array, stride: int) -> Array:
    center, size = box["center"], box["size"]
    center_HWA2 = center["scale"] * ACTIVATIONS[center["activation"]](part["center"]) + center["shift"]
    center_HWA2 = (center_HWA2 + cell) * stride
    limited = part["size"] if size["limit"] is None else np.minimum(part["size"], size["limit"])
    unit = priors if size["unit"] == "prior" else stride
    size_HWA2 = (size["scale"] * ACTIVATIONS[size["activation"]](limited)) ** size["exponent"] * unit
    return np.concatenate((center_HWA2 - size_HWA2 / 2, center_HWA2 + size_HWA2 / 2), -1)


def _by_distances(box: dict[str, Any], part: dict[str, Array], cell: Array, priors: Array, stride: int) -> Array:
    del priors
    logits_HWA4R = part["distances"].reshape(*part["distances"].shape[:-1], 4, box["bins"])
    weights_HWA4R = np.exp(logits_HWA4R - logits_HWA4R.max(-1, keepdims=True))
    weights_HWA4R /= weights_HWA4R.sum(-1, keepdims=True)
    distances_HWA4 = (weights_HWA4R * np.arange(box["bins"], dtype=np.float32)).sum(-1) * stride
    center_HW12 = (cell + np.float32(0.5)) * stride
    return np.concatenate((center_HW12 - distances_HWA4[..., :2], center_HW12 + distances_HWA4[..., 2:]), -1)


FORMS = {"center-and-size": _by_center_and_size, "distances": _by_distances}
