"""Two branches, of which one is deployed, and which is not suppressed."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import assemble, check
from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.ops.iou import overlap
from detloom.structures import Assignment, FeatureSpec, Predictions, Role, Targets
from detloom.workshop import Workshop
from detloom_plugins.atss import AtssAssigner
from detloom_plugins.distribution_head import DistributionHead
from detloom_plugins.one_to_one_head import OneToOneHead

LEVELS = (FeatureSpec(4, 8), FeatureSpec(6, 16))
RECIPE = {
    "head.use": "one-to-one",
    "assigner.use": "central",
    "criterion.use": "varifocal",
    "criterion.labels": "overlap",
    "reparam.passes": ["drop-auxiliary", "fuse-bn"],
    "train.auxiliary_weight": 1.0,
}


class CentralAssigner(Assigner):
    """The most central of the priors that look most like a target; ATSS for the auxiliary predictions."""

    one_to_one = True

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        iou_TP = overlap(targets.boxes_T4[:, None], predictions.priors.boxes_P4)
        target_T = torch.arange(targets.num_targets)
        return Assignment(targets.image_T, iou_TP.argmax(1), target_T, torch.ones(targets.num_targets))

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:
        del lead
        return AtssAssigner().assign(auxiliary, targets)


def shop() -> Workshop:
    made = Workshop()
    made.offer("central", CentralAssigner)
    return made


def detector(**settings: object) -> Detector:
    torch.manual_seed(0)
    return assemble("demo", {**RECIPE, **settings}, num_classes=3, shop=shop())


def levels(specs: tuple[FeatureSpec, ...] = LEVELS) -> list[Tensor]:
    return [torch.rand(2, s.channels, 32 // s.stride, 48 // s.stride, requires_grad=True) for s in specs]


def head(*, detach: bool = True) -> OneToOneHead:
    return OneToOneHead(LEVELS, 3, width=8, bins=5, detach=detach)


def test_both_branches_run_in_training_and_the_one_to_one_branch_after_it() -> None:
    made = head()

    training, evaluation = made.train()(levels()), made.eval()(levels())

    shapes = [(2, 23, 4, 6), (2, 23, 2, 3)]
    assert [each.shape for each in training.lead] == [each.shape for each in training.auxiliary] == shapes
    assert [each.shape for each in evaluation.lead] == shapes
    assert evaluation.auxiliary == ()


def test_branches_are_those_of_the_distribution_head() -> None:
    made, plain = head().eval(), DistributionHead(LEVELS, 3, width=8, bins=5).eval()
    plain.load_state_dict({k: v for k, v in made.state_dict().items() if k.startswith("lead")})
    given = levels()

    found, expected = made.decode(made(given).lead), plain.decode(plain(given).lead)

    assert torch.equal(found.boxes_BP4, expected.boxes_BP4)
    assert torch.equal(found.class_logits_BPC, expected.class_logits_BPC)


@pytest.mark.parametrize("detach", [True, False])
def test_features_learn_from_the_one_to_one_branch_unless_it_is_detached(detach: bool) -> None:
    made = head(detach=detach).train()
    given = levels()
    maps = made(given)

    of_lead = torch.autograd.grad(sum_of(maps.lead), [*given, *made.lead.parameters()], allow_unused=True)
    of_auxiliary = torch.autograd.grad(sum_of(maps.auxiliary), given)

    assert [grad is None for grad in of_lead[:2]] == [detach, detach]
    assert all(grad is not None for grad in of_lead[2:])
    assert all(grad.any() for grad in of_auxiliary)


def test_features_learn_from_the_one_to_one_branch_when_it_is_alone() -> None:
    made = head().train()
    made.auxiliary = nn.ModuleList()
    given = levels()
    maps = made(given)

    assert maps.auxiliary == ()
    assert all(grad.any() for grad in torch.autograd.grad(sum_of(maps.lead), given))


def sum_of(maps: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([each.square().sum() for each in maps]).sum()


def test_auxiliary_levels_are_refused_with_what_to_do() -> None:
    with pytest.raises(RecipeError, match="leave them out of the neck, or take the head 'distribution'"):
        OneToOneHead((*LEVELS, FeatureSpec(4, 8, Role.AUXILIARY)), 3)


def test_assigners_that_are_not_one_to_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="take a one-to-one assigner"):
        assemble("demo", {**RECIPE, "assigner.use": "atss"}, num_classes=3)


@pytest.mark.parametrize("criterion", ["varifocal", "quality-focal", "focal"])
@pytest.mark.parametrize("detach", [True, False])
def test_it_trains(criterion: str, detach: bool) -> None:
    model = detector(**{"criterion.use": criterion, "head.detach": detach}).train()
    images_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 30.0, 60.0, 62.0]])] * 2
    targets = Targets.from_lists(boxes, [torch.tensor([0, 2])] * 2, (64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []

    for _ in range(10):
        losses = model(images_BCHW, targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        totals.append(float(total.detach()))

    names = {"box", "class", "distribution"}
    assert set(losses) == names | {f"auxiliary_{name}" for name in names}
    assert sum(totals[-3:]) < sum(totals[:3])
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_deployed_form_has_the_one_to_one_branch_alone_and_predicts_the_same() -> None:
    model = detector().eval()
    images_BCHW = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    deployed = model.fuse()

    assert not [name for name in deployed.state_dict() if "auxiliary" in name]
    with torch.no_grad():
        found, expected = deployed.predictions(images_BCHW), model.predictions(images_BCHW)
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4, rtol=1e-4, atol=1e-3)


def test_check_counts_the_deployed_branch_alone() -> None:
    report = check("demo", RECIPE, num_classes=3, shop=shop())

    branch = sum(parameter.numel() for parameter in detector().head.get_submodule("auxiliary").parameters())
    assert report.training_parameters - report.deployed_parameters > branch


def test_what_it_finds_is_the_best_of_all_and_not_suppressed() -> None:
    model = detector()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    (found,) = model.predict(picture, image_size=64, score=0.0, overlap=0.0, max_detections=20)

    # Boxes that start as their priors, four cells wide, overlap all their neighbours.
    assert len(found) == 20
    assert found.scores_N.tolist() == sorted(found.scores_N.tolist(), reverse=True)
