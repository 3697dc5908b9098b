"""Detectors that YOLOv7 is compared with: parameters and operations beside the published ones."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from detloom.assembly import assemble, check
from detloom.reparam import fold
from detloom.structures import HeadMaps, Targets

NARROW = {
    "yolox-s": {
        "backbone.stem": [[3, 1, 4]],
        "backbone.widths": [8, 8, 16, 16],
        "neck.widths": [8, 16, 16],
        "head.width": 8,
    },
    "yolov5s-style": {"backbone.stem": [[6, 2, 4]], "backbone.widths": [8, 8, 16, 16], "neck.widths": [8, 16, 16]},
    "yolov6s-style": {"backbone.stem": 4, "backbone.widths": [8, 8, 16, 16], "neck.widths": [4, 8, 8]},
    "yolor-csp": {
        "backbone.stem": [[3, 1, 4]],
        "backbone.widths": [4, 8, 8, 16, 16],
        "neck.widths": [8, 8, 16],
        "neck.outputs": [8, 16, 16],
    },
    "csp-vovnet": {
        "backbone.stem": [[3, 2, 4], [3, 2, 8]],
        "neck.top": 8,
        "neck.reduced": [8],
        "neck.outputs": [8, 16],
    },
}


@dataclass(frozen=True)
class Published:
    """Parameters in millions and GFLOPs as printed, at an image size, and which form they are of."""

    millions: float
    gflops: float
    size: int = 640
    deployed: bool = False


# Table 1 of the YOLOv7 paper, but for YOLOv6-S (its own paper's table 1) and YOLOX-S's parameters to two digits.
PUBLISHED = {
    "yolox-s": Published(8.97, 26.8),
    "yolov5s-style": Published(7.2, 16.5),
    "yolov6s-style": Published(17.2, 44.2, deployed=True),
    "yolor-csp": Published(52.9, 120.4),
    "csp-vovnet": Published(6.1, 6.9, size=416),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_within_one_percent_of_the_published_ones(name: str) -> None:
    published = PUBLISHED[name]

    report = check(name, {"data.image_size": published.size})

    parameters = report.deployed_parameters if published.deployed else report.training_parameters
    assert parameters / 1e6 == pytest.approx(published.millions, rel=0.01)
    assert report.deployed_gflops == pytest.approx(published.gflops, rel=0.01)
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("name", "training", "deployed"),
    [("yolox-s", 8_968_255, None), ("yolov5s-style", 7_235_389, 7_225_885), ("csp-vovnet", 6_056_606, None)],
)
def test_parameters_are_those_that_the_published_programs_print(name: str, training: int, deployed: int | None) -> None:
    report = check(name)

    assert report.training_parameters == training
    assert deployed in (None, report.deployed_parameters)


def test_assignment_is_that_of_the_published_method() -> None:
    used = {name: type(assemble(name, NARROW[name], num_classes=3).assigner).__name__ for name in NARROW}

    assert used["yolov5s-style"] == "AnchorRatioAssigner"
    assert used["yolov6s-style"] == "TaskAlignedAssigner"
    assert used["yolox-s"] == "SimotaAssigner"


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_one_trains_and_folds(name: str, excite_: Callable[[nn.Module], nn.Module]) -> None:
    detector = assemble(name, NARROW[name], num_classes=3).train()
    targets = Targets.from_lists(
        [torch.tensor([[10.0, 10, 50, 40]]), torch.tensor([[5.0, 30, 90, 90], [60, 60, 80, 90]])],
        [torch.tensor([0]), torch.tensor([1, 2])],
        (96, 96),
    )

    losses = detector(torch.rand(2, 3, 96, 96), targets)
    assert isinstance(losses, dict)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call] # torch types it not

    assert all(torch.isfinite(each.grad).all() for each in detector.parameters() if each.grad is not None)
    excite_(detector)
    folded, report = fold(detector, detector.passes, example=torch.rand(1, 3, 96, 64))
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-9


@pytest.mark.parametrize("name", NARROW)
def test_levels_have_the_shapes_that_they_are_said_to_have(name: str) -> None:
    detector = assemble(name, NARROW[name], num_classes=3).eval()

    maps = detector(torch.rand(1, 3, 64, 96))

    assert isinstance(maps, HeadMaps)
    assert [each.shape[2:] for each in maps.lead] == [(64 // stride, 96 // stride) for stride in detector.strides]


def test_repconv_in_reversed_residual_blocks_keeps_its_identity_and_in_the_original_ones_is_warned_of() -> None:
    passes = {"backbone.repconv": True, "reparam.passes": ["merge-repconv", "fuse-bn"]}

    original = check("yolov5s-style", passes)
    reversed_ = check("yolov5s-style", passes | {"backbone.order": "reduce-last"})
    planned = check("yolov5s-style", passes | {"reparam.passes": ["plan-repconv", "merge-repconv", "fuse-bn"]})

    # One for each bottleneck of the backbone.
    assert len(original.warnings) == 7
    assert "its identity reaches the addition with its own input in backbone.stages.0.1.chain.0" in original.warnings[0]
    assert reversed_.warnings == planned.warnings == ()
