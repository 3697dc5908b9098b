from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from detloom.assembly import assemble
from detloom.errors import PluginError
from detloom.interfaces import Backbone
from detloom.reparam import fold, replace_submodule_
from detloom.structures import FeatureSpec
from detloom_plugins.spp_cascade import SppCascadePass

Forward = Callable[["Pools", Tensor], object]


class Pools(nn.Module):
    """Pools of several windows, and a forward to be given."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.five, self.nine = nn.MaxPool2d(5, 1, 2), nn.MaxPool2d(9, 1, 4)
        self.pools = nn.ModuleList([nn.MaxPool2d(13, 1, 6), nn.MaxPool2d(9, 1, 4), nn.MaxPool2d(5, 1, 2)])
        self.act = nn.ReLU(inplace=True)
        self.way = forward

    def forward(self, x_BCHW: Tensor) -> object:
        return self.way(self, x_BCHW)


def pool(x_BCHW: Tensor, window: int, *, stride: int = 1, padding: int | None = None, dilation: int = 1) -> Tensor:
    return functional.max_pool2d(x_BCHW, window, stride, window // 2 if padding is None else padding, dilation)


def picture(height: int = 17, width: int = 11) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


class Windows(TorchDispatchMode):
    """Notes the windows of the pools that are run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch types it not
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten.max_pool2d_with_indices.default:
            self.found.append(args[1][0])
        return func(*args, **(kwargs or {}))


def windows(model: nn.Module) -> list[int]:
    noted = Windows()
    with noted, torch.no_grad():
        model(picture())
    return noted.found


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.cat([x, *(each(x) for each in net.pools)], dim=1),
        lambda _, x: torch.cat([x, *(pool(x, window) for window in (5, 9, 13))], dim=1),
        lambda net, x: (net.pools[0](x), pool(x, 5), torch.max_pool2d(x, (9, 9), (1, 1), (4, 4))),
        lambda _, x: [functional.max_pool2d(x, kernel_size=k, stride=1, padding=k // 2) for k in (13, 9, 5)],
    ],
    ids=["modules", "functions", "both, not concatenated", "keywords, the largest first"],
)
def test_windows_of_5_9_and_13_become_three_of_5_with_the_same_bits(forward: Forward) -> None:
    model = nn.Sequential(Pools(forward))

    folded, report = fold(model, [SppCascadePass()], example=picture())

    assert [each.fold.reason for each in report.folds] == ["windows 5, 9, 13 of one input as 5, 5, 5 in a row"]
    assert windows(folded) == [5, 5, 5]
    assert {each.absolute for each in (*report.outputs, *report.modules)} == {0.0}


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 40)])
def test_borders_of_small_maps_are_the_same(size: tuple[int, int]) -> None:
    model = Pools(lambda net, x: [each(x) for each in net.pools])

    folded, report = fold(model, [SppCascadePass()], example=picture(*size))

    assert windows(folded) == [5, 5, 5]
    assert {each.absolute for each in report.outputs} == {0.0}


def test_windows_of_other_sizes_take_the_steps_between_them() -> None:
    model = Pools(lambda _, x: [pool(x, 3), pool(x, 9), pool(x, 9)])

    folded, report = fold(model, [SppCascadePass()], example=picture())

    assert report.folds[0].fold.reason == "windows 3, 9 of one input as 3, 7 in a row"
    assert windows(folded) == [3, 7]


def test_pyramid_on_a_window_of_another_is_rewritten_too() -> None:
    def forward(_: Pools, x_BCHW: Tensor) -> list[Tensor]:
        five = pool(x_BCHW, 5)
        return [five, pool(x_BCHW, 9), pool(five, 3), pool(five, 7)]

    folded, report = fold(Pools(forward), [SppCascadePass()], example=picture())

    assert {each.absolute for each in report.outputs} == {0.0}
    assert max(windows(folded)) == 5
    assert not any(each.applies for each in SppCascadePass().plan(folded))


