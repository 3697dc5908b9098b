from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import assemble
from detloom.interfaces import ReparamPass
from detloom.reparam import fold
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import ConvBlock, SpaceToDepth
from detloom_plugins.space_to_depth_conv import SpaceToDepthConvPass

Excite = Callable[[nn.Module], nn.Module]
Forward = Callable[[Tensor], Tensor]
NARROW_W6 = {
    "backbone.stem": [[3, 1, 8]],
    "backbone.hidden": [4] * 5,
    "backbone.widths": [8] * 5,
    "neck.hidden": [8] * 4,
    "neck.widths": [8] * 4,
    "neck.outputs": [8] * 4,
    "neck.auxiliary": [8] * 4,
}


class Sliced(nn.Module):
    """A forward to be given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.way = forward

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.way(x_BCHW)


def picture(channels: int = 3, height: int = 12, width: int = 8) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def by_rows(x_BCHW: Tensor) -> Tensor:
    return torch.cat([x_BCHW[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)], dim=1)


def by_threes(x_BCHW: Tensor) -> Tensor:
    return torch.cat([x_BCHW[..., row::3, column::3] for column in (2, 1, 0) for row in (1, 0, 2)], 1)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(12, 5, 3, padding=1),
        nn.Conv2d(12, 5, 3, padding=1, bias=False),
        nn.Conv2d(12, 5, 1),
        nn.Conv2d(12, 5, 3, 2, 1),
        nn.Conv2d(12, 5, (3, 1), padding=(1, 0)),
        nn.Conv2d(12, 5, 5, padding=3),
    ],
    ids=["3x3", "without bias", "1x1", "strided", "not square", "wide padding"],
)
def test_one_convolution_equals_both(conv: nn.Conv2d) -> None:
    folded, report = fold(nn.Sequential(SpaceToDepth(), conv), [SpaceToDepthConvPass()], example=picture())

    (wide,) = (each for each in folded.modules() if isinstance(each, nn.Conv2d))
    assert isinstance(folded.get_submodule("0"), nn.Identity)
    assert wide.kernel_size == tuple(2 * side for side in conv.kernel_size)
    assert wide.stride == tuple(2 * step for step in conv.stride)
    assert wide.weight.numel() == conv.weight.numel()
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-14


@pytest.mark.parametrize(
    ("moving", "factor"),
    [(Sliced(by_rows), 2), (Sliced(by_threes), 3), (nn.PixelUnshuffle(2), 2), (nn.PixelUnshuffle(3), 3)],
    ids=["rows first", "threes in any order", "pixel unshuffle", "pixel unshuffle of threes"],
)
def test_any_order_of_the_pixels_is_read_off_what_the_module_does(moving: nn.Module, factor: int) -> None:
    model = nn.Sequential(moving, nn.Conv2d(2 * factor**2, 4, 3, padding=1))

    folded, report = fold(model, [SpaceToDepthConvPass()], example=picture(2, 12, 6))

    assert folded.get_submodule("1").weight.shape == (4, 2, 3 * factor, 3 * factor)
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-14


def test_weights_by_hand() -> None:
    conv = nn.Conv2d(4, 1, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)

    folded, _ = fold(nn.Sequential(SpaceToDepth(), conv), [SpaceToDepthConvPass()])

    # Down each column first, then across.
    assert folded.state_dict()["1.weight"].squeeze().tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("passes", list(permutations([SpaceToDepthConvPass(), FuseBnPass()])))
def test_order_with_fuse_bn_does_not_matter(passes: tuple[ReparamPass, ...], excite_: Excite) -> None:
    model = excite_(nn.Sequential(SpaceToDepth(), ConvBlock(12, 4, 3)))

    folded, report = fold(model, passes, example=picture())

    assert [list(each.weight.shape) for each in folded.modules() if isinstance(each, nn.Conv2d)] == [[4, 3, 6, 6]]
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-13


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(12, 4, 3, groups=2), "has 2 groups"),
        (nn.Conv2d(12, 4, 3, padding=2, dilation=2), "is dilated"),
        (nn.Conv2d(12, 4, 3, padding=1, padding_mode="reflect"), "pads by reflect, not by numbers"),
        (nn.Conv2d(12, 4, 3, padding="same"), "pads by 'same', not by numbers"),
        (nn.BatchNorm2d(12), "no convolution reads its output"),
    ],
    ids=["groups", "dilation", "reflection", "same", "no convolution"],
)
def test_layer_that_cannot_take_the_pixels_is_left_with_the_reason(conv: nn.Module, reason: str) -> None:
    (place,) = SpaceToDepthConvPass().plan(nn.Sequential(SpaceToDepth(), conv))

    assert not place.applies
    assert reason in place.reason


class Wired(nn.Module):
    """Space to depth, two convolutions, and a forward to be given."""

    def __init__(self, forward: Callable[["Wired", Tensor], Tensor]) -> None:
        super().__init__()
        self.moving = SpaceToDepth()
        self.conv, self.other = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1)
        self.way = forward

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.way(self, x_BCHW)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda net, x: net.conv(y := net.moving(x)) + net.other(y), "its output is read in 2 places"),
        (lambda net, x: net.conv(net.moving(x)) + net.other(net.moving(x + 1)), "it is called 2 times"),
        (lambda net, x: net.conv(net.moving(x)) + net.conv.weight.sum(), "has weights that other code reads"),
        (lambda net, x: net.conv(net.moving(x)) + net.conv(torch.cat([x] * 4, 1)).sum(), "is called 2 times"),
        (lambda net, x: net.conv(net.moving(x).relu()), "no convolution reads its output"),
        (lambda net, x: net.conv(net.moving(x)) if x.sum() > 0 else x, "the flow through the model cannot be read"),
    ],
)
def test_pair_that_is_not_alone_stays(forward: Callable[[Wired, Tensor], Tensor], reason: str) -> None:
    (place,) = SpaceToDepthConvPass().plan(Wired(forward))

    assert not place.applies
    assert reason in place.reason


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: torch.cat([x[..., row::2, column::2] for row in (0, 1) for column in (0, 0)], 1),
        lambda x: torch.cat([x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 2),
        lambda x: torch.cat([x[..., row:8:2, column::2] for row in (0, 1) for column in (0, 1)], 1),
        lambda x: torch.cat([x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1).relu(),
        lambda x: torch.cat([x.relu()[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1),
        lambda x: torch.cat([x[..., column::2] for column in (0, 1)], 1),
        lambda x: x,
    ],
    ids=["a pixel twice", "rows side by side", "an end", "more after", "more before", "columns alone", "nothing"],
)
def test_what_only_looks_like_space_to_depth_is_none(forward: Forward) -> None:
    assert SpaceToDepthConvPass().plan(nn.Sequential(Sliced(forward), nn.Conv2d(12, 4, 1))) == []


def test_stem_of_yolov7_w6_becomes_one_convolution_of_6x6(excite_: Excite) -> None:
    detector = assemble("yolov7-w6", NARROW_W6, num_classes=2)
    excite_(detector)

    folded, report = fold(detector, [*detector.passes, SpaceToDepthConvPass()], example=torch.rand(1, 3, 128, 64))

    assert ("backbone.stem", "0 and 1.conv as one 6x6 convolution") in [
        (each.fold.path, each.fold.reason) for each in report.folds if each.fold.applies
    ]
    conv = folded.get_submodule("backbone.stem.1.conv")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride, conv.padding) == ((6, 6), (2, 2), (2, 2))
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-12
