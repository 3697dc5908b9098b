"""What heads say to a host, held against the host's decoder, which knows nothing of any head."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from detloom.host.decoder import decoded
from detloom.interfaces import Head
from detloom.structures import FeatureSpec
from detloom_plugins.anchor_head import AnchorHead
from detloom_plugins.decoupled_head import DecoupledHead
from detloom_plugins.distribution_head import DistributionHead
from detloom_plugins.one_to_one_head import OneToOneHead

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
