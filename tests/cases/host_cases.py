"""What tests of host decoders are given: each head, descriptions of its files, and random outputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec, OutputName, maps_of
from detloom.engine.settings import PredictSettings
from detloom.export.describing import described
from detloom.export.network import Exported, Network
from detloom.host.decoder import Decoder, decoded
from detloom.host_spec import HostSpec, Layout, NumberType, TensorSpec
from detloom.interfaces import Head
from detloom.ops.nms import suppress
from detloom.structures import FeatureSpec, Predictions, Priors
from detloom_plugins.anchor_head import AnchorHead
from detloom_plugins.decoupled_head import DecoupledHead
from detloom_plugins.distribution_head import DistributionHead
from detloom_plugins.one_to_one_head import OneToOneHead

__all__ = [
    "HEADS",
    "INPUT",
    "LEVELS",
    "NUMBERS",
    "SMALL",
    "borderline",
    "description",
    "host",
    "outputs",
    "random_maps",
    "small_outputs",
    "split",
]

INPUT = (64, 96)
LEVELS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))
HEADS: Mapping[str, Callable[[], Head]] = {
    "anchor": lambda: AnchorHead(LEVELS, 3, implicit=False),
    "anchor of one class": lambda: AnchorHead(LEVELS, 1, implicit=False),
    "anchor without objectness": lambda: AnchorHead(LEVELS, 3, implicit=False, objectness=False),
    "anchor-free": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1),
    "anchor-free without objectness": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1, objectness=False),
    "distribution": lambda: DistributionHead(LEVELS, 3, width=8),
    "distribution of few bins": lambda: DistributionHead(LEVELS, 1, width=8, bins=5, prior_scale=2.0),
    "one-to-one": lambda: OneToOneHead(LEVELS, 3, width=8),
}

NUMBERS: Mapping[NumberType, tuple[float | None, int]] = {
    "int8": (0.08, -3),
    "uint8": (0.08, 131),
    "int16": (0.001, 17),
    "float16": (None, 0),
    "float32": (None, 0),
}
"""Types of outputs, with a scale and a zero point under which logits from -9 to 9 fit into each."""


SMALL: DecodeSpec = {
    "num_classes": 3,
    "levels": [{"stride": 8, "priors": [[8.0, 8.0]]}],
    "outputs": [
        {"name": "center", "channels": 2},
        {"name": "size", "channels": 2},
        {"name": "classes", "channels": 3},
    ],
    "box": {
        "form": "center-and-size",
        "center": {"activation": "identity", "scale": 1.0, "shift": 0.0},
        "size": {"activation": "exp", "limit": 8.0, "scale": 1.0, "exponent": 1.0, "unit": "stride"},
    },
    "score": ["classes"],
    "suppression": True,
}
"""One level, a prior of 8 pixels in each cell, so that tests can place boxes by hand."""


def split(decode: DecodeSpec) -> DecodeSpec:
    """Return the description of a file that has each output in a map of its own, the coarsest level first."""
    names: list[OutputName] = [output["name"] for output in decode["outputs"]]
    levels = range(len(decode["levels"]))
    return {**decode, "maps": [{"level": level, "outputs": [name]} for name in names for level in reversed(levels)]}


def description(
    decode: DecodeSpec,
    *,
    dtype: NumberType = "float32",
    layout: Layout = "NCHW",
    size: tuple[int, int] = INPUT,
    **selection: Any,
) -> HostSpec:
    """Return what a host is told of a file whose outputs and input have a type and a layout."""
    channels = {output["name"]: output["channels"] for output in decode["outputs"]}
    scale, zero_point = NUMBERS[dtype]
    tensors: list[TensorSpec] = []
    for index, held in enumerate(maps_of(decode)):
        level = decode["levels"][held["level"]]
        rows, columns = (side // level["stride"] for side in size)
        count = len(level["priors"]) * sum(channels[name] for name in held["outputs"])
        tensors.append(
            {
                "name": f"map{index}",
                "layout": layout,
                "shape": [1, count, rows, columns] if layout == "NCHW" else [1, rows, columns, count],
                "dtype": dtype,
                "scale": scale,
                "zero_point": zero_point,
            }
        )
    is_real = scale is None
    names = tuple(f"class {index}" for index in range(decode["num_classes"]))
    exported = Exported(
        files=("network.bin",),
        input={
            "name": "images",
            "layout": layout,
            "height": size[0],
            "width": size[1],
            "dtype": dtype,
            "scale": None if is_real else 1 / 255,
            "zero_point": -128 if dtype == "int8" else 0,
            "fill": 114,
        },
        tensors=tuple(tensors),
    )
    return described(Network(nn.Identity(), size, decode, names), exported, PredictSettings(**selection))


def host(spec: HostSpec) -> Decoder:
    """Return the decoder that follows a description."""
    return Decoder(dict(spec))


def random_maps(decode: DecodeSpec, seed: int, *, spread: float = 2.0) -> list[Tensor]:
    """Return raw maps ``[1, O, h, w]`` of all levels, whose numbers lie from -9 to 9."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(output["channels"] for output in decode["outputs"])
    return [
        (
            spread
            * torch.randn(
                1,
                len(level["priors"]) * count,
                *(side // level["stride"] for side in INPUT),
                generator=generator,
            )
        ).clamp(-9, 9)
        for level in decode["levels"]
    ]


def outputs(spec: HostSpec, maps: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """Return the maps of all levels as the outputs of a file, quantised where it is."""
    decode = spec["decode"]
    ends = np.cumsum([output["channels"] for output in decode["outputs"]])
    made: dict[str, NDArray[Any]] = {}
    for held, tensor in zip(maps_of(decode), spec["tensors"], strict=True):
        raw = maps[held["level"]].numpy()
        _, _, rows, columns = raw.shape
        parts = np.split(raw.reshape(1, -1, ends[-1], rows, columns), ends[:-1], axis=2)
        named = {output["name"]: part for output, part in zip(decode["outputs"], parts, strict=True)}
        real = np.concatenate([named[name] for name in held["outputs"]], 2).reshape(1, -1, rows, columns)
        if tensor["scale"] is not None:
            real = np.rint(real / tensor["scale"]) + tensor["zero_point"]
        if tensor["layout"] == "NHWC":
            real = real.transpose(0, 2, 3, 1)
        made[tensor["name"]] = np.ascontiguousarray(real.astype(tensor["dtype"]))
    return made


def small_outputs(boxes_xywh: Sequence[Sequence[float]], logits: Sequence[Sequence[float]]) -> list[NDArray[Any]]:
    """Return the map of ``SMALL`` on a row of cells: boxes by centre and size in pixels, and class logits."""
    columns = []
    for index, ((x, y, width, height), classes) in enumerate(zip(boxes_xywh, logits, strict=True)):
        columns.append([x / 8 - index, y / 8, np.log(width / 8), np.log(height / 8), *classes])
    return [np.array(columns, np.float32).T[None, :, None]]


def borderline(label: int) -> tuple[HostSpec, dict[str, NDArray[Any]], int]:
    """Return two boxes of a class that overlap by a little more than the limit, and how many are kept.

    Suppression moves classes apart, which rounds the boxes of this many to 1/32 pixel: then they overlap by the limit.
    """
    decode: DecodeSpec = {**SMALL, "num_classes": 121}
    decode["outputs"] = [*SMALL["outputs"][:2], {"name": "classes", "channels": 121}]
    logits = np.full((2, 121), -9.0)
    logits[:, label] = 2, 1
    spec = description(decode, size=(8, 16), overlap=0.6)
    (raw,) = small_outputs([(4, 4, 8, 8), (5.99, 4, 8, 8)], logits.tolist())
    boxes_P4, _ = decoded(decode, [raw[0]])
    priors = Priors.on_grids([(1, 2)], [8], torch.ones(1, 1, 2))
    found = Predictions(torch.from_numpy(boxes_P4)[None], torch.from_numpy(raw[0, 4:, 0].T.copy())[None], None, priors)
    return spec, {"map0": raw}, len(suppress(found, score=0.25, overlap=0.6).scores_K)