@pytest.mark.parametrize(
    "forward",
    [
        lambda _, x: [pool(x, 5), pool(x + 1, 9)],
        lambda _, x: [pool(x, 5), pool(x, 5)],
        lambda _, x: [pool(x, 5), pool(x, 9, padding=3)],
        lambda _, x: [pool(x, 5), pool(x, 9, stride=2)],
        lambda _, x: [pool(x, 5), pool(x, 3, padding=2 // 2, dilation=2)],
        lambda _, x: [pool(x, 5), functional.max_pool2d(x, 9, 1, 4, ceil_mode=True)],
        lambda _, x: [pool(x, 5), functional.max_pool2d(x, (9, 5), 1, (4, 2))],
        lambda _, x: [pool(x, 5), functional.max_pool2d(x, 4, 1, 2)],
        lambda _, x: [pool(x, 5), functional.max_pool2d(x, 9, 1, 4, return_indices=True)[1]],
        lambda _, x: [pool(x, 5), functional.avg_pool2d(x, 9, 1, 4)],
    ],
    ids=[
        *("other input", "one window", "other padding", "stride", "dilation", "ceil mode"),
        *("not square", "even", "indices", "average"),
    ],
)
def test_pools_that_make_no_pyramid_are_left_alone(forward: Forward) -> None:
    assert SppCascadePass().plan(Pools(forward)) == []


def test_pool_that_is_used_elsewhere_keeps_its_window_there() -> None:
    model = Pools(lambda net, x: [net.five(x), net.nine(x), net.nine(x * x)])

    folded, report = fold(model, [SppCascadePass()], example=picture())

    assert windows(folded) == [5, 5, 9]
    assert {each.absolute for each in report.outputs} == {0.0}


def test_input_that_is_changed_in_place_between_the_pools_is_refused() -> None:
    plan = SppCascadePass().plan(Pools(lambda net, x: [net.five(x), net.act(x), net.nine(x)]))

    assert [(each.applies, each.reason) for each in plan] == [
        (False, "act changes the input of its pools in place, between them")
    ]


def test_result_that_is_changed_in_place_later_is_taken_before() -> None:
    def forward(net: Pools, x_BCHW: Tensor) -> list[Tensor]:
        five = net.five(x_BCHW)
        return [net.act(five), net.nine(x_BCHW)]

    _, report = fold(Pools(forward), [SppCascadePass()], example=picture())

    assert {each.absolute for each in report.outputs} == {0.0}


def test_pool_with_a_hook_is_left_alone() -> None:
    model = Pools(lambda net, x: [net.five(x), net.nine(x)])
    model.nine.register_forward_hook(lambda _, __, output: output + 1)

    assert SppCascadePass().plan(model) == []


def test_forward_that_cannot_be_read_is_named_where_it_may_have_a_pyramid() -> None:
    (place,) = SppCascadePass().plan(Pools(lambda net, x: net.five(x) if x.sum() > 0 else net.nine(x)))

    assert not place.applies
    assert "its forward cannot be read by itself" in place.reason


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7"])
def test_bundled_pyramids_are_in_a_row_already(name: str) -> None:
    with torch.device("meta"):
        model = assemble(name, num_classes=2)

    plan = SppCascadePass().plan(model)

    assert [(each.path, each.reason) for each in plan] == [("neck.spp.pyramid", "its windows are in a row already")]


def test_parallel_pyramid_in_a_detector_gives_the_bits_of_the_bundled_one() -> None:
    detector = assemble("demo", num_classes=2).eval()
    parallel = Pools(lambda _, x: tuple(pool(x, window) for window in (5, 9, 13)))
    other = replace_submodule_(assemble("demo", num_classes=2).eval(), "neck.spp.pyramid", parallel)
    other.load_state_dict(detector.state_dict())

    folded, report = fold(other, [SppCascadePass()], example=torch.rand(1, 3, 96, 64))

    assert [each.fold.path for each in report.folds if each.fold.applies] == ["neck.spp.pyramid"]
    with torch.no_grad():
        for found, expected in zip(folded(images := torch.rand(1, 3, 64, 96)).lead, detector(images).lead, strict=True):
            assert torch.equal(found, expected)


class PoolingBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.out_specs = (FeatureSpec(3, 1), FeatureSpec(3, 1))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return pool(images_BCHW, 5), pool(images_BCHW, 9)


def test_module_that_must_keep_its_class_is_left_with_the_reason() -> None:
    (place,) = SppCascadePass().plan(PoolingBackbone())

    assert not place.applies
    assert place.reason.startswith("it is the backbone, of which more is used than its forward")


def test_wrong_place_is_refused_by_the_proof() -> None:
    class Wrong(SppCascadePass):
        def fold(self, module: nn.Module, fold: object) -> nn.Module:
            del module, fold
            return Pools(lambda _, x: [pool(x, 5), pool(x, 7)])

    with pytest.raises(PluginError, match="differs"):
        fold(Pools(lambda _, x: [pool(x, 5), pool(x, 9)]), [Wrong()], example=picture())
