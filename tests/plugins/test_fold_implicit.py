import pytest
import torch
from torch import nn

from detloom.errors import PluginError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom_plugins.anchor_head import ImplicitConv
from detloom_plugins.fold_implicit import FoldImplicitPass


def model() -> nn.Sequential:
    conv = ImplicitConv(nn.Conv2d(4, 6, 1))
    nn.init.normal_(conv.add)
    nn.init.normal_(conv.multiply)
    return nn.Sequential(nn.Conv2d(3, 4, 1), conv)


def test_folded_convolution_is_plain_and_equal() -> None:
    net = model()

    folded, report = fold(net, [FoldImplicitPass()], example=torch.rand(2, 3, 5, 5))

    assert type(folded[1]) is nn.Conv2d
    assert max(each.absolute for each in report.modules if each.precision == "float64") < 1e-12


def test_constants_are_added_before_the_bias_is_scaled() -> None:
    net = model()
    assert isinstance(net[1], ImplicitConv)
    conv, add, multiply = net[1].conv, net[1].add, net[1].multiply
    assert conv.bias is not None
    expected = multiply * (conv.bias + conv.weight.flatten(1) @ add)

    folded, _ = fold(net, [FoldImplicitPass()])

    assert torch.allclose(folded.state_dict()["1.bias"], expected, atol=1e-6)


def test_folded_model_has_nothing_to_fold() -> None:
    folded, _ = fold(model(), [FoldImplicitPass()])

    assert FoldImplicitPass().plan(folded) == []


def test_implicit_convolution_in_two_places_stays() -> None:
    conv = ImplicitConv(nn.Conv2d(4, 4, 1))

    folded, report = fold(nn.Sequential(conv, conv), [FoldImplicitPass()], example=torch.rand(2, 4, 5, 5))

    assert [each.fold.reason for each in report.folds] == ["an ImplicitConv stands in several places"]
    assert isinstance(folded[0], ImplicitConv)


def test_convolution_of_two_implicit_ones_stays() -> None:
    first, second = ImplicitConv(nn.Conv2d(4, 4, 1)), ImplicitConv(nn.Conv2d(4, 4, 1))
    second.conv = first.conv

    _, report = fold(nn.Sequential(first, second), [FoldImplicitPass()], example=torch.rand(2, 4, 5, 5))

    assert [each.fold.reason for each in report.folds] == ["a Conv2d stands in several places"] * 2


def test_other_modules_are_refused() -> None:
    with pytest.raises(PluginError, match="has no implicit knowledge"):
        FoldImplicitPass().fold(nn.Conv2d(1, 1, 1), Fold("", applies=True, reason=""))
