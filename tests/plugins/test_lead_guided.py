"""Who decides what auxiliary heads learn: by hand, and on models that gain an auxiliary head by a setting."""

from itertools import product
from typing import Any

import pytest
import torch

from detloom.assembly import assemble, check
from detloom.catalogue import bundled_rows
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets
from detloom.workshop import Workshop
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.independent import IndependentAssigner
from detloom_plugins.lead_guided import LeadGuidedAssigner

STRIDES = (8, 16)
SHAPES = [(4, 4), (2, 2)]
SIZES_LA2 = torch.tensor([[[8.0, 8.0]], [[16.0, 16.0]]])
TARGETS = Targets.from_lists(
    [torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 32.0, 32.0]])], [torch.zeros(2)], (32, 32)
)


class Surest(Assigner):
    """Match each target with the prior of the largest objectness."""

    one_to_one = True

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        assert predictions.objectness_BP is not None
        target_M = torch.arange(targets.num_targets)
        prior_M = predictions.objectness_BP.argmax(dim=1)[targets.image_T]
        return Assignment(targets.image_T, prior_M, target_M, torch.ones(len(target_M)))

    def objection(self, head: HeadTraits) -> str | None:
        return None if head.objectness else "it wants objectness"


def sure_of(prior: int, *, levels: tuple[int, ...] = (0, 1)) -> Predictions:
    """Return predictions on some levels that are surest at one prior."""
    priors = Priors.on_grids([SHAPES[i] if i in levels else None for i in (0, 1)], STRIDES, SIZES_LA2)
    objectness_BP = torch.zeros(1, priors.num_priors)
    objectness_BP[0, prior] = 1.0
    return Predictions(priors.boxes_P4[None].clone(), torch.zeros(1, priors.num_priors, 1), objectness_BP, priors)


def test_independent_auxiliary_predictions_decide_for_themselves() -> None:
    assigner = IndependentAssigner(inner=Surest())

    assert assigner.assign(sure_of(3), TARGETS).prior_M.tolist() == [3, 3]
    assert assigner.assign_auxiliary(sure_of(3), sure_of(5), TARGETS).prior_M.tolist() == [5, 5]


def test_independent_auxiliary_head_may_have_a_method_of_its_own() -> None:
    assigner = IndependentAssigner(inner=Surest(), auxiliary=Yolov7Assigner())

    auxiliary = assigner.assign_auxiliary(sure_of(3), sure_of(5), TARGETS)

    assert assigner.assign(sure_of(3), TARGETS).prior_M.tolist() == [3, 3]
    assert torch.equal(auxiliary.prior_M, Yolov7Assigner().assign(sure_of(5), TARGETS).prior_M)
    # Each target's own prior, of exactly its size and place.
    assert set(auxiliary.prior_M.tolist()) >= {0, 19}


def test_lead_predictions_decide_for_auxiliary_ones() -> None:
    assigner = LeadGuidedAssigner(inner=Surest())

    assert assigner.assign(sure_of(3), TARGETS).prior_M.tolist() == [3, 3]
    assert assigner.assign_auxiliary(sure_of(3), sure_of(5), TARGETS).prior_M.tolist() == [3, 3]


def test_lead_predictions_decide_by_their_priors_on_the_auxiliary_levels() -> None:
    lead = sure_of(3)
    assert lead.objectness_BP is not None
    # The second of level 1, prior 17 of the lead head, is the surest there.
    lead.objectness_BP[0, 17] = 0.5

    found = LeadGuidedAssigner(inner=Surest()).assign_auxiliary(lead, sure_of(2, levels=(1,)), TARGETS)

    assert found.prior_M.tolist() == [1, 1]


@pytest.mark.parametrize("wrapper", [IndependentAssigner, LeadGuidedAssigner])
def test_wrapper_is_what_its_inner_method_is(wrapper: Any) -> None:
    without = HeadTraits(anchors=True, objectness=False)

    assert wrapper(inner=Surest()).one_to_one
    assert not wrapper(inner=Yolov7Assigner()).one_to_one
    assert wrapper(inner=Surest()).objection(without) == "it wants objectness"
    assert wrapper(inner=Surest()).relaxed() is None
    assert wrapper(inner=Yolov7Assigner()).relaxed().reach == 1.0


def test_objection_of_the_auxiliary_method_is_forwarded() -> None:
    without = HeadTraits(anchors=True, objectness=False)

    assert IndependentAssigner(inner=Yolov7Assigner(), auxiliary=Surest()).objection(without) == "it wants objectness"


