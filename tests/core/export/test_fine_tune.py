"""Training with rounded numbers: what changes, what stays, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_cases import small_artifact, small_data, small_recipe
from torch import nn

from detloom.artifacts import load_artifact
from detloom.data.splits import open_split
from detloom.detector import Detector
from detloom.engine.progress import SilentView
from detloom.errors import ExportError
from detloom.export.fake_quantisation import rounded_weight
from detloom.export.fine_tune import fine_tuned, rounded_
from detloom.testing.exporter_trials import pictures, tiny_network

SIZE = (64, 64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return load_artifact(small_artifact(tmp_path_factory.mktemp("artifact") / "best.safetensors"))


def tune(detector: Detector, folder: Path, names: tuple[str, ...] | None = None) -> Detector:
    train = open_split(small_data(folder / "data"), "train")
    return fine_tuned(
        detector,
        train if names is None else replace(train, names=names),
        small_recipe(),
        epochs=1,
        size=SIZE,
        images_BCHW=torch.rand(2, 3, *SIZE),
        view=SilentView(),
    )


def test_network_computes_with_rounded_weights_and_is_as_it_was_afterwards() -> None:
    network = tiny_network()
    calibration_BCHW, images_BCHW = pictures()
    layer = network.module.get_submodule("stem.0")
    assert isinstance(layer, nn.Conv2d)
    before = {name: each.clone() for name, each in network.module.state_dict().items()}
    expected = network.module(images_BCHW)

    with rounded_(network.module, calibration_BCHW):
        weight = layer.weight.detach().clone()
        found = network.module(images_BCHW)
    again = network.module(images_BCHW)

    torch.testing.assert_close(weight, rounded_weight(before["stem.0.weight"], layer))
    assert not torch.equal(found[0], expected[0])
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))
    after = network.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_ranges_follow_what_is_seen_in_training_alone() -> None:
    network = tiny_network()
    calibration_BCHW, images_BCHW = pictures()

    with rounded_(network.module, calibration_BCHW), torch.no_grad():
        before = network.module(images_BCHW)[0]
        network.module(images_BCHW * 50)
        unmoved = network.module(images_BCHW)[0]
        network.module.train()
        network.module(images_BCHW * 50)
        network.module.eval()
        moved = network.module(images_BCHW)[0]

    assert torch.equal(before, unmoved)
    assert not torch.equal(before, moved)


def test_weights_have_learned_and_are_plain_floats(trained: Detector, tmp_path: Path) -> None:
    folded = trained.fuse()
    before = {name: each.clone() for name, each in folded.state_dict().items()}

    tuned = tune(folded, tmp_path)

    after = tuned.state_dict()
    assert list(after) == list(before)
    weights = [name for name, each in before.items() if each.dim() == 4]
    assert all(not torch.equal(before[name], after[name]) for name in weights)
    assert all(each.isfinite().all() for each in after.values())
    # At a hundredth of the recipe's rate, a network stays what it is.
    assert all((after[name] - before[name]).abs().max() < 1e-3 for name in weights)
    assert not any(module._forward_hooks for module in tuned.modules())
    assert not tuned.training
    assert all(torch.equal(each, folded.state_dict()[name]) for name, each in before.items())


def test_network_with_batch_norms_is_refused_with_what_to_do(trained: Detector, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"starts from a folded network, and in this one 55 batch norms are left \(ba"
    ):
        tune(trained, tmp_path)


def test_classes_in_another_order_are_refused(trained: Detector, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"in another order, and cannot be learned from; the order must be coin, die"):
        tune(trained.fuse(), tmp_path, names=tuple(reversed(trained.names)))
