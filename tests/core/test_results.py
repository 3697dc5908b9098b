"""Results of assigners and criteria are held against their contracts."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import PluginError
from detloom.interfaces import Assigner, Criterion
from detloom.structures import Assignment, Predictions, Targets

IMAGES_BCHW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = Targets.from_lists(
    [torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([[20.0, 30.0, 60.0, 62.0]])],
    [torch.tensor([0]), torch.tensor([2])],
    (64, 64),
)
ONE, OTHER = torch.tensor([0]), torch.tensor([1])
NO_TENSOR: Any = [0]
SOUND = Assignment(ONE, ONE, ONE, torch.ones(1))


class Given(Assigner):
    """Returns what it was given."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:  # noqa: ARG002 - the contract
        return self.result  # type: ignore[no-any-return]  # any wrong thing


class Costs(Criterion):
    """Returns what it was given."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:  # noqa: ARG002 - the contract
        return self.result  # type: ignore[no-any-return]  # any wrong thing


@pytest.fixture(scope="module")
def assembled() -> Detector:
    return assemble("yolov7-tiny", num_classes=3).train()


@pytest.fixture
def detector(assembled: Detector) -> Detector:
    return copy.deepcopy(assembled)


WRONG_ASSIGNMENTS: dict[str, tuple[Any, str]] = {
    "no assignment": ((ONE, ONE), "a tuple, not an Assignment"),
    "no tensor": (Assignment(NO_TENSOR, ONE, ONE, torch.ones(1)), r"image_M as \[0\], not one number"),
    "int32": (replace(SOUND, prior_M=ONE.int()), r"prior_M of shape \[1\] and torch.int32, not .* torch.int64"),
    "length": (replace(SOUND, quality_M=torch.ones(2)), r"quality_M of shape \[2\] .*, not of shape \[1\]"),
    "image": (replace(SOUND, image_M=ONE + 2), "image_M from 2 to 2, but there are 2 images: 0 to 1"),
    "prior": (replace(SOUND, prior_M=ONE + 252), "prior_M from 252 to 252, but there are 252 priors"),
    "target": (replace(SOUND, target_M=ONE - 1), "target_M from -1 to -1, but there are 2 targets"),
    "other image": (replace(SOUND, target_M=OTHER), "target_M lies in another image"),
    "gradient": (replace(SOUND, quality_M=torch.ones(1, requires_grad=True)), "quality_M with a gradient"),
    "ignored": (replace(SOUND, ignored_BP=torch.zeros(2, 252)), r"ignored_BP .* torch.float32, not .* torch.bool"),
}


@pytest.mark.parametrize(("result", "message"), WRONG_ASSIGNMENTS.values(), ids=WRONG_ASSIGNMENTS)
def test_wrong_assignment_names_class_and_field(detector: Detector, result: Any, message: str) -> None:
    detector.assigner = Given(result)

    with pytest.raises(PluginError, match=rf"test_results\.Given returned .*{message}"):
        detector(IMAGES_BCHW, TARGETS)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(()), "not a dict of at least one named loss"),
        ({}, "not a dict of at least one named loss"),
        ({"box": 1.0}, "loss 'box' as a float, not a tensor"),
        ({"box": torch.zeros(1)}, r"loss 'box' of shape \[1\] and torch.float32, not one"),
        ({"box": torch.tensor(1)}, r"loss 'box' of shape \[\] and torch.int64, not one"),
        ({3: torch.zeros(())}, "a loss called 3"),
    ],
)
def test_wrong_losses_name_class_and_loss(detector: Detector, result: Any, message: str) -> None:
    detector.criterion = Costs(result)

    with pytest.raises(PluginError, match=rf"test_results\.Costs returned .*{message}"):
        detector(IMAGES_BCHW, TARGETS)


def test_results_are_checked_in_the_first_batch_alone(detector: Detector) -> None:
    detector(IMAGES_BCHW, TARGETS)
    detector.assigner = Given(replace(SOUND, target_M=OTHER))

    losses = detector(IMAGES_BCHW, TARGETS)

    assert all(loss.isfinite() for loss in losses.values())