# A narrow tiny model, and narrow ones of the other necks and head that have auxiliary levels.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", {"neck.auxiliary": [8, 12, 16]}),
    "demo, middle level": ("demo", {"neck.auxiliary": [0, 12, 0]}),
    "yolox-s": (
        "yolox-s",
        {
            "backbone.stem": [[3, 1, 4]],
            "backbone.widths": [8, 8, 16, 16],
            "neck.widths": [8, 16, 16],
            "head.width": 8,
            "neck.auxiliary": [8, 0, 8],
        },
    ),
    "csp-vovnet": (
        "csp-vovnet",
        {
            "backbone.stem": [[3, 2, 4], [3, 2, 8]],
            "neck.top": 8,
            "neck.reduced": [8],
            "neck.outputs": [8, 16],
            "neck.auxiliary": [0, 8],
        },
    ),
}
INNER = {"yolov7": {"use": "yolov7"}, "atss": {"use": "atss", "candidates": 5}}
WRAPPERS: dict[str, dict[str, Any]] = {
    "independent": {"use": "independent"},
    "lead-guided": {"use": "lead-guided"},
    "coarse-to-fine": {"use": "coarse-to-fine", "bound": "distance"},
}


def painted() -> tuple[torch.Tensor, Targets]:
    """Return dark pictures, each with a red and a blue rectangle, and where these are."""
    generator = torch.Generator().manual_seed(0)
    corner_N2 = torch.randint(0, 32, (8, 2), generator=generator)
    boxes_N4 = torch.cat((corner_N2, corner_N2 + torch.randint(10, 30, (8, 2), generator=generator)), dim=1)
    images_BCHW = torch.rand(4, 3, 64, 64, generator=generator) * 0.2
    for row, (left, top, right, bottom) in enumerate(boxes_N4.tolist()):
        images_BCHW[row // 2, 2 * (row % 2), top:bottom, left:right] = 1.0
    return images_BCHW, Targets.from_lists(list(boxes_N4.view(4, 2, 4)), [torch.tensor([0, 1])] * 4, (64, 64))


@pytest.mark.parametrize(
    ("model", "inner", "wrapper"),
    [
        *product(("demo", "demo, middle level"), INNER, WRAPPERS),
        ("yolox-s", "yolov7", "coarse-to-fine"),
        ("csp-vovnet", "atss", "lead-guided"),
    ],
)
def test_added_auxiliary_head_trains(model: str, inner: str, wrapper: str) -> None:
    name, overrides = MODELS[model]
    table = WRAPPERS[wrapper] | {"inner": INNER[inner]}
    if (wrapper, inner) == ("coarse-to-fine", "atss"):
        table["coarse"] = {"use": "atss", "candidates": 9}
    torch.manual_seed(0)
    # With its whole weight the auxiliary head learns in fewer steps.
    overrides = {**overrides, "assigner": table, "train.auxiliary_weight": 1.0}
    detector = assemble(name, overrides, num_classes=2).train()
    images_BCHW, targets = painted()
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    history = []

    for _ in range(40):
        losses = detector(images_BCHW, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        history.append({key: value.item() for key, value in losses.items()})

    assert [key for key, value in detector.named_parameters() if value.grad is None] == []
    for is_auxiliary in (False, True):
        sums = [
            sum(value for key, value in losses.items() if key.startswith("auxiliary_") == is_auxiliary)
            for losses in history
        ]
        # Steps this large overshoot now and then, in which step depends on how many threads round: the best of the last
        # ten tells that it learns.
        assert 0 < min(sums[-10:]) < 0.9 * sums[0]


def test_added_auxiliary_head_leaves_the_deployed_form_as_it_was() -> None:
    plain, added = check("yolov7-tiny"), check("yolov7-tiny", {"neck.auxiliary": [128, 256, 512]})

    assert added.training_parameters > plain.training_parameters
    assert (added.deployed_parameters, added.deployed_gflops) == (plain.deployed_parameters, plain.deployed_gflops)


def test_added_auxiliary_head_leaves_the_initial_weights_of_the_others() -> None:
    def lead_weights(overrides: dict[str, Any]) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        state = assemble("demo", overrides, num_classes=2).state_dict()
        return {name: value for name, value in state.items() if ".auxiliary." not in name}

    without, beside = lead_weights({}), lead_weights({"neck.auxiliary": [8, 0, 16]})

    assert without.keys() == beside.keys()
    assert all(torch.equal(value, beside[name]) for name, value in without.items())


def test_complaints_about_the_method_inside_are_those_of_a_recipe() -> None:
    shop = Workshop(rows=bundled_rows(), installed=(), disabled=())
    shop.offer("surest", Surest)
    check("demo", {"assigner": WRAPPERS["coarse-to-fine"] | {"inner": INNER["yolov7"]}})

    with pytest.raises(RecipeError, match=r"\[assigner\] inner: no assigner is called 'yolov8'"):
        check("demo", {"assigner": {"use": "lead-guided", "inner": {"use": "yolov8"}}})
    with pytest.raises(RecipeError, match=r"'coarse-to-fine' cannot serve .* no relaxed form: say with `coarse"):
        check("demo", {"assigner": {"use": "coarse-to-fine", "inner": {"use": "surest"}}}, shop=shop)
