"""Recipes to detectors."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detloom.assembly import assemble, check
from detloom.errors import RecipeError
from detloom.structures import HeadMaps, Targets

BACKBONES = {
    "elan": {},
    "timm": {"backbone.use": "timm", "backbone.model": "resnet18"},
}
HEADS = ("anchor", "decoupled")
ASSIGNERS = ("yolov7", "atss", "simota", "task-aligned", "fcos")
CRITERIA = ("yolov7", "yolox")


def small(
    backbone: str = "elan", head: str = "anchor", assigner: str = "yolov7", criterion: str = "yolov7"
) -> dict[str, object]:
    overrides: dict[str, object] = {**BACKBONES[backbone], "assigner.use": assigner, "criterion.use": criterion}
    if head != "anchor":
        overrides["head.use"] = head
    return overrides


def batch(images: int = 2, side: int = 64) -> tuple[torch.Tensor, Targets]:
    images_BCHW = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 30.0, 60.0, 62.0]]) for _ in range(images)]
    labels = [torch.tensor([0, 2]) for _ in range(images)]
    return images_BCHW, Targets.from_lists(boxes, labels, (side, side))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_combination_trains(backbone: str, head: str, assigner: str, criterion: str) -> None:
    torch.manual_seed(0)
    detector = assemble("yolov7-tiny", small(backbone, head, assigner, criterion), num_classes=3).train()
    images_BCHW, targets = batch()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-4)
    totals = []

    for _ in range(12):
        losses = detector(images_BCHW, targets)
        total: torch.Tensor = sum(losses.values(), torch.zeros(()))
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        totals.append(float(total.detach()))

    # Matches change from step to step, and with them what is divided by, so single steps may rise.
    assert sum(totals[-4:]) < sum(totals[:4])
    assert all(parameter.grad is not None for parameter in detector.parameters())


def test_counts_of_tiny_are_those_published() -> None:
    report = check("yolov7-tiny")

    assert report.training_parameters == 6_228_762
    assert report.deployed_parameters == 6_219_709
    assert report.deployed_gflops == pytest.approx(13.70, rel=1e-3)
    assert report.strides == (8, 16, 32)


def test_class_count_follows_names_and_recipe() -> None:
    assert assemble("yolov7-tiny", {"head.num_classes": 3}).head.num_classes == 3
    assert assemble("yolov7-tiny", names=["a", "b"]).names == ("a", "b")
    with pytest.raises(RecipeError, match=r"num_classes is 3, but the data or the caller has 2 classes"):
        assemble("yolov7-tiny", {"head.num_classes": 3}, names=["a", "b"])


def test_settings_of_all_slots_are_complained_of_together() -> None:
    overrides = {"assigner.candidats": 3, "criterion.box": "much", "neck.spp": 3}

    with pytest.raises(RecipeError) as caught:
        assemble("yolov7-tiny", overrides)

    message = str(caught.value)
    assert "no setting is called 'candidats'. Did you mean 'candidates'?" in message
    assert "'box' is \"much\"" in message
    assert "'spp' is 3" in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"train.freeze": ["bakcbone"]}, "the model has no part 'bakcbone'. Did you mean 'backbone'?"),
        ({"train.optimizer": "sdg"}, "timm knows no 'sdg'"),
        ({"train.schedule": "step"}, "decay_epochs"),
        ({"observers.csv.foo": 1}, "no setting is called 'foo'"),
        ({"head.num_clases": 3}, "overrides [head]: no setting is called 'num_clases'. Did you mean 'num_classes'?"),
        ({"ema.decai": 0.9}, "no setting is called 'decai'. Did you mean 'decay'?"),
        ({"augment.extra": [{"use": "Blurr"}]}, "Blurr"),
        ({"reparam.passes": [{"use": "fuse-bn", "x": 1}]}, "no setting is called 'x'"),
    ],
)
def test_check_finds_what_only_training_would_meet(overrides: dict[str, object], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check("yolov7-tiny", overrides)

    assert expected in str(caught.value)


def test_mistakes_of_every_section_come_together_and_once() -> None:
    overrides: dict[str, object] = {
        "assigner.use": "atts",
        "criterion.bxo": 1,
        "ema.decai": 0.9,
        "train.optimizer": "sdg",
        "augment.extra": [{"use": "Blurr"}],
        "data.holdout": 2,
        "observers.csw.path": "a",
        "observers.csv": 3,
        "reparam.passes": ["fuse-bm", 3],
    }

    with pytest.raises(RecipeError) as caught:
        check("yolov7-tiny", overrides)

    message = str(caught.value)
    wrong = (
        "'atts'",
        "'bxo'",
        "'decai'",
        "no 'sdg'",
        "'Blurr'",
        "'holdout' is 2",
        "'csw'",
        "'csv' must",
        "'fuse-bm'",
        "3 names",
    )
    assert [message.count(each) for each in wrong] == [1] * len(wrong)
    assert message.endswith("freeze and the size of pictures are checked when this is mended.")


def test_missing_slot_says_what_to_add(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("[data]\nimage_size = 64\n", encoding="utf-8")

    with pytest.raises(RecipeError, match=r"empty: a detector needs a backbone; add \[backbone\] with `use`, one of: "):
        assemble(path)


def test_size_that_the_strides_do_not_divide_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"image_size is 330 x 330, .* the nearest is 320 x 320"):
        check("yolov7-tiny", {"data.image_size": 330})


def test_fused_detector_gives_the_same_predictions() -> None:
    torch.manual_seed(0)
    detector = assemble("yolov7-tiny", num_classes=3)
    images_BCHW, _ = batch(4)
    detector.train()
    for _ in range(3):
        detector(images_BCHW)
    detector.eval()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}

    fused = detector.fuse()

    with torch.no_grad():
        expected, found = detector.predictions(images_BCHW), fused.predictions(images_BCHW)
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4, rtol=1e-4, atol=5e-3)
    torch.testing.assert_close(found.class_logits_BPC, expected.class_logits_BPC, rtol=1e-4, atol=1e-4)
    assert not any("BatchNorm" in type(module).__name__ for module in fused.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())


def test_deep_copy_shares_no_weight_but_the_recipe() -> None:
    detector = assemble("yolov7-tiny", num_classes=3)

    twin = copy.deepcopy(detector)

    ours = {parameter.data_ptr() for parameter in detector.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in twin.parameters()}
    assert twin.recipe is detector.recipe


def test_forward_gives_maps_without_targets_and_losses_with_them() -> None:
    detector = assemble("yolov7-tiny", num_classes=3)
    images_BCHW, targets = batch()

    assert isinstance(detector(images_BCHW), HeadMaps)
    assert set(detector(images_BCHW, targets)) == {"box", "objectness", "class"}


def test_head_without_suppression_asks_for_a_one_to_one_assigner(monkeypatch: pytest.MonkeyPatch) -> None:
    head_class = type(assemble("yolov7-tiny", num_classes=3).head)
    built = head_class.__init__

    def one_to_one(self: Any, *args: Any, **settings: Any) -> None:
        built(self, *args, **settings)
        self.traits = replace(self.traits, one_to_one=True)

    monkeypatch.setattr(head_class, "__init__", one_to_one)

    with pytest.raises(RecipeError, match="take a one-to-one assigner"):
        assemble("yolov7-tiny", num_classes=3)
