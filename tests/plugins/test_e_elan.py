from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import check
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom_plugins.e_elan import GroupedElan, grouped, make_elan, summed
from detloom_plugins.elan import ElanBackbone
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import Elan, SummedElan, Taps
from detloom_plugins.merge_e_elan import MergeEElanPass

Excite = Callable[[nn.Module], nn.Module]
FORMS: list[tuple[int, int, Taps, int]] = [(4, 6, "even", 2), (2, 2, "all", 2), (8, 8, "even", 3)]


def branches(width: int, depth: int, taps: Taps, count: int) -> SummedElan:
    return SummedElan([Elan(5, 6, hidden=8, width=width, depth=depth, taps=taps) for _ in range(count)])


def picture() -> Tensor:
    return torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_give_the_same_sum_and_last_branch(form: tuple[int, int, Taps, int], excite_: Excite) -> None:
    separate = branches(*form)
    excite_(separate).double().eval()

    together = grouped(separate)

    for found, expected in zip(together.sum_and_last(picture()), separate.sum_and_last(picture()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_both_forms_learn_the_same_statistics() -> None:
    separate = branches(4, 6, "even", 2).double().train()
    together = grouped(separate)

    separate(picture())
    together(picture())

    back = summed(together).state_dict()
    for name, tensor in separate.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_conversion_there_and_back_changes_no_bit(form: tuple[int, int, Taps, int], excite_: Excite) -> None:
    separate = branches(*form)
    excite_(separate)

    back = summed(grouped(separate)).state_dict()

    assert back.keys() == separate.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in separate.state_dict().items())


@pytest.mark.parametrize("passes", list(permutations([MergeEElanPass(), FuseBnPass()])))
def test_order_with_fuse_bn_does_not_matter(passes: tuple[MergeEElanPass | FuseBnPass, ...], excite_: Excite) -> None:
    model = excite_(nn.Sequential(branches(4, 6, "even", 2)))

    folded, report = fold(model, passes, example=picture().float())

    assert isinstance(folded.get_submodule("0"), GroupedElan)
    assert sum(isinstance(each, nn.Conv2d) for each in folded.modules()) == 3 + 6
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-12


def test_merged_model_has_nothing_to_merge() -> None:
    folded, _ = fold(nn.Sequential(branches(4, 2, "all", 2)), [MergeEElanPass()])

    assert MergeEElanPass().plan(folded) == []


def test_branches_of_different_form_stay() -> None:
    unequal = SummedElan([Elan(5, 6, hidden=8, width=width, depth=2) for width in (2, 4)])
    with_repconv = SummedElan([Elan(5, 6, hidden=8, width=4, depth=2, repconv=(1,)) for _ in range(2)])

    plan = MergeEElanPass().plan(nn.Sequential(unequal, with_repconv))

    assert [(each.applies, each.reason) for each in plan] == [
        (False, "the branches differ in form"),
        (False, "a branch has a RepConv, not a plain convolution with its norm and activation"),
    ]
    with pytest.raises(PluginError, match="cannot become groups of one: the branches differ in form"):
        grouped(unequal)


def changed(change: Callable[[Elan], object], *, both: bool = False) -> SummedElan:
    """Return two branches, of which the second is changed, or both."""
    made = branches(4, 2, "all", 2)
    for branch in list(made.branches)[0 if both else 1 :]:
        assert isinstance(branch, Elan)
        change(branch)
    return made


def twice() -> nn.Sequential:
    elan = SummedElan([Elan(6, 6, hidden=8, width=4, depth=2) for _ in range(2)])
    return nn.Sequential(elan, elan)


def one_branch_twice() -> SummedElan:
    made = branches(4, 2, "all", 1)
    return SummedElan([*made.branches, *made.branches])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (changed(lambda elan: setattr(elan.bypass.bn, "eps", 1e-5)), "the branches differ in form"),
        (changed(lambda elan: setattr(elan.bypass, "act", nn.LeakyReLU(0.3))), "the branches differ in form"),
        (
            changed(lambda elan: setattr(elan.bypass, "act", nn.PReLU(8)), both=True),
            "a branch has a PReLU, which may not treat each value by itself",
        ),
        (
            changed(lambda elan: setattr(elan.entry, "bn", nn.BatchNorm2d(8, affine=False)), both=True),
            "a branch has a norm without weights or without statistics",
        ),
        (
            changed(lambda elan: setattr(elan.entry, "bn", nn.BatchNorm2d(8, track_running_stats=False)), both=True),
            "a branch has a norm without weights or without statistics",
        ),
        (
            changed(lambda elan: setattr(elan.entry.conv, "padding_mode", "reflect"), both=True),
            "padding_mode=reflect), not a plain convolution that keeps the size",
        ),
        (twice(), "a SummedElan stands in several places"),
        (one_branch_twice(), "an Elan stands in several places"),
    ],
)
def test_what_has_no_grouped_form_is_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    (place,) = MergeEElanPass().plan(model)

    assert not place.applies
    assert reason in place.reason


def test_branches_of_the_same_slope_are_merged() -> None:
    model = nn.Sequential(changed(lambda elan: setattr(elan.bypass, "act", nn.LeakyReLU(0.3)), both=True))

    _, report = fold(model, [MergeEElanPass()], example=picture().float())

    assert [each.fold.applies for each in report.folds] == [True]


def test_another_module_is_refused() -> None:
    with pytest.raises(PluginError, match="merge-e-elan: neck is no sum of aggregations"):
        MergeEElanPass().fold(nn.Identity(), Fold("neck", applies=True, reason=""))


def test_one_branch_has_no_grouped_form() -> None:
    with pytest.raises(RecipeError, match="grouped needs at least 2 branches"):
        make_elan(4, 4, hidden=4, chain_ratio=1.0, depth=2, taps="all", branches=1, is_grouped=True, activation="silu")


def test_backbone_can_be_built_in_the_grouped_form() -> None:
    backbone = ElanBackbone(branches=2, grouped=True).eval()

    levels = backbone(torch.rand(1, 3, 64, 64))

    assert [level.shape[1] for level in levels] == [spec.channels for spec in backbone.out_specs]
    assert sum(isinstance(each, GroupedElan) for each in backbone.modules()) == 4


def test_grouped_yolov7_e6e_has_the_same_parameters_and_operations() -> None:
    report = check("yolov7-e6e", {"backbone.grouped": True, "neck.grouped": True})

    assert (report.training_parameters, report.deployed_parameters) == (166_408_884, 151_687_420)
    assert report.deployed_gflops == pytest.approx(842.18, rel=1e-3)
