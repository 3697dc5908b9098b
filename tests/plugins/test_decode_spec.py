"""A decoder that knows the words of ``detloom.decode_spec`` and nothing of any head."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detloom.interfaces import Head
from detloom.structures import FeatureSpec
from detloom_plugins.anchor_head import AnchorHead
from detloom_plugins.decoupled_head import DecoupledHead
from detloom_plugins.distribution_head import DistributionHead
from detloom_plugins.one_to_one_head import OneToOneHead

Array = NDArray[np.float32]

LEVELS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))
HEADS: dict[str, Callable[[], Head]] = {
    "anchor": lambda: AnchorHead(LEVELS, 3),
    "anchor without objectness": lambda: AnchorHead(LEVELS, 3, objectness=False),
    "anchor-free": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1),
    "anchor-free without objectness": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1, objectness=False),
    "distribution": lambda: DistributionHead(LEVELS, 3, width=8),
    "distribution of few bins": lambda: DistributionHead(LEVELS, 1, width=8, bins=5, prior_scale=2.0),
    "one-to-one": lambda: OneToOneHead(LEVELS, 3, width=8),
}


def sigmoid(t: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-t)), np.float32)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": sigmoid, "exp": np.exp, "identity": np.asarray}


def by_center_and_size(box: dict[str, Any], part: dict[str, Array], cell: Array, priors: Array, stride: int) -> Array:
    center, size = box["center"], box["size"]
    center_HWA2 = center["scale"] * ACTIVATIONS[center["activation"]](part["center"]) + center["shift"]
    center_HWA2 = (center_HWA2 + cell) * stride
    limited = part["size"] if size["limit"] is None else np.minimum(part["size"], size["limit"])
    unit = priors if size["unit"] == "prior" else stride
    size_HWA2 = (size["scale"] * ACTIVATIONS[size["activation"]](limited)) ** size["exponent"] * unit
    return np.concatenate((center_HWA2 - size_HWA2 / 2, center_HWA2 + size_HWA2 / 2), -1)


def by_distances(box: dict[str, Any], part: dict[str, Array], cell: Array, priors: Array, stride: int) -> Array:
    del priors
    logits_HWA4R = part["distances"].reshape(*part["distances"].shape[:-1], 4, box["bins"])
    weights_HWA4R = np.exp(logits_HWA4R - logits_HWA4R.max(-1, keepdims=True))
    weights_HWA4R /= weights_HWA4R.sum(-1, keepdims=True)
    distances_HWA4 = (weights_HWA4R * np.arange(box["bins"], dtype=np.float32)).sum(-1) * stride
    center_HW12 = (cell + np.float32(0.5)) * stride
    return np.concatenate((center_HW12 - distances_HWA4[..., :2], center_HW12 + distances_HWA4[..., 2:]), -1)


FORMS = {"center-and-size": by_center_and_size, "distances": by_distances}


def decoded(spec: dict[str, Any], maps: Sequence[Array]) -> tuple[Array, Array]:
    """Return ``[P, 4]`` boxes and ``[P, C]`` scores of one image's maps, in the order of the priors."""
    boxes, scores = [], []
    for level, raw in zip(spec["levels"], maps, strict=True):
        priors = np.array(level["priors"], np.float32)
        _, height, width = raw.shape
        # Rows, columns, priors, outputs.
        raw_HWAO = raw.reshape(len(priors), -1, height, width).transpose(2, 3, 0, 1)
        ends = np.cumsum([output["channels"] for output in spec["outputs"]])
        assert ends[-1] == raw_HWAO.shape[-1]
        names = [output["name"] for output in spec["outputs"]]
        part = dict(zip(names, np.split(raw_HWAO, ends[:-1], axis=-1), strict=True))
        cell_HW12 = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)[:, :, None].astype(np.float32)
        box = FORMS[spec["box"]["form"]](spec["box"], part, cell_HW12, priors, level["stride"])
        boxes.append(box.reshape(-1, 4))
        factors = [sigmoid(part[name]) for name in spec["score"]]
        scores.append(np.prod(np.broadcast_arrays(*factors), axis=0).reshape(-1, spec["num_classes"]))
    return np.concatenate(boxes), np.concatenate(scores)


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_host_decodes_as_the_head_from_its_spec_alone(make: Callable[[], Head]) -> None:
    torch.manual_seed(0)
    head = make().eval()
    maps = head([torch.randn(1, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in LEVELS]).lead
    # Wide enough for the limits to matter.
    maps = tuple(6 * torch.randn_like(each) for each in maps)
    wanted = head.decode(maps)
    scores_PC = wanted.class_logits_BPC[0].sigmoid()
    if wanted.objectness_BP is not None:
        scores_PC = wanted.objectness_BP[0].sigmoid()[:, None] * scores_PC

    boxes, scores = decoded(json.loads(json.dumps(head.decode_spec())), [each[0].numpy() for each in maps])

    np.testing.assert_allclose(boxes, wanted.boxes_BP4[0], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(scores, scores_PC, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_host_is_told_whether_to_suppress(make: Callable[[], Head]) -> None:
    head = make()

    assert head.decode_spec()["suppression"] is not head.traits.one_to_one
