from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.assembly import assemble
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom_plugins.equalise import EqualisePass, factors
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import SpaceToDepth
from detloom_plugins.space_to_depth_conv import SpaceToDepthConvPass

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolutions whose channels differ in width by orders of magnitude, and a forward to be given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = uneven(nn.Conv2d(3, 6, 3, padding=1), generator), nn.Conv2d(6, 4, 3, padding=1)
        self.other = uneven(nn.Conv2d(3, 2, 3, padding=1), generator)
        self.joined = nn.Conv2d(8, 4, 1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.strange = nn.ConvTranspose2d(6, 4, 2, 2)
        self.bn = nn.BatchNorm2d(6)
        self.prelu = nn.PReLU(6)
        self.way = forward

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.way(self, x_BCHW)


def uneven(conv: nn.Conv2d, generator: torch.Generator) -> nn.Conv2d:
    conv.weight.data *= 10 ** torch.empty(conv.out_channels, 1, 1, 1).uniform_(-2, 2, generator=generator)
    return conv


def picture() -> Tensor:
    return torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def made(conv: Tensor | nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return conv.weight.detach().abs().amax(dim=(1, 2, 3))


def read(conv: Tensor | nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    return conv.weight.detach().abs().amax(dim=(0, 2, 3))


def refusals(model: nn.Module) -> dict[str, str]:
    return {each.path: each.reason for each in EqualisePass().plan(model) if not each.applies}


def test_factor_makes_both_ranges_their_geometric_mean() -> None:
    made_O, read_O = torch.tensor([8.0, 1.0, 0.0, 3.0]), torch.tensor([2.0, 4.0, 5.0, 0.0])

    factor_O = factors(made_O, read_O)

    assert factor_O.tolist() == [2.0, 0.5, 1.0, 1.0]
    assert (made_O / factor_O).tolist()[:2] == (read_O * factor_O).tolist()[:2] == [4.0, 2.0]


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.second(net.first(x)),
        lambda net, x: net.second(net.first(x).relu()),
        lambda net, x: net.second(functional.leaky_relu(net.first(x), 0.1)),
        lambda net, x: net.second(net.prelu(net.first(x))),
        lambda net, x: net.second(functional.max_pool2d(functional.relu(net.first(x)), 5, 1, 2)),
        lambda net, x: net.second(functional.interpolate(net.first(x).relu(), scale_factor=2.0)),
        lambda net, x: net.second(functional.interpolate(y := net.first(x).relu(), size=(y.shape[2] * 2, y.size(3)))),
        lambda net, x: net.second(functional.avg_pool2d(net.first(x), 2)),
    ],
    ids=["nothing", "relu", "leaky relu", "prelu", "max-pool", "enlarged", "enlarged to its shape", "mean"],
)
def test_ranges_are_equal_on_both_sides_of_what_keeps_factors(forward: Forward) -> None:
    model = Net(forward)

    folded, report = fold(model, [EqualisePass()], example=picture())

    torch.testing.assert_close(made(folded.first), read(folded.second))
    assert made(model.first).max() / made(model.first).min() > 100
    assert made(folded.first).max() / made(folded.first).min() < 60
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


def test_channels_of_a_concatenation_have_factors_of_their_own() -> None:
    model = Net(lambda net, x: net.joined(torch.cat((net.other(x).relu(), net.first(x).relu()), dim=1)))

    folded, report = fold(model, [EqualisePass()], example=picture())

    together_O = torch.cat((made(folded.other), made(folded.first)))
    torch.testing.assert_close(together_O, read(folded.joined))
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


def test_channels_that_two_convolutions_read_serve_the_larger_range() -> None:
    model = Net(lambda net, x: net.second(y := net.first(x).relu()).sum() + net.grouped(y))

    folded, report = fold(model, [EqualisePass()], example=picture())

    grouped_I = folded.grouped.weight.view(3, 2, 2, 9).abs().amax(dim=(1, 3)).flatten()
    torch.testing.assert_close(made(folded.first), torch.maximum(read(folded.second), grouped_I))
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


def test_groups_and_depthwise_convolutions_pass_factors_on() -> None:
    model = Net(lambda net, x: net.second(net.depthwise(net.grouped(net.first(x).relu()).relu())))

    _, report = fold(model, [EqualisePass(rounds=3)], example=picture())

    assert report.folds[0].fold.reason == "the channels of 3 of 6 convolutions with those that read them"
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: net.second(functional.silu(net.first(x))), "it goes through silu, which does not keep factors"),
        (lambda net, x: net.second(net.first(x).clamp(0, 6)), "it goes through clamp"),
        (lambda net, x: net.second(functional.relu6(net.first(x))), "it goes through relu6"),
        (lambda net, x: net.second((y := net.first(x)) + y.relu()), "it goes through add"),
        (lambda net, x: net.second(net.bn(net.first(x))), "the batch norm bn reads it; fuse-bn comes first"),
        (lambda net, x: net.first(x).relu(), "it is an output"),
        (lambda net, x: net.strange(net.first(x)), "it goes through ConvTranspose2d"),
        (lambda net, x: net.second(net.first(x)) + net.first.weight.sum(), "other code reads its weights"),
        (lambda net, x: net.second(net.first(x)) + net.first(x + 1).sum(), "it is called 2 times"),
        (lambda net, x: net.second(y := net.first(x)) + net.second(y + 1), "second reads it: it is called 2 times"),
        (lambda net, x: net.joined(torch.cat((x[:, :2] * x[:, :2], net.first(x)), dim=3)), "it goes through cat"),
        (lambda _, x: x, "evaluation mode does not run it"),
        (lambda net, x: net.second(net.first(x)) if x.sum() > 0 else x, "the flow through the model cannot be read"),
    ],
    ids=[
        *("silu", "clamp", "relu6", "sum", "norm", "output", "transposed", "weights", "twice", "reader twice"),
        *("columns side by side", "not run", "unreadable"),
    ],
)
def test_convolution_whose_factor_would_not_arrive_stays(forward: Forward, reason: str) -> None:
    assert reason in refusals(Net(forward))["first"]


