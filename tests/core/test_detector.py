"""The deployed form is kept between calls, and never older than the weights."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.structures import Targets


@pytest.fixture
def detector() -> Detector:
    return assemble("yolov7-tiny", num_classes=3)


def norm_of(detector: Detector) -> nn.BatchNorm2d:
    return next(each for each in detector.modules() if isinstance(each, nn.BatchNorm2d))


def write_through_data(detector: Detector) -> None:
    next(detector.parameters()).data.mul_(2)


def take_a_step(detector: Detector) -> None:
    with torch.no_grad():
        next(detector.parameters()).mul_(2)


def load(detector: Detector) -> None:
    detector.load_state_dict({name: tensor + 1 for name, tensor in detector.state_dict().items()})


def see_other_statistics(detector: Detector) -> None:
    norm_of(detector).get_buffer("running_mean").add_(1)


def replace_a_module(detector: Detector) -> None:
    detector.head = copy.deepcopy(detector.head)


def go_elsewhere_and_back(detector: Detector) -> None:
    detector.half().float()


def test_deployed_form_is_kept(detector: Detector) -> None:
    kept = detector.deployed()

    assert detector.deployed() is kept
    assert detector.eval().deployed("cpu") is kept


@pytest.mark.parametrize(
    "change",
    [write_through_data, take_a_step, load, see_other_statistics, replace_a_module, go_elsewhere_and_back],
)
def test_deployed_form_is_made_anew_after_a_change(detector: Detector, change: Callable[[Detector], None]) -> None:
    image_BCHW = torch.rand(1, 3, 64, 64)
    before = detector.deployed()

    change(detector)

    assert detector.deployed() is not before
    with torch.no_grad():
        expected, found = detector.eval().predictions(image_BCHW), detector.deployed().predictions(image_BCHW)
    torch.testing.assert_close(found.class_logits_BPC, expected.class_logits_BPC, rtol=1e-4, atol=1e-4)


def test_deployed_form_is_neither_saved_nor_copied(detector: Detector) -> None:
    keys, count = list(detector.state_dict()), len(list(detector.modules()))
    size = len(pickle.dumps(detector))

    kept = detector.deployed()

    assert (list(detector.state_dict()), len(list(detector.modules()))) == (keys, count)
    assert len(pickle.dumps(detector)) == size
    assert copy.deepcopy(detector).deployed() is not kept
    assert copy.copy(detector)._kept is None


def test_another_device_has_another_copy(detector: Detector) -> None:
    detector.deployed()

    assert next(detector.deployed("meta").parameters()).device.type == "meta"
    assert next(detector.deployed().parameters()).device.type == "cpu"


def test_losses_do_not_depend_on_the_order_in_which_an_image_lists_its_objects() -> None:
    torch.manual_seed(0)
    detector = assemble("yolov7-tiny", num_classes=3).eval()
    images_BCHW = torch.rand(2, 3, 64, 64)
    # Equal boxes, of one class and of two, make ties that position settles.
    boxes = [torch.tensor([[8.0, 8, 40, 40], [8, 8, 40, 40], [8, 8, 40, 40], [20, 30, 60, 62]]), torch.zeros(0, 4)]
    labels = [torch.tensor([2, 0, 0, 1]), torch.zeros(0)]
    order = torch.tensor([3, 1, 0, 2])

    straight = detector(images_BCHW, Targets.from_lists(boxes, labels, (64, 64)))
    shuffled = detector(
        images_BCHW, Targets.from_lists([boxes[0][order], boxes[1]], [labels[0][order], labels[1]], (64, 64))
    )

    assert all(torch.equal(loss, shuffled[name]) for name, loss in straight.items())
