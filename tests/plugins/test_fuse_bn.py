from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.reparam import fold
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import ConvBlock, RepConv


def excite_(model: nn.Module) -> nn.Module:
    """Give norms statistics and weights that make a mistake visible."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    nn.init.normal_(tensor, 0.5, 0.3)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def reasons(model: nn.Module) -> list[str]:
    return [each.reason for each in FuseBnPass().plan(model) if not each.applies]


def norms(model: nn.Module) -> int:
    return sum(isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d) for each in model.modules())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, groups=4, stride=2),
        nn.Conv2d(4, 6, 3, dilation=2, padding=2, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    ],
    ids=["plain", "no bias", "grouped", "depthwise", "dilated", "transposed", "transposed and grouped"],
)
@pytest.mark.parametrize("affine", [True, False])
def test_any_convolution_keeps_its_output(conv: nn.Conv2d | nn.ConvTranspose2d, *, affine: bool) -> None:
    model = excite_(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, affine=affine), nn.ReLU()))

    folded, report = fold(model, [FuseBnPass()], example=torch.rand(2, 4, 9, 9))

    assert norms(folded) == 0
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-10
    assert max(each.absolute for each in report.outputs) < 1e-5


def test_signals_of_one_dimension_are_fused_too() -> None:
    model = excite_(nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)))

    folded, _ = fold(model, [FuseBnPass()], example=torch.rand(2, 2, 9))

    assert norms(folded) == 0


def test_own_blocks_are_fused_in_place() -> None:
    model = excite_(nn.Sequential(ConvBlock(3, 4, 3), ConvBlock(4, 4, 1)))

    folded, _ = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 8, 8))

    assert list(folded.state_dict()) == ["0.conv.weight", "0.conv.bias", "1.conv.weight", "1.conv.bias"]


def test_training_model_stays_as_it_is() -> None:
    model = ConvBlock(3, 4, 3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    fold(model, [FuseBnPass()], example=torch.rand(1, 3, 8, 8))

    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_folded_model_has_nothing_to_fold() -> None:
    folded, _ = fold(nn.Sequential(ConvBlock(3, 4)), [FuseBnPass()])

    assert FuseBnPass().plan(folded) == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnest14d", "tf_efficientnet_lite0"])
def test_timm_models_lose_all_their_norms(name: str) -> None:
    model = excite_(timm.create_model(name, features_only=True, pretrained=False))

    folded, report = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 64, 64))

    assert norms(folded) == 0
    assert not reasons(model)
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-9


def test_norm_in_an_outer_module_is_found() -> None:
    model = excite_(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity()), nn.Sequential(nn.BatchNorm2d(4))))

    plan = FuseBnPass().plan(model)
    folded, _ = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 4, 4))

    assert [(each.path, each.parts) for each in plan] == [("", ("0.0", "1.0"))]
    assert norms(folded) == 0


class Flow(nn.Module):
    """A convolution and a norm, and a forward to be given."""

    def __init__(self, forward: "Callable[[Flow, Tensor], Tensor]") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def looped(net: Flow, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: net.bn(net.conv(x).relu()), "made by relu, not by a convolution"),
        (lambda net, x: net.bn(net.conv(x) + x), "made by add"),
        (lambda net, x: net.bn(functional.conv2d(x, net.conv.weight)), "made by conv2d"),
        (lambda net, x: net.bn(y := net.conv(x)) + y, "the output of conv is read in 2 places"),
        (lambda net, x: net.bn(net.conv(net.conv(x))), "conv is called 2 times"),
        (lambda net, x: net.bn(net.conv(x)) + net.bn(net.other(x)), "bn is called 2 times"),
        (lambda net, x: net.bn(net.conv(x)) + net.conv.weight.sum(), "weights of conv are read by other code"),
        (lambda net, x: net.bn(x), "its input is not the output of a convolution"),
        (looped, "the flow through the model cannot be read"),
    ],
)
def test_norm_that_is_not_alone_after_a_convolution_stays(
    forward: Callable[[Flow, Tensor], Tensor], reason: str
) -> None:
    found = reasons(Flow(forward))

    assert len(found) == 1
    assert reason in found[0]


class Optional(nn.Module):
    """A forward whose argument, left out, puts a layer between convolution and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, rectify: bool = True) -> Tensor:
        out: Tensor = self.conv(x)
        if scale is None and rectify:
            out = out.relu()
        normed: Tensor = self.bn(out)
        return normed


