"""Recipes to detectors."""

import copy
from pathlib import Path

import pytest
import torch

from detloom.assembly import assemble, check
from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.ops.iou import overlap
from detloom.structures import HeadMaps, Targets

BACKBONES: dict[str, dict[str, object]] = {
    "elan": {},
    "timm": {"backbone.use": "timm", "backbone.model": "resnet18"},
}
HEADS: dict[str, dict[str, object]] = {
    "anchor": {},
    "anchor without objectness": {"head.objectness": False},
    "decoupled": {"head.use": "decoupled"},
    "decoupled without objectness": {"head.use": "decoupled", "head.objectness": False},
    "distribution": {"head.use": "distribution"},
}
ASSIGNERS = ("yolov7", "atss")
OTHER_ASSIGNERS = ("anchor-ratio", "fcos", "hungarian", "max-iou", "paa", "simota", "task-aligned")
# Whether they learn an objectness.
CRITERIA = {"yolov7": True, "yolox": True, "focal": False, "quality-focal": False, "varifocal": False}

PAIRS = [(head, criterion) for head in HEADS for criterion in CRITERIA]


def fits(head: str, criterion: str) -> bool:
    return CRITERIA[criterion] == (head in {"anchor", "decoupled"})


def small(
    backbone: str = "elan", head: str = "anchor", assigner: str = "yolov7", criterion: str = "yolov7"
) -> dict[str, object]:
    return {**BACKBONES[backbone], **HEADS[head], "assigner.use": assigner, "criterion.use": criterion}


def batch(images: int = 2, side: int = 64) -> tuple[torch.Tensor, Targets]:
    images_BCHW = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 30.0, 60.0, 62.0]]) for _ in range(images)]
    labels = [torch.tensor([0, 2]) for _ in range(images)]
    return images_BCHW, Targets.from_lists(boxes, labels, (side, side))


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize(("head", "criterion"), [pair for pair in PAIRS if fits(*pair)])
def test_every_combination_trains(head: str, criterion: str, assigner: str) -> None:
    assert_trains(small("elan", head, assigner, criterion))


@pytest.mark.parametrize("assigner", OTHER_ASSIGNERS)
@pytest.mark.parametrize(
    ("head", "criterion"), [("anchor", "yolov7"), ("decoupled", "yolox"), ("distribution", "varifocal")]
)
def test_every_assigner_trains_every_head(head: str, criterion: str, assigner: str) -> None:
    # One prior an object learns slower than several do.
    steps = 40 if assigner == "hungarian" else 15

    assert_trains(small("elan", head, assigner, criterion), steps)


@pytest.mark.parametrize("inner", [{"use": "hungarian"}, {"use": "task-aligned", "candidates": 1}])
def test_head_without_suppression_trains(inner: dict[str, object]) -> None:
    assigner = {"use": "independent", "inner": inner, "auxiliary": {"use": "task-aligned"}}

    assert_trains({"head": {"use": "one-to-one"}, "assigner": assigner, "criterion": {"use": "varifocal"}})


@pytest.mark.parametrize(
    ("head", "criterion"), [("anchor", "yolov7"), ("decoupled", "yolox"), ("distribution", "varifocal")]
)
def test_heads_train_on_backbones_of_others(head: str, criterion: str) -> None:
    assert_trains(small("timm", head, "atss", criterion))


def assert_trains(overrides: dict[str, object], steps: int = 15) -> None:
    """Assert that the objects of one batch are found better and better, and that every parameter has a gradient."""
    torch.manual_seed(0)
    detector = assemble("demo", overrides, num_classes=3).train()
    images_BCHW, targets = batch()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    before = found_by(detector, images_BCHW, targets)

    for _ in range(steps):
        losses = detector(images_BCHW, targets)
        total: torch.Tensor = sum(losses.values(), torch.zeros(()))
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()

    # Not the losses: where boxes weigh as much as they overlap, these rise with the overlap at first.
    assert found_by(detector, images_BCHW, targets) > 1.5 * before
    assert all(parameter.grad is not None for parameter in detector.parameters())


@torch.no_grad()
def found_by(detector: Detector, images_BCHW: torch.Tensor, targets: Targets) -> float:
    """Return the best score times IoU of the boxes for each object, as a mean over the objects."""
    predictions = detector.predictions(images_BCHW)
    score_BPC = predictions.class_logits_BPC.sigmoid()
    if predictions.objectness_BP is not None:
        score_BPC = score_BPC * predictions.objectness_BP.sigmoid()[..., None]
    score_TP = score_BPC[targets.image_T, :, targets.labels_T]
    iou_TP = overlap(targets.boxes_T4[:, None], predictions.boxes_BP4[targets.image_T])
    return (score_TP * iou_TP).amax(dim=1).mean().item()


@pytest.mark.parametrize(("head", "criterion"), [pair for pair in PAIRS if not fits(*pair)])
def test_criterion_and_head_that_differ_on_the_objectness_are_refused(head: str, criterion: str) -> None:
    reason = "it learns an objectness, which" if CRITERIA[criterion] else "it learns no objectness, but"
    remedy = "objectness = true" if CRITERIA[criterion] else "objectness = false"

    with pytest.raises(RecipeError) as caught:
        check("demo", small("elan", head, "atss", criterion))

    assert f"[criterion]: '{criterion}' cannot serve the head" in str(caught.value)
    assert reason in str(caught.value)
    assert f"set {remedy} in [head]" in str(caught.value)


def test_counts_of_tiny_are_those_published() -> None:
    report = check("yolov7-tiny")

    assert report.training_parameters == 6_228_762
    assert report.deployed_parameters == 6_219_709
    assert report.deployed_gflops == pytest.approx(13.70, rel=1e-3)
    assert report.strides == (8, 16, 32)


def test_class_count_follows_names_and_recipe() -> None:
    assert assemble("yolov7-tiny", {"head.num_classes": 3}).head.num_classes == 3
    assert assemble("yolov7-tiny", names=["a", "b"]).names == ("a", "b")
    with pytest.raises(
        RecipeError, match=r"^overrides \[head\]: num_classes is 3, but the data or the caller has 2 classes"
    ):
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


def test_mistakes_of_one_section_come_together() -> None:
    overrides = {
        "train.optimizer": "sdg",
        "train.epochs": 0,
        "train.lerning_rate": 0.1,
        "data.part": 1,
        "train.init_from": "no.safetensors",
        "train.schedule": "step",
        "train.decay_epochs": "late",
        "augment.extra": [{"use": "Blurr"}],
        "augment.mixup": 2,
    }

    with pytest.raises(RecipeError) as caught:
        check("yolov7-tiny", overrides)

    wrong = (
        "no 'sdg'",
        "'epochs' is 0",
        "'lerning_rate'",
        "no.safetensors",
        "'decay_epochs' is",
        "'Blurr'",
        "'mixup' is 2",
        "'part' is 1, but with fraction = 1 there is only the part 0; for 2 equal parts, set fraction = 0.5",
    )
    assert [str(caught.value).count(each) for each in wrong] == [1] * len(wrong)
    assert "needs decay_epochs" not in str(caught.value)


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


def test_head_without_suppression_asks_for_a_one_to_one_assigner() -> None:
    with pytest.raises(RecipeError, match=r"'atss' cannot serve the head 'one-to-one': .*take a one-to-one assigner"):
        assemble("demo", {"head.use": "one-to-one", "assigner.use": "atss", "criterion.use": "focal"}, num_classes=3)
