# SPDX-License-Identifier: Apache-2.0
"""From the raw outputs of an exported network to boxes, on numpy alone: one file, to be copied to a device.

    decoder = Decoder.read("NAME.host.json")
    tensor, fit = decoder.prepare(picture)                    # RGB, uint8 [H, W, 3]
    outputs = ...                                             # what the file makes of the tensor
    for box, score, label in zip(*decoder.detect(outputs, fit)):
        print(decoder.names[label], score, box)               # x1, y1, x2, y2 in pixels of the picture

As a program, ``python NAME_decoder.py NAME.host.json outputs.npz --picture HEIGHT WIDTH`` prints what is found. The
words of the description are explained in ``detloom.decode_spec`` and ``detloom.host_spec``. Python 3.8 will do.

Shape letters: H and W rows and columns of a picture, h and w of a map, O outputs, A priors of a cell, P priors of all
levels, R those that score enough, C classes, R bins where a letter follows 4, N boxes found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Columns = dict[str, Array]
    Found = tuple[Array, Array, NDArray[np.int64]]
    Outputs = Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]

__all__ = ["Decoder", "Fit", "decoded"]

# Classes lie this many pixels apart in the suppression, or more for larger pictures; in float32 where that rounds boxes
# by less than 1/32 pixel. Both are as in detloom, so that overlaps at the limit fall on the same side.
SPACING = 4096.0
MOST_CLASSES_IN_FLOAT32 = 128

# Logits are compared with a limit a little lower, and scores exactly afterwards.
MARGIN = 1e-5


class Fit:
    """Where a picture lies on the input: as large as it goes, in the middle.

    Args:
        picture_size: Height and width of the picture.
        input_size: Height and width of the input.

    Attributes:
        ratio: Pixels of the input per pixel of the picture.
        rows: Height of the picture on the input.
        columns: Its width there.
        top: Row of its first pixel; an odd row of the rest is below.
        left: Column of its first pixel.
    """

    def __init__(self, picture_size: tuple[int, int], input_size: tuple[int, int]) -> None:
        self.picture_size = picture_size
        self.ratio = min(input_size[0] / picture_size[0], input_size[1] / picture_size[1])
        self.rows, self.columns = (max(round(side * self.ratio), 1) for side in picture_size)
        self.top, self.left = (input_size[0] - self.rows) // 2, (input_size[1] - self.columns) // 2
        # Boxes are mapped by what is not rounded.
        y, x = ((wide - side * self.ratio) / 2 for wide, side in zip(input_size, picture_size))
        self.offset_4 = np.array([x, y, x, y], np.float32)

    def to_picture(self, boxes_N4: Array) -> Array:
        """Return boxes in pixels of the picture, clipped to it."""
        height, width = self.picture_size
        boxes_N4 = (boxes_N4 - self.offset_4) / np.float32(self.ratio)
        return np.asarray(boxes_N4.clip(0, np.array([width, height] * 2, np.float32)))


class Decoder:
    """What a description says, done.

    Attributes:
        names: Class names by index.
        selection: Which boxes are kept; set ``score``, ``overlap``, ``max_detections``, ``candidates`` or ``agnostic``.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        if spec.get("format") != 1:
            raise ValueError(f"the description has format {spec.get('format')!r}, and this decoder reads 1")
        self.names: list[str] = list(spec["names"])
        self.selection: dict[str, Any] = dict(spec["selection"])
        self._input, self._tensors, self._decode = spec["input"], spec["tensors"], spec["decode"]

    @classmethod
    def read(cls, path: str) -> Decoder:
        """Return the decoder of a ``NAME.host.json``."""
        with open(path, encoding="utf-8") as file:
            return cls(json.load(file))

    def fit(self, height: int, width: int) -> Fit:
        """Return where a picture of a size lies on the input."""
        return Fit((height, width), (self._input["height"], self._input["width"]))

    def prepare(self, picture_HW3: NDArray[np.uint8]) -> tuple[NDArray[Any], Fit]:
        """Return the input of an RGB picture, with a batch of one, and where the picture lies on it.

        A pixel may differ by 1 of 255 from what detloom itself makes of a picture that must be scaled.
        """
        if picture_HW3.dtype != np.uint8 or picture_HW3.ndim != 3 or picture_HW3.shape[2] != 3:
            raise ValueError(f"a picture is uint8 [H, W, 3], RGB; got {picture_HW3.dtype} {list(picture_HW3.shape)}")
        fit = self.fit(*picture_HW3.shape[:2])
        canvas_HW3 = np.full((self._input["height"], self._input["width"], 3), self._input["fill"], np.uint8)
        scaled = _resized(_resized(picture_HW3.astype(np.float64), fit.rows, 0), fit.columns, 1)
        canvas_HW3[fit.top : fit.top + fit.rows, fit.left : fit.left + fit.columns] = np.rint(scaled)
        return self.quantised(canvas_HW3), fit

    def quantised(self, canvas_HW3: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the input, with a batch of one, of an RGB picture that has its size: the exact way."""
        real = np.arange(256, dtype=np.float32) / np.float32(255)
        values = real.astype(self._input["dtype"])
        if self._input["scale"] is not None:
            limits = np.iinfo(self._input["dtype"])
            q = np.rint(real / np.float64(self._input["scale"])) + self._input["zero_point"]
            values = np.clip(q, limits.min, limits.max).astype(self._input["dtype"])
        tensor = values[canvas_HW3][None]
        return tensor if self._input["layout"] == "NHWC" else np.ascontiguousarray(tensor.transpose(0, 3, 1, 2))

    def detect(self, outputs: Outputs, fit: Fit | None = None, *, image: int = 0) -> Found:
        """Return boxes ``[N, 4]``, scores and labels, best first.

        Args:
            outputs: Of the file, by name, or in the order of the description's ``tensors``, with the batch; as the file
                has them, not made real.
            fit: Where the picture lies; without it, boxes are in pixels of the input and not clipped.
            image: Index into the batch.
        """
        columns = _columns(self._decode, self.maps(outputs, image=image))
        boxes_N4, scores_N, labels_N = _selected(self._decode, columns, self.selection)
        if fit is None:
            return boxes_N4, scores_N, labels_N
        boxes_N4 = fit.to_picture(boxes_N4)
        is_inside_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)
        return boxes_N4[is_inside_N], scores_N[is_inside_N], labels_N[is_inside_N]

    def maps(self, outputs: Outputs, *, image: int = 0) -> list[Array]:
        """Return the maps ``[O, h, w]`` of one image in real numbers, in the order of the description."""
        names = [tensor["name"] for tensor in self._tensors]
        if isinstance(outputs, Mapping):
            absent = [name for name in names if name not in outputs]
            if absent:
                raise ValueError(f"outputs are missing: {', '.join(absent)}; given are: {', '.join(outputs)}")
            outputs = [outputs[name] for name in names]
        if len(outputs) != len(names):
            raise ValueError(f"{len(outputs)} outputs given, {len(names)} expected, in this order: {', '.join(names)}")
        return [_real(tensor, q, image) for tensor, q in zip(self._tensors, outputs)]


def decoded(decode: Mapping[str, Any], maps: Sequence[Array]) -> tuple[Array, Array]:
    """Return ``[P, 4]`` boxes and ``[P, C]`` scores of the real maps ``[O, h, w]`` of one image, in the priors' order.

    Raises:
        ValueError: The maps are not those of the description.
        KeyError: A word is none of the description's.
    """
    columns = _columns(decode, maps)
    scores_PC = np.ones((len(columns["cell"]), decode["num_classes"]), np.float32)
    for name in decode["score"]:
        scores_PC *= _sigmoid(columns[name])
    return _boxes(decode, columns), scores_PC


def _resized(values: NDArray[np.float64], size: int, axis: int) -> NDArray[np.float64]:
    """Return values at another size along an axis: averaged over areas where it shrinks, else interpolated."""
    old = values.shape[axis]
    if size == old:
        return values
    shape = [1] * values.ndim
    shape[axis] = -1
    if size > old:
        place = np.clip((np.arange(size) + 0.5) * (old / size) - 0.5, 0, old - 1)
        before = np.minimum(place.astype(int), old - 1)
        share = (place - before).reshape(shape)
        after = np.minimum(before + 1, old - 1)
        return np.asarray(values.take(before, axis) * (1 - share) + values.take(after, axis) * share)
    # An area is the difference of two sums from the start; the part of a pixel that an edge cuts off is added.
    edges = np.arange(size + 1) * (old / size)
    whole = np.minimum(edges.astype(int), old - 1)
    sums = np.cumsum(values, axis)
    upto = sums.take(whole, axis) + values.take(whole, axis) * (edges - whole - 1).reshape(shape)
    return np.asarray(np.diff(upto, axis=axis) * (size / old))


def _real(tensor: Mapping[str, Any], q: NDArray[Any], image: int) -> Array:
    """Return the map ``[O, h, w]`` of an output in real numbers."""
    if str(q.dtype) != tensor["dtype"] or list(q.shape[1:]) != tensor["shape"][1:]:
        raise ValueError(
            f"output {tensor['name']} is {q.dtype} {list(q.shape)}; the description has {tensor['dtype']} "
            f"{tensor['shape']}, with any batch. Give outputs as the file has them, not made real."
        )
    real = q[image].astype(np.float32)
    if tensor["scale"] is not None:
        real = (real - np.float32(tensor["zero_point"])) * np.float32(tensor["scale"])
    return np.asarray(real.transpose(2, 0, 1) if tensor["layout"] == "NHWC" else real)


def _columns(decode: Mapping[str, Any], maps: Sequence[Array]) -> Columns:
    """Return each output of all priors, ``[P, O]``, by name; with them ``cell``, ``prior`` and ``stride``."""
    channels = {output["name"]: output["channels"] for output in decode["outputs"]}
    held = decode.get("maps") or [{"level": level, "outputs": list(channels)} for level in range(len(decode["levels"]))]
    if len(maps) != len(held):
        raise ValueError(f"{len(maps)} maps given, the description has {len(held)}")
    levels: list[Columns] = [{} for _ in decode["levels"]]
    for each, raw in zip(held, maps):
        level, columns = decode["levels"][each["level"]], levels[each["level"]]
        priors, (height, width) = np.array(level["priors"], np.float32), raw.shape[1:]
        ends = np.cumsum([channels[name] for name in each["outputs"]])
        if ends[-1] * len(priors) != len(raw):
            raise ValueError(f"outputs have {ends[-1]} channels of {len(priors)} priors, the map has {len(raw)}")
        rows_PO = raw.reshape(len(priors), -1, height, width).transpose(2, 3, 0, 1).reshape(-1, ends[-1])
        columns.update(zip(each["outputs"], np.split(rows_PO, ends[:-1], axis=1)))
        row, column, prior = np.indices((height, width, len(priors))).reshape(3, -1)
        columns["cell"] = np.stack((column, row), 1).astype(np.float32)
        columns["prior"] = priors[prior]
        columns["stride"] = np.full((len(prior), 1), level["stride"], np.float32)
    # In one order of memory, for sums not to depend on the layout.
    return {name: np.ascontiguousarray(np.concatenate([level[name] for level in levels])) for name in levels[0]}


def _boxes(decode: Mapping[str, Any], columns: Columns) -> Array:
    """Return boxes ``[P, 4]`` of the priors that the columns are of."""
    decode_box = {"center-and-size": _by_center, "distances": _by_distances}[decode["box"]["form"]]
    return decode_box(decode["box"], columns)


def _by_center(box: Mapping[str, Any], columns: Columns) -> Array:
    center, size = box["center"], box["size"]
    center_P2 = center["scale"] * ACTIVATIONS[center["activation"]](columns["center"]) + center["shift"]
    center_P2 = (center_P2 + columns["cell"]) * columns["stride"]
    limited_P2 = columns["size"] if size["limit"] is None else np.minimum(columns["size"], size["limit"])
    size_P2 = (size["scale"] * ACTIVATIONS[size["activation"]](limited_P2)) ** size["exponent"] * columns[size["unit"]]
    return np.concatenate((center_P2 - size_P2 / 2, center_P2 + size_P2 / 2), 1)


def _by_distances(box: Mapping[str, Any], columns: Columns) -> Array:
    logits_P4R = columns["distances"].reshape(-1, 4, box["bins"])
    weights_P4R = np.exp(logits_P4R - logits_P4R.max(2, keepdims=True))
    weights_P4R /= weights_P4R.sum(2, keepdims=True)
    distances_P4 = (weights_P4R * np.arange(box["bins"], dtype=np.float32)).sum(2) * columns["stride"]
    center_P2 = (columns["cell"] + np.float32(0.5)) * columns["stride"]
    return np.concatenate((center_P2 - distances_P4[:, :2], center_P2 + distances_P4[:, 2:]), 1)


def _sigmoid(t: Array) -> Array:
    # exp(88) is about the largest number of float32.
    return np.asarray(1 / (1 + np.exp(np.minimum(-t, np.float32(88)))), np.float32)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": _sigmoid, "exp": np.exp, "identity": np.asarray}


def _selected(decode: Mapping[str, Any], columns: Columns, selection: Mapping[str, Any]) -> Found:
    """Return boxes, scores and labels of the priors that are kept, best first."""
    floor = selection["score"] * (1 - MARGIN)
    # No prior scores above the least of its factors: most leave here, before anything is decoded.
    best_PF = np.stack([columns[name].max(1) for name in decode["score"]], 1)
    likely_R = np.flatnonzero(best_PF.min(1) > (math.log(floor / (1 - floor)) if floor > 0 else -math.inf))
    columns = {name: column[likely_R] for name, column in columns.items()}
    scores_R = _sigmoid(best_PF[likely_R]).prod(1)
    labels_R = columns["classes"].argmax(1) if "classes" in decode["score"] else np.zeros(len(likely_R), np.int64)
    with np.errstate(over="ignore", invalid="ignore"):
        boxes_R4 = _boxes(decode, columns)
        is_wanted_R = (scores_R > np.float32(selection["score"])) & np.isfinite(boxes_R4.sum(1))
    boxes_R4, scores_R, labels_R = boxes_R4[is_wanted_R], scores_R[is_wanted_R], labels_R[is_wanted_R]
    # Of equal scores the first prior is the better.
    order_R = np.argsort(-scores_R, kind="stable")
    if decode["suppression"]:
        apart_R4 = boxes_R4 if selection["agnostic"] else _apart(boxes_R4, labels_R, decode["num_classes"])
        order_R = _suppressed(apart_R4.astype(np.float64), order_R[: selection["candidates"]], selection)
    kept_N = order_R[: selection["max_detections"]]
    return boxes_R4[kept_N], scores_R[kept_N], labels_R[kept_N]


def _apart(boxes_R4: Array, labels_R: NDArray[np.int64], num_classes: int) -> NDArray[Any]:
    """Return the boxes moved so that those of different classes cannot overlap."""
    wide = np.dtype(np.float32 if num_classes <= MOST_CLASSES_IN_FLOAT32 else np.float64)
    extent = np.ptp(boxes_R4) + np.float32(1) if len(boxes_R4) else 0
    moves_R = labels_R.astype(wide) * np.asarray(max(extent, SPACING), wide)
    return np.asarray(boxes_R4 + moves_R[:, None])


def _suppressed(
    boxes_R4: NDArray[np.float64], order_R: NDArray[np.int64], selection: Mapping[str, Any]
) -> NDArray[np.int64]:
    """Return those of an order, best first, that overlap no better one that is kept."""
    low_R2, high_R2 = boxes_R4[:, :2], boxes_R4[:, 2:]
    areas_R = (high_R2 - low_R2).prod(1)
    kept: list[int] = []
    while len(order_R) and len(kept) < selection["max_detections"]:
        best, order_R = int(order_R[0]), order_R[1:]
        kept.append(best)
        sides_R2 = np.minimum(high_R2[best], high_R2[order_R]) - np.maximum(low_R2[best], low_R2[order_R])
        common_R = np.maximum(sides_R2, 0).prod(1)
        # Two boxes without extent overlap by 0/0, which is above no limit.
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap_R = common_R / (areas_R[best] + areas_R[order_R] - common_R)
        order_R = order_R[~(overlap_R > selection["overlap"])]
    return np.array(kept, np.int64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is found in one picture's outputs, a line of JSON for each box."""
    parser = argparse.ArgumentParser(description="Turn the raw outputs of an exported network into boxes.")
    parser.add_argument("description", metavar="NAME.host.json")
    parser.add_argument("outputs", metavar="outputs.npz", help="arrays by the names of the file's outputs")
    parser.add_argument("--picture", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size of the picture")
    parser.add_argument("--score", type=float, help="least score, from 0 to 1")
    given = parser.parse_args(arguments)
    try:
        decoder = Decoder.read(given.description)
        if given.score is not None:
            decoder.selection["score"] = given.score
        fit = decoder.fit(*given.picture) if given.picture else None
        with np.load(given.outputs, allow_pickle=False) as outputs:
            found = decoder.detect(dict(outputs), fit)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for box, score, label in zip(*found):
        row = {"class": decoder.names[label], "label": int(label), "score": round(float(score), 5)}
        print(json.dumps({**row, "box": [round(float(edge), 3) for edge in box]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
