import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import assemble
from detloom.reparam import fold
from detloom_plugins.own_graph import own_graph
from detloom_plugins.square import SquarePass

Forward = Callable[[Tensor], Tensor]


class Maths(nn.Module):
    """A forward to be given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.way = forward

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.way(x_BCHW)


class Normalised(nn.Module):
    """Channels scaled by how large they are: the mean of squares, a weight, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.full((3, 1, 1), 0.5))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.conv(x_BCHW)
        return x_BCHW + self.gain * y_BCHW / torch.sqrt((y_BCHW**2).mean(dim=(2, 3), keepdim=True) + 1e-6)


def numbers() -> Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 1e3


def operations(model: nn.Module) -> list[object]:
    return [node.target for node in own_graph(model).nodes if node.op in ("call_function", "call_method")]


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x**2,
        lambda x: x**2.0,
        lambda x: torch.pow(x, 2),
        lambda x: torch.pow(x, exponent=2),
        lambda x: x.pow(2),
        torch.square,
        lambda x: x.square(),
    ],
    ids=["operator", "real exponent", "function", "keyword", "method", "square", "method square"],
)
def test_square_becomes_a_product_with_the_same_bits(forward: Forward) -> None:
    folded, report = fold(Maths(forward), [SquarePass()], example=numbers())

    assert operations(folded) == [operator.mul]
    assert {each.absolute for each in report.outputs} == {0.0}


@pytest.mark.parametrize(
    "forward",
    [lambda x: x**3, lambda x: x**0.5, lambda x: 2**x, lambda x: x**x, lambda x: torch.pow(2, x), lambda x: x * x],
    ids=["cube", "root", "of two", "of itself", "function of two", "product"],
)
def test_other_powers_stay(forward: Forward) -> None:
    assert SquarePass().plan(Maths(forward)) == []


def test_square_inside_a_module_with_weights_is_found_and_keeps_their_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Normalised())

    folded, report = fold(model, [SquarePass()], example=numbers())

    assert [(each.fold.path, each.fold.reason) for each in report.folds] == [("1", "1 square as products")]
    assert list(folded.state_dict()) == list(model.state_dict())
    assert operator.pow not in operations(folded.get_submodule("1"))
    assert {each.absolute for each in report.outputs} == {0.0}


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-w6", "yolox-s"])
def test_no_bundled_network_has_squares(name: str) -> None:
    with torch.device("meta"):
        model = assemble(name, num_classes=2)

    assert SquarePass().plan(model) == []
