"""The paper's cases of planned re-parameterisation (YOLOv7, section 4.2, figures 4 and 9, tables 4 and 5)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import check
from detloom.errors import PluginError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import ConvBlock, Elan, RepConv
from detloom_plugins.merge_repconv import MergeRepConvPass
from detloom_plugins.plan_repconv import PlanRepConvPass
from detloom_plugins.repconv_flow import identities

Excite = Callable[[nn.Module], nn.Module]
WIDTH = 8


class Way(nn.Module):
    """Two layers and a forward to be given."""

    def __init__(self, first: nn.Module, second: nn.Module, forward: "Callable[[Way, Tensor], Tensor]") -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def rep(*, identity: bool = True) -> RepConv:
    return RepConv(WIDTH, WIDTH, identity=identity)


def conv() -> ConvBlock:
    return ConvBlock(WIDTH, WIDTH)


def repeated_paths(model: nn.Module) -> dict[str, str]:
    found = identities(model)
    assert found.unread == {}
    return found.repeated


def residual(first: nn.Module, second: nn.Module) -> Way:
    return Way(first, second, lambda net, x: x + net.second(net.first(x)))


def stacked_elan(places: tuple[int, ...], *, identity: bool = True) -> Elan:
    """Return the 3-stacked ELAN: three blocks of two convolutions, the output of each block is concatenated."""
    return Elan(
        WIDTH, WIDTH, hidden=WIDTH, width=WIDTH, depth=6, taps="even", repconv=places, repconv_identity=identity
    )


def test_position_p1_of_a_residual_block_may_have_an_identity() -> None:
    block = residual(rep(), conv())

    assert repeated_paths(block) == {}


def test_position_p2_of_a_residual_block_may_not() -> None:
    block = residual(conv(), rep())

    assert repeated_paths(block) == {"second": "reaches the addition with its own input in the model"}


def test_layer_that_spans_a_residual_may_not() -> None:
    block = Way(rep(), conv(), lambda net, x: net.second(x + net.first(x)))

    assert list(repeated_paths(block)) == ["first"]


def test_layer_without_identity_may_stand_anywhere() -> None:
    assert repeated_paths(residual(conv(), rep(identity=False))) == {}


# Which positions the paper's variants (a) to (e) replace is drawn in its figure 9 alone, and was not verified. These
# sets hold every kind of position of the block, whichever the letters stand for.
@pytest.mark.parametrize(
    ("places", "wrong"),
    [
        ((), ()),
        ((1,), ()),
        ((1, 3, 5), ()),
        ((2,), (2,)),
        ((6,), (6,)),
        ((2, 4, 6), (2, 4, 6)),
        ((1, 2, 3, 4, 5, 6), (2, 4, 6)),
    ],
)
def test_in_a_stacked_elan_only_layers_that_are_not_concatenated_may(
    places: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    found = identities(stacked_elan(places)).repeated

    assert list(found) == [f"chain.{place - 1}" for place in wrong]
    assert all("the concatenation with its own input" in reason for reason in found.values())


def test_densely_connected_layer_may_not() -> None:
    block = Way(rep(), conv(), lambda net, x: net.second(torch.cat((x, net.first(x)), 1)[:, :WIDTH]))

    assert list(repeated_paths(block)) == ["first"]


def test_layer_that_is_concatenated_with_its_sibling_may_not() -> None:
    block = Way(rep(), conv(), lambda net, x: torch.cat((net.first(x), net.second(x)), 1))

    assert repeated_paths(block) == {"first": "reaches the concatenation with other layers in the model"}


def test_layer_that_is_joined_with_what_is_made_of_it_may() -> None:
    stem = Way(rep(), conv(), lambda net, x: (y := net.first(x)) + net.second(y))

    assert repeated_paths(stem) == {}


def test_plain_chain_may() -> None:
    assert repeated_paths(nn.Sequential(rep(), nn.Upsample(scale_factor=2), rep(), nn.MaxPool2d(2), conv())) == {}


def test_what_lies_between_layer_and_meeting_without_weights_is_looked_through() -> None:
    between = nn.Sequential(rep(), nn.BatchNorm2d(WIDTH), nn.MaxPool2d(3, 1, 1))
    block = Way(between, conv(), lambda net, x: net.second(x) + net.first(x).relu())

    assert list(repeated_paths(block)) == ["first.0"]


def test_addition_of_a_number_is_no_meeting() -> None:
    assert repeated_paths(Way(rep(), conv(), lambda net, x: net.second(net.first(x) + 1))) == {}


@pytest.mark.parametrize(
    ("kind", "join"),
    [
        ("addition", lambda a, b: a - b),
        ("addition", lambda a, b: b.sub(a)),
        ("addition", torch.subtract),
        ("addition", lambda a, b: sum([a, b])),
        ("addition", lambda a, b: torch.lerp(a, b, 0.5)),
        ("addition", lambda a, b: a.addcmul(b, b)),
        ("concatenation", lambda a, b: torch.concatenate((a, b), 1)),
        ("concatenation", lambda a, b: torch.hstack((a, b))),
        ("concatenation", lambda a, b: torch.stack((a, b)).sum(0)),
    ],
)
def test_every_way_to_join_is_a_meeting(kind: str, join: Callable[[Tensor, Tensor], Tensor]) -> None:
    block = Way(rep(), conv(), lambda net, x: join(net.first(x), x))

    assert repeated_paths(block) == {"first": f"reaches the {kind} with its own input in the model"}


def sized(module: Way, x: Tensor) -> Tensor:
    """Do what cannot be read, because it asks for values."""
    return x + module.second(module.first(x)) if x.sum() > 0 else x


def test_parts_of_a_model_whose_flow_cannot_be_read_are_looked_at() -> None:
    block = Way(residual(conv(), rep()), conv(), lambda net, x: net.first(x) if x.sum() > 0 else x)

    assert repeated_paths(block) == {"first.second": "reaches the addition with its own input in first"}


def test_part_whose_flow_cannot_be_read_is_looked_into_where_the_model_can_be_read() -> None:
    model = Way(Way(residual(conv(), rep()), conv(), sized), conv(), lambda net, x: net.second(net.first(x)))

    assert list(repeated_paths(model)) == ["first.first.second"]


@pytest.mark.parametrize(
    "model",
    [
        Way(conv(), rep(), sized),
        nn.Sequential(conv(), Way(conv(), nn.Sequential(nn.ReLU(), rep()), sized), conv()),
        Way(rep(), Way(nn.ReLU(), nn.ReLU(), sized), lambda net, x: x * net.second(net.first(x))),
    ],
    ids=["directly in it", "at the end of a part of it", "before it"],
)
def test_repconv_whose_flow_cannot_be_read_is_warned_of(model: nn.Module) -> None:
    found = identities(model)

    assert found.repeated == {}
    assert len(found.unread) == 1
    for plan in (PlanRepConvPass().plan(model), MergeRepConvPass().plan(model)):
        (warning,) = (each.warning for each in plan)
        assert "its flow cannot be read" in warning
        assert "control flow" in warning
    assert not any(each.applies for each in PlanRepConvPass().plan(model))


def test_reason_why_a_flow_cannot_be_read_is_one_sentence() -> None:
    block = Way(rep(), conv(), lambda net, x: torch.cat([*net.first(x).relu()]) + net.second(x))

    (why,) = identities(block).unread.values()

    assert why.endswith("cannot be read: Proxy object cannot be iterated)")


def test_repconv_that_a_convolution_follows_may_stay_whatever_surrounds_it() -> None:
    model = Way(nn.Sequential(rep(), nn.ReLU(), conv()), conv(), sized)

    assert repeated_paths(model) == {}


def test_repconv_that_shares_a_convolution_is_not_rewritten() -> None:
    block = residual(rep(), rep())
    assert isinstance(block.first, RepConv)
    assert isinstance(block.second, RepConv)
    block.second.conv1 = block.first.conv1

    second = PlanRepConvPass().plan(block)[1]

    assert not second.applies
    assert "cannot be rewritten: a Conv2d stands in several places" in second.warning


def test_rewriting_keeps_the_output_and_leaves_no_identity(excite_: Excite) -> None:
    model = excite_(nn.Sequential(residual(rep(), rep()), stacked_elan((1, 2, 3, 4, 5, 6))))

    rewritten, report = fold(model, [PlanRepConvPass()], example=torch.rand(1, WIDTH, 8, 8))

    kept = [path for path, each in rewritten.named_modules() if isinstance(each, RepConv) and each.identity is not None]
    assert kept == ["0.first", "1.chain.0", "1.chain.2", "1.chain.4"]
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-10
    assert not any(each.applies for each in PlanRepConvPass().plan(rewritten))
    assert repeated_paths(rewritten) == {}


def test_rewriting_keeps_the_output_within_groups(excite_: Excite) -> None:
    model = excite_(residual(conv(), RepConv(WIDTH, WIDTH, groups=4)))

    _, report = fold(model, [PlanRepConvPass(), MergeRepConvPass(), FuseBnPass()], example=torch.rand(1, WIDTH, 8, 8))

    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-10


def test_plan_gives_the_reason_for_each_repconv() -> None:
    plan = PlanRepConvPass().plan(residual(rep(), rep()))

    assert [(each.path, each.applies, each.reason) for each in plan] == [
        ("first", False, "the identity repeats no path, it may stay"),
        ("second", True, "the identity reaches the addition with its own input in the model"),
    ]


def test_repconv_whose_norm_is_gone_is_warned_of() -> None:
    fused, _ = fold(residual(conv(), rep()), [FuseBnPass()])

    (fold_,) = PlanRepConvPass().plan(fused)

    assert not fold_.applies
    assert "plan before fuse-bn" in fold_.warning


def test_another_module_is_refused() -> None:
    with pytest.raises(PluginError, match="plan-repconv: neck is no RepConv with an identity"):
        PlanRepConvPass().fold(rep(identity=False), Fold("neck", applies=True, reason=""))


ELAN_OF_REPCONVS = {"backbone.repconv": [1, 2], "backbone.taps": "even"}


def test_check_warns_of_an_identity_that_repeats_a_path() -> None:
    passes = {"reparam.passes": ["merge-repconv", "fold-implicit", "fuse-bn"]}

    warnings = check("yolov7-tiny", ELAN_OF_REPCONVS | passes).warnings

    assert [each.split(":")[0] for each in warnings] == [f"backbone.stages.{stage}.1.chain.1" for stage in range(4)]
    assert "reaches the concatenation with its own input in backbone.stages.0.1" in warnings[0]
    assert "it should have none (YOLOv7, section 4.2): plan-repconv rewrites it" in warnings[0]


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        ("yolov7-tiny", {"neck.repconv": [2]}),
        ("yolov7x", {"backbone.repconv": [2]}),
        ("yolov7-w6", {"backbone.repconv": [2]}),
        ("yolov7-e6e", {"neck.repconv": [2]}),
        ("yolor-csp", {"backbone.repconv": True}),
        ("yolov5s-style", {"backbone.repconv": True}),
        ("yolox-s", {"backbone.repconv": True}),
    ],
)
def test_every_recipe_whose_parts_take_repconvs_merges_them_and_warns(recipe: str, change: dict[str, object]) -> None:
    plain, report = check(recipe), check(recipe, change)

    assert report.training_parameters > plain.training_parameters
    assert report.deployed_parameters == plain.deployed_parameters
    assert report.warnings
    assert plain.warnings == ()


def test_check_is_content_once_the_recipe_plans_or_has_no_identities() -> None:
    passes = {"reparam.passes": ["plan-repconv", "merge-repconv", "fold-implicit", "fuse-bn"]}

    assert check("yolov7-tiny", ELAN_OF_REPCONVS | passes).warnings == ()
    assert check("yolov7-tiny", ELAN_OF_REPCONVS | {"backbone.repconv_identity": False}).warnings == ()
