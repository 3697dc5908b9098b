import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec, Role
from detloom_plugins.anchor_head import AnchorHead, ImplicitConv

LEAD = (FeatureSpec(4, 8), FeatureSpec(6, 16))
AUXILIARY = (FeatureSpec(3, 8, Role.AUXILIARY), FeatureSpec(5, 16, Role.AUXILIARY))
ANCHORS = (((10, 13), (16, 30)), ((30, 61), (62, 45)))


def levels(specs: tuple[FeatureSpec, ...] = LEAD) -> list[Tensor]:
    return [torch.rand(2, spec.channels, 32 // spec.stride, 48 // spec.stride) for spec in specs]


def head(specs: tuple[FeatureSpec, ...] = LEAD, num_classes: int = 3, **settings: Any) -> AnchorHead:
    return AnchorHead(specs, num_classes, anchors=ANCHORS, **settings)


def test_maps_have_a_row_of_outputs_for_each_anchor() -> None:
    maps = head()(levels())

    assert [each.shape for each in maps.lead] == [(2, 16, 4, 6), (2, 16, 2, 3)]
    assert maps.auxiliary == ()


def test_auxiliary_maps_exist_in_training_alone() -> None:
    both = head(LEAD + AUXILIARY)

    training = both.train()(levels(LEAD + AUXILIARY))
    evaluation = both.eval()(levels())

    assert [each.shape for each in training.auxiliary] == [(2, 16, 4, 6), (2, 16, 2, 3)]
    assert evaluation.auxiliary == ()


def test_neck_without_auxiliary_levels_is_served_in_training_too() -> None:
    maps = head(LEAD + AUXILIARY).train()(levels())

    assert (len(maps.lead), maps.auxiliary) == (2, ())


def test_auxiliary_levels_may_be_some_of_the_lead_ones() -> None:
    coarse_alone = head(LEAD + AUXILIARY[1:]).train()

    maps = coarse_alone(levels(LEAD + AUXILIARY[1:]))
    lead, auxiliary = coarse_alone.decode(maps.lead), coarse_alone.decode([torch.zeros_like(maps.auxiliary[0])])

    assert [each.shape for each in maps.auxiliary] == [(2, 16, 2, 3)]
    assert (lead.priors.num_levels, auxiliary.priors.num_levels) == (2, 2)
    assert [(grid.level, grid.stride, grid.start) for grid in auxiliary.priors.grids] == [(1, 16, 0)]
    assert auxiliary.priors.level_P.tolist() == [1] * 12
    assert torch.equal(auxiliary.boxes_BP4[0], lead.priors.boxes_P4[lead.priors.grids[1].span])


def test_logits_of_zero_are_the_anchor_at_the_centre_of_its_cell() -> None:
    predictions = head().decode([torch.zeros(1, 16, 4, 6), torch.zeros(1, 16, 2, 3)])

    assert torch.allclose(predictions.boxes_BP4[0], predictions.priors.boxes_P4)


def test_a_prior_is_decoded_from_its_own_channels_and_cell() -> None:
    maps = [torch.zeros(1, 16, 4, 6), torch.zeros(1, 16, 2, 3)]
    # Level 1, row 1, column 2, anchor 1: to the far corner of its reach, and four times the anchor.
    maps[1][0, 8:12, 1, 2] = 50.0
    maps[1][0, 12, 1, 2] = 1.5
    maps[1][0, 15, 1, 2] = -0.5

    predictions = head().decode(maps)

    index = 4 * 6 * 2 + (1 * 3 + 2) * 2 + 1
    center, size = (torch.tensor([2 + 1.5, 1 + 1.5]) * 16, torch.tensor([62.0, 45.0]) * 4)
    assert torch.allclose(predictions.boxes_BP4[0, index], torch.cat((center - size / 2, center + size / 2)))
    assert predictions.objectness_BP is not None
    assert predictions.objectness_BP[0, index] == 1.5
    assert predictions.class_logits_BPC[0, index].tolist() == [0, 0, -0.5]


def test_predictions_are_float32_whatever_the_maps_are() -> None:
    maps = [torch.zeros(1, 16, 4, 6, dtype=torch.bfloat16), torch.zeros(1, 16, 2, 3, dtype=torch.bfloat16)]

    predictions = head().decode(maps)

    assert predictions.boxes_BP4.dtype == predictions.class_logits_BPC.dtype == torch.float32


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_memory_format_changes_nothing(memory: torch.memory_format) -> None:
    maps = [torch.rand(2, 16, 4, 6), torch.rand(2, 16, 2, 3)]

    plain = head().decode(maps)
    laid_out = head().decode([each.to(memory_format=memory) for each in maps])

    assert torch.equal(plain.boxes_BP4, laid_out.boxes_BP4)
    assert torch.equal(plain.class_logits_BPC, laid_out.class_logits_BPC)


def test_priors_made_without_gradients_serve_training_too() -> None:
    made = head()
    with torch.inference_mode():
        made.decode(made(levels()).lead)

    predictions = made.decode(made(levels()).lead)
    grads = torch.autograd.grad(predictions.boxes_BP4.square().sum(), list(made.lead.parameters()))

    assert all(grad.any() for grad in grads)


def test_sizes_beyond_the_cache_push_the_oldest_out() -> None:
    made = head()

    for size in range(1, 40):
        made.decode([torch.zeros(1, 16, 2 * size, 2), torch.zeros(1, 16, size, 1)])

    assert len(made.priors.kept) == made.priors.capacity


def test_copies_and_meta_devices_have_priors_of_their_own() -> None:
    made = head()
    made.decode(made(levels()).lead)

    abroad = copy.deepcopy(made).to("meta")
    predictions = abroad.decode(abroad([each.to("meta") for each in levels()]).lead)

    assert predictions.priors.centers_P2.is_meta
    assert not made.decode(made(levels()).lead).priors.centers_P2.is_meta


def test_state_holds_weights_alone() -> None:
    names = head(LEAD + AUXILIARY).state_dict().keys()

    assert sorted(name.rpartition(".")[2] for name in names) == sorted(
        ["add", "multiply", "weight", "bias"] * 2 + ["weight", "bias"] * 2
    )


@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_biases_start_from_the_published_prior(num_classes: int) -> None:
    made = AnchorHead((FeatureSpec(4096, 8),), num_classes, anchors=ANCHORS[:1], implicit=False)

    bias_AO = made.state_dict()["lead.0.bias"].view(2, -1)

    # The prior is added to a bias drawn from within 1 / sqrt(inputs) of zero.
    assert torch.allclose(bias_AO[:, :4], torch.zeros(()), atol=1 / 64)
    assert torch.allclose(bias_AO[:, 4], torch.tensor(math.log(8 / 80**2)), atol=1 / 64)
    assert torch.allclose(bias_AO[:, 5:], torch.tensor(math.log(0.6 / (num_classes - 0.99))), atol=1 / 64)


def test_without_objectness_its_channel_is_gone_and_the_others_stay() -> None:
    with_one, without = head(), head(objectness=False)
    raw_BPO = torch.randn(1, 4 * 6 * 2, 8)
    maps = [raw_BPO.view(1, 4, 6, 16).permute(0, 3, 1, 2), torch.zeros(1, 16, 2, 3)]
    fewer_BPO = torch.cat((raw_BPO[..., :4], raw_BPO[..., 5:]), -1)
    fewer = [fewer_BPO.view(1, 4, 6, 14).permute(0, 3, 1, 2), torch.zeros(1, 14, 2, 3)]

    expected, found = with_one.decode(maps), without.decode(fewer)

    assert [each.shape[1] for each in without(levels()).lead] == [14, 14]
    assert (with_one.traits.objectness, without.traits.objectness) == (True, False)
    assert found.objectness_BP is None
    assert torch.equal(found.boxes_BP4, expected.boxes_BP4)
    assert torch.equal(found.class_logits_BPC, expected.class_logits_BPC)


def test_without_objectness_classes_start_rare() -> None:
    made = AnchorHead((FeatureSpec(4096, 8),), 3, anchors=ANCHORS[:1], implicit=False, objectness=False)

    bias_AO = made.state_dict()["lead.0.bias"].view(2, -1)

    assert torch.allclose(bias_AO[:, :4], torch.zeros(()), atol=1 / 64)
    assert torch.allclose(bias_AO[:, 4:].sigmoid(), torch.tensor(0.01), rtol=0.02)


def test_implicit_convolution_multiplies_after_and_adds_before() -> None:
    conv = ImplicitConv(nn.Conv2d(4, 6, 1))
    x = torch.rand(2, 4, 3, 3)

    found = conv(x)

    expected = conv.multiply.view(1, -1, 1, 1) * conv.conv(x + conv.add.view(1, -1, 1, 1))
    assert torch.allclose(found, expected, atol=1e-6)


def test_implicit_constants_have_the_gradients_of_their_definition() -> None:
    conv = ImplicitConv(nn.Conv2d(4, 6, 1)).double()
    x = torch.rand(2, 4, 3, 3, dtype=torch.float64)
    parameters = list(conv.parameters())

    found = torch.autograd.grad(conv(x).square().sum(), parameters)

    by_definition = conv.multiply.view(1, -1, 1, 1) * conv.conv(x + conv.add.view(1, -1, 1, 1))
    expected = torch.autograd.grad(by_definition.square().sum(), parameters)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs)


@pytest.mark.parametrize(
    ("specs", "anchors", "num_classes", "message"),
    [
        (LEAD, ANCHORS[:1], 3, r"one list for each level \(strides \[8, 16\]\), got 1"),
        (LEAD, (ANCHORS[0], ANCHORS[1][:1]), 3, r"same number of anchors, got \[2, 1\]"),
        (LEAD, (((1, 2),), ((3, 0),)), 3, "both above 0"),
        (LEAD, ANCHORS, 0, "num_classes must be at least 1, got 0"),
        (LEAD + AUXILIARY[::-1], ANCHORS, 3, r"strides of lead levels, \[8, 16\].* got \[16, 8\]"),
        ((*LEAD, FeatureSpec(3, 32, Role.AUXILIARY)), ANCHORS, 3, r"strides of lead levels, \[8, 16\].* got \[32\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    specs: tuple[FeatureSpec, ...], anchors: Any, num_classes: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        AnchorHead(specs, num_classes, anchors=anchors)
