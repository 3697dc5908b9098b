"""YOLOv7-tiny in forms that small chips like: what it is made of, that it trains, and what is deployed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detloom.assembly import assemble, check
from detloom.recipe import load_recipe
from detloom.reparam import fold
from detloom.structures import Targets

NARROW: dict[str, Any] = {
    "backbone.stem": [[3, 2, 8], [3, 2, 8]],
    "backbone.hidden": [4, 4, 8, 8],
    "backbone.widths": [8, 8, 16, 16],
    "neck.hidden": [4, 4, 8],
    "neck.widths": [8, 8, 16],
    "neck.outputs": [8, 16, 16],
}
RECIPES = {"yolov7-tiny-relu6": nn.ReLU6, "yolov7-tiny-npu": nn.ReLU}


@pytest.mark.parametrize(("name", "activation"), RECIPES.items())
def test_one_activation_throughout(name: str, activation: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = assemble(name)

    found = {type(each) for each in model.modules() if "activation" in type(each).__module__}

    assert found == {activation}


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_and_operations_are_those_of_yolov7_tiny(name: str) -> None:
    found, tiny = check(name), check("yolov7-tiny")

    assert replace(found, recipe=tiny.recipe) == tiny


def test_npu_recipe_has_small_windows_and_widths_in_multiples_of_32() -> None:
    with torch.device("meta"):
        model = assemble("yolov7-tiny-npu").fuse()

    convs = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    inner = [
        each for name, each in model.named_modules() if isinstance(each, nn.Conv2d) and not name.startswith("head")
    ]

    assert {each.kernel_size for each in convs} == {(1, 1), (3, 3)}
    assert {each.stride for each in convs} == {(1, 1), (2, 2)}
    assert {each.groups for each in convs} == {1}
    assert all(each.out_channels % 32 == 0 for each in inner)
    assert load_recipe("yolov7-tiny-npu").data.image_size == 640


@pytest.mark.parametrize("name", RECIPES)
def test_a_narrow_one_learns_and_is_deployed_equal(name: str, excite_: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    detector = assemble(name, NARROW, num_classes=2).train()
    images = torch.rand(2, 3, 64, 64)
    targets = Targets.from_lists(
        [torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([[5.0, 30, 60, 60]])],
        [torch.tensor([0]), torch.tensor([1])],
        (64, 64),
    )
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        named = detector(images, targets)
        assert isinstance(named, dict)
        loss = torch.stack(list(named.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch types it not
        optimizer.step()
        losses.append(loss.item())

    folded, report = fold(excite_(detector), detector.passes, example=images)

    assert losses[-1] < losses[0]
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert max(each.relative for each in report.outputs if each.precision == "float64") < 1e-12


def test_npu_recipe_deploys_a_map_for_each_branch() -> None:
    detector = assemble("yolov7-tiny-npu", NARROW, num_classes=2)

    spec = detector.fuse().head.decode_spec()

    assert [each["outputs"] for each in spec["maps"][:3]] == [["center", "size"], ["objectness"], ["classes"]]