def test_channels_beside_some_of_unknown_number_are_counted_from_the_end() -> None:
    model = Net(lambda net, x: net.joined(torch.cat((x.narrow(1, 0, 2) * 1, net.first(x).relu()), dim=1)))

    _, report = fold(model, [EqualisePass()], example=picture())

    assert report.folds[0].fold.parts == ("first", "joined")
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


def test_channels_between_some_of_unknown_number_stay() -> None:
    def forward(net: Net, x_BCHW: Tensor) -> Tensor:
        one_BCHW = x_BCHW.narrow(1, 0, 1) * 1
        out: Tensor = net.joined(torch.cat((one_BCHW, net.first(x_BCHW), one_BCHW), dim=1))
        return out

    assert refusals(Net(forward))["first"] == "which channels of joined it makes is not known"


def test_shared_weights_stay() -> None:
    model = Net(lambda net, x: net.second(net.first(x)))
    model.other.weight = model.first.weight

    assert refusals(model)["first"] == "the weights of a Conv2d are shared"


def test_channel_of_zeros_stays_finite() -> None:
    model = Net(lambda net, x: net.second(net.first(x).relu()))
    model.first.weight.data[0] = 0
    model.second.weight.data[:, 1] = 0

    folded, _ = fold(model, [EqualisePass()], example=picture())

    assert all(each.isfinite().all() for each in folded.parameters())
    assert torch.equal(folded.first.weight[:2], model.first.weight[:2])


def test_equalised_model_is_not_equalised_again() -> None:
    model = Net(lambda net, x: net.second(net.first(x).relu()))

    folded, _ = fold(model, [EqualisePass()])

    assert refusals(folded)["first"] == "it is equalised"
    assert not any(each.applies for each in EqualisePass().plan(folded))


def test_model_of_which_another_pass_replaced_a_convolution_is_equalised_again() -> None:
    model = nn.Sequential(SpaceToDepth(), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1))

    folded, report = fold(model, [EqualisePass(), SpaceToDepthConvPass(), EqualisePass()], example=picture())

    assert [each.fold.applies for each in report.folds] == [True, False, True, True, False]
    assert refusals(folded)["1"] == "it is equalised"


def test_no_rounds_are_refused() -> None:
    with pytest.raises(RecipeError, match="rounds must be at least 1, got 0"):
        EqualisePass(rounds=0)


def test_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PluginError, match="plan it again"):
        EqualisePass().fold(Net(lambda net, x: net.second(net.first(x))), Fold("", applies=True, reason="because"))


def test_norms_are_fused_before(excite_: Callable[[nn.Module], nn.Module]) -> None:
    model = excite_(Net(lambda net, x: net.second(net.bn(net.first(x)).relu())))

    folded, report = fold(model, [FuseBnPass(), EqualisePass()], example=picture())

    torch.testing.assert_close(made(folded.first), read(folded.second))
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-13


@pytest.mark.parametrize(
    ("activation", "count", "reason"),
    [
        ("leaky-relu", 55, "it is an output"),
        ("relu", 55, "it is an output"),
        ("relu6", 0, "it goes through ReLU6, which does not keep factors"),
        ("silu", 0, "it goes through SiLU, which does not keep factors"),
    ],
)
def test_all_convolutions_of_yolov7_tiny_but_the_last_are_reached_through_relus_alone(
    activation: str, count: int, reason: str
) -> None:
    with torch.device("meta"):
        settings = {"backbone.activation": activation, "neck.activation": activation}
        model = assemble("demo", settings, num_classes=2).fuse()

    plan = EqualisePass().plan(model)

    said = f"the channels of {count} of 58 convolutions with those that read them"
    assert [each.reason for each in plan if each.applies] == [said] * (count > 0)
    assert reason in {each.reason for each in plan if not each.applies}


def test_deployed_detector_predicts_the_same(excite_: Callable[[nn.Module], nn.Module]) -> None:
    detector = assemble("demo", num_classes=2)
    excite_(detector)

    folded, report = fold(detector, [*detector.passes, EqualisePass()], example=torch.rand(1, 3, 64, 64))

    before, after = (made(each.get_submodule("backbone.stages.1.1.entry.conv")) for each in (detector.fuse(), folded))
    assert not torch.allclose(before, after, rtol=0.1)
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-12
