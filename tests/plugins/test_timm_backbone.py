from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from detloom.errors import ArtifactError, RecipeError
from detloom.structures import FeatureSpec
from detloom_plugins.timm_backbone import TimmBackbone


@pytest.mark.parametrize(
    ("model", "channels"),
    [("resnet18", (128, 256, 512)), ("mobilenetv3_small_050", (16, 24, 288)), ("convnext_atto", (80, 160, 320))],
)
def test_levels_have_the_widths_and_strides_that_are_announced(model: str, channels: tuple[int, ...]) -> None:
    backbone = TimmBackbone(model=model)

    levels = backbone(torch.rand(1, 3, 64, 96))

    assert backbone.out_specs == tuple(map(FeatureSpec, channels, (8, 16, 32)))
    assert [level.shape for level in levels] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


def test_maps_with_channels_last_are_turned() -> None:
    backbone = TimmBackbone(
        model="swin_tiny_patch4_window7_224", strides=[8, 16], options={"img_size": 64, "depths": [1, 1, 1, 1]}
    )

    levels = backbone(torch.rand(1, 3, 64, 64))

    assert [level.shape for level in levels] == [(1, 192, 8, 8), (1, 384, 4, 4)]


def test_stages_behind_the_last_level_are_left_out() -> None:
    deep, shallow = TimmBackbone(), TimmBackbone(strides=[4, 8])

    assert not any("layer3" in name for name in shallow.state_dict())
    assert any("layer4" in name for name in deep.state_dict())


def test_pictures_are_normalised_as_the_model_was_trained() -> None:
    backbone = TimmBackbone().eval()
    plain = TimmBackbone(normalise=False).eval()
    plain.load_state_dict(backbone.state_dict())
    images = torch.rand(1, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    normalised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    assert torch.allclose(backbone(images)[0], plain(normalised)[0], atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto"])
def test_weights_of_the_whole_model_are_taken(suffix: str, model: str, tmp_path: Path) -> None:
    whole: Any = timm.create_model(model, pretrained=False).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(whole.state_dict(), path)
    else:
        torch.save({"state_dict": whole.state_dict()}, path)

    backbone = TimmBackbone(model=model, checkpoint=str(path), normalise=False).eval()

    images = torch.rand(1, 3, 64, 64)
    expected = whole.forward_features(images)
    assert torch.allclose(backbone(images)[-1], expected, atol=1e-5)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), path)

    with pytest.raises(ArtifactError, match=r"of timm's 'resnet18' are not there.*another model"):
        TimmBackbone(checkpoint=str(path))


def test_checkpoint_that_is_no_file_is_refused() -> None:
    with pytest.raises(ArtifactError, match="weights are never downloaded"):
        TimmBackbone(checkpoint="nowhere.pth")


def test_checkpoint_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Path}, path)

    with pytest.raises(ArtifactError, match="no weights can be read from it safely"):
        TimmBackbone(checkpoint=str(path))


def test_misspelt_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"has no model 'resnet81'. Did you mean 'resnet"):
        TimmBackbone(model="resnet81")


def test_absent_strides_are_named() -> None:
    with pytest.raises(RecipeError, match=r"levels of strides \[16\], not of \[8, 32\]"):
        TimmBackbone(model="vit_tiny_patch16_224")
    with pytest.raises(RecipeError, match="ascending and different"):
        TimmBackbone(strides=[16, 8])


def test_unknown_option_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"cannot be used as a backbone.*colour"):
        TimmBackbone(options={"colour": 1})