def test_branch_of_the_default_arguments_is_the_one_that_counts() -> None:
    assert reasons(Optional()) == ["its input is made by relu, not by a convolution"]


def test_branch_that_the_surroundings_choose_counts_inside_of_a_model() -> None:
    model = excite_(Way(Optional(), lambda part, x: part(x, rectify=False)))

    folded, _ = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 4, 4))

    assert norms(folded) == 0


class Way(nn.Module):
    """A part, and a forward to be given."""

    def __init__(self, part: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.part = part
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.part, x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda block, x: block(x) + block.conv(x), "part.conv is called 2 times"),
        (lambda block, x: block(x) * block.conv.weight.sum(), "the weights of part.conv are read by other code"),
        (lambda block, x: block(x) * block.bn.weight.sum(), "the weights of part.bn are read by other code"),
        (lambda block, x: block(x) * block.bn.running_mean.sum(), "the weights of part.bn are read by other code"),
        (lambda block, x: block(x) + block.bn(x), "part.bn is called 2 times"),
        (lambda block, x: x + len(list(block.children())), "evaluation mode does not run it"),
    ],
)
def test_what_surrounds_a_block_is_seen(forward: Callable[..., Tensor], reason: str) -> None:
    model = excite_(Way(ConvBlock(3, 3), forward))

    folded, report = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 4, 4))

    assert [each.fold.reason for each in report.folds] == [reason]
    assert norms(folded) == 1


def test_parts_that_surrounding_code_joins_are_fused_in_the_module_that_runs() -> None:
    model = excite_(Way(nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]), lambda part, x: part[1](part[0](x))))

    folded, report = fold(nn.Sequential(model), [FuseBnPass()], example=torch.rand(1, 3, 4, 4))

    assert [(each.fold.path, each.fold.parts) for each in report.folds] == [("0", ("part.0", "part.1"))]
    assert norms(folded) == 0
    assert report.modules


def test_block_inside_of_what_cannot_be_read_is_fused_and_said_to_be_unsure() -> None:
    def asks(block: nn.Module, x: Tensor) -> Tensor:
        return block(x) if x.sum() > 0 else x

    model = excite_(nn.Sequential(ConvBlock(3, 3), Way(ConvBlock(3, 3), asks)))

    folded, report = fold(model, [FuseBnPass()], example=torch.rand(1, 3, 4, 4))

    assert norms(folded) == 0
    assert report.folds[0].fold.reason == "bn alone reads conv"
    assert "the flow through 1 cannot be read" in report.folds[1].fold.reason


def test_identity_branch_of_a_repconv_stays() -> None:
    plan = FuseBnPass().plan(nn.Sequential(ConvBlock(3, 4), RepConv(4, 4)))

    assert [each.path for each in plan if not each.applies] == ["1.identity"]


def test_shared_convolution_stays() -> None:
    conv = nn.Conv2d(3, 3, 1)

    assert reasons(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)))


def test_shared_weights_stay() -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight

    found = reasons(nn.Sequential(first, nn.BatchNorm2d(3), second, nn.BatchNorm2d(3)))

    assert found == ["the weights of a Conv2d are shared"] * 2


def test_norm_without_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))

    assert reasons(model) == ["it keeps no statistics, it uses those of each batch"]


def test_convolution_of_another_kind_stays() -> None:
    class Standardised(nn.Conv2d):
        pass

    model = nn.Sequential(Standardised(3, 3, 1), nn.BatchNorm2d(3))

    assert reasons(model) == ["Standardised may do more than a convolution"]


def test_convolution_with_hooks_stays() -> None:
    conv = nn.Conv2d(3, 3, 1)
    conv.register_forward_hook(lambda *_: None)

    assert reasons(nn.Sequential(conv, nn.BatchNorm2d(3))) == ["a Conv2d has hooks"]
