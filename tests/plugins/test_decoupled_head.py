import math

import pytest
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec, Role
from detloom_plugins.decoupled_head import DecoupledHead

LEAD = (FeatureSpec(4, 8), FeatureSpec(6, 16))
AUXILIARY = (FeatureSpec(3, 8, Role.AUXILIARY), FeatureSpec(5, 16, Role.AUXILIARY))


def levels(specs: tuple[FeatureSpec, ...] = LEAD) -> list[Tensor]:
    return [torch.rand(2, spec.channels, 32 // spec.stride, 48 // spec.stride) for spec in specs]


def test_maps_have_one_prediction_a_cell() -> None:
    maps = DecoupledHead(LEAD, 3, width=8)(levels())

    assert [each.shape for each in maps.lead] == [(2, 8, 4, 6), (2, 8, 2, 3)]


def test_auxiliary_maps_exist_in_training_alone() -> None:
    head = DecoupledHead(LEAD + AUXILIARY, 3, width=8)

    training = head.train()(levels(LEAD + AUXILIARY))
    evaluation = head.eval()(levels())

    assert [each.shape for each in training.auxiliary] == [(2, 8, 4, 6), (2, 8, 2, 3)]
    assert evaluation.auxiliary == ()


def test_neck_without_auxiliary_levels_is_served_in_training_too() -> None:
    maps = DecoupledHead(LEAD + AUXILIARY, 3, width=8).train()(levels())

    assert (len(maps.lead), maps.auxiliary) == (2, ())


def test_auxiliary_levels_may_be_some_of_the_lead_ones() -> None:
    head = DecoupledHead(LEAD + AUXILIARY[1:], 3, width=8).train()

    maps = head(levels(LEAD + AUXILIARY[1:]))
    lead, auxiliary = head.decode(maps.lead), head.decode([torch.zeros_like(maps.auxiliary[0])])

    assert [each.shape for each in maps.auxiliary] == [(2, 8, 2, 3)]
    assert torch.equal(auxiliary.priors.boxes_P4, lead.priors.boxes_P4[lead.priors.grids[1].span])
    assert auxiliary.priors.level_P.tolist() == [1] * 6
    # A cell of 16 pixels, from corner to corner, is one of size exp(0) about the cell's corner.
    assert auxiliary.boxes_BP4[0, 0].tolist() == [-8.0, -8.0, 8.0, 8.0]


def test_offsets_count_from_the_corner_and_sizes_are_exponents() -> None:
    maps = [torch.zeros(1, 8, 4, 6), torch.zeros(1, 8, 2, 3)]
    maps[1][0, :4, 1, 2] = torch.tensor([0.25, 0.75, math.log(2.0), math.log(3.0)])

    predictions = DecoupledHead(LEAD, 3, width=8).decode(maps)

    center, size = torch.tensor([2.25, 1.75]) * 16, torch.tensor([2.0, 3.0]) * 16
    expected = torch.cat((center - size / 2, center + size / 2))
    assert torch.allclose(predictions.boxes_BP4[0, 4 * 6 + 1 * 3 + 2], expected)


def test_wild_sizes_stay_finite() -> None:
    maps = [torch.full((1, 8, 4, 6), 1e4), torch.full((1, 8, 2, 3), 1e4)]

    assert DecoupledHead(LEAD, 3, width=8).decode(maps).boxes_BP4.isfinite().all()


def test_priors_are_points_of_a_nominal_size() -> None:
    head = DecoupledHead(LEAD, 3, width=8, prior_scale=5.0)

    priors = head.decode(head(levels()).lead).priors

    assert not head.traits.anchors
    assert priors.sizes_P2[[0, -1]].tolist() == [[40, 40], [80, 80]]


def test_scores_start_rare() -> None:
    head = DecoupledHead(LEAD, 3, width=8).eval()

    state = head.state_dict()
    biases = [state[f"lead.{level}.{part}.bias"] for level in (0, 1) for part in ("classes", "objectness")]

    assert all(torch.allclose(bias.sigmoid(), torch.tensor(0.01)) for bias in biases)


def test_without_objectness_its_channel_is_gone_and_the_others_stay() -> None:
    torch.manual_seed(0)
    with_one = DecoupledHead(LEAD, 3, width=8).eval()
    torch.manual_seed(0)
    without = DecoupledHead(LEAD, 3, width=8, objectness=False).eval()
    without.load_state_dict({k: v for k, v in with_one.state_dict().items() if "objectness" not in k})
    given = levels()

    expected = with_one.decode(with_one(given).lead)
    found = without.decode(without(given).lead)

    assert (with_one.traits.objectness, without.traits.objectness) == (True, False)
    assert found.objectness_BP is None
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4)
    torch.testing.assert_close(found.class_logits_BPC, expected.class_logits_BPC)


def test_branches_share_the_stem_alone() -> None:
    head = DecoupledHead(LEAD[:1], 3, width=8)

    weights = dict(head.lead[0].named_parameters())
    of_boxes, of_stem = weights["for_boxes.0.conv.weight"], weights["stem.conv.weight"]

    classes_BCHW = head(levels()[:1]).lead[0][:, 5:]
    grads = torch.autograd.grad(classes_BCHW.square().sum(), [of_boxes, of_stem])

    assert [bool(grad.any()) for grad in grads] == [False, True]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match="num_classes must be at least 1, got 0"):
        DecoupledHead(LEAD, 0)
    with pytest.raises(RecipeError, match="auxiliary levels must have the strides"):
        DecoupledHead((*LEAD, FeatureSpec(3, 32, Role.AUXILIARY)), 3)
