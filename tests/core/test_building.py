"""Components inside components, and files of initial weights."""

from pathlib import Path

import pytest
import torch

from detloom.artifacts import load_artifact, save_artifact
from detloom.assembly import assemble, check
from detloom.building import build, components_of, settings_complaints
from detloom.catalogue import bundled_rows
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.kinds import Kind
from detloom.recipe import load_recipe
from detloom.structures import Assignment, Predictions, Targets
from detloom.workshop import Workshop


class Wrapper(Assigner):
    def __init__(self, *, inner: Assigner, weight: float = 0.5) -> None:
        self.inner = inner
        self.weight = weight

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return self.inner.assign(predictions, targets)


@pytest.fixture
def shop() -> Workshop:
    shop = Workshop(rows=bundled_rows(), installed=(), disabled=())
    shop.offer("wrapper", Wrapper)
    return shop


def test_setting_typed_as_a_contract_is_built_from_its_table(shop: Workshop) -> None:
    table = {"use": "wrapper", "inner": {"use": "wrapper", "inner": {"use": "atss", "candidates": 5}}}

    built = build(Kind.ASSIGNER, table, shop=shop)

    assert built.inner.inner.candidates == 5


def test_mistakes_in_nested_settings_are_told_with_the_others(shop: Workshop) -> None:
    table = {"use": "wrapper", "weigth": 1.0, "inner": {"use": "atss", "candidats": 5}}

    complaints = settings_complaints(Kind.ASSIGNER, table, lambda key: f"my.toml [assigner] ({key})", shop)

    assert "no setting is called 'weigth'. Did you mean 'weight'?" in complaints[0]
    assert complaints[1].startswith("my.toml [assigner] (inner) inner: no setting is called 'candidats'.")


def test_setting_that_a_component_takes_by_position_is_told_so(shop: Workshop) -> None:
    class Positional(Wrapper):
        def __init__(self, weight: float = 0.5) -> None:
            self.weight = weight

    shop.offer("positional", Positional)

    complaints = settings_complaints(Kind.ASSIGNER, {"use": "positional", "weight": 1.0}, lambda _key: "my.toml", shop)

    assert complaints[1] == (
        "my.toml: Positional takes 'weight' by position, and settings are keyword-only; "
        "its author must write (self, *, weight=...)"
    )


def test_unknown_nested_name_is_suggested(shop: Workshop) -> None:
    with pytest.raises(RecipeError, match=r"no assigner is called 'atts'\. Did you mean 'atss'"):
        build(Kind.ASSIGNER, {"use": "wrapper", "inner": {"use": "atts"}}, shop=shop)


def test_nested_components_count_among_those_of_a_recipe(shop: Workshop) -> None:
    overrides = {"assigner": {"use": "wrapper", "inner": {"use": "atss"}}}

    recipe = load_recipe("yolov7-tiny", overrides, shop=shop)

    assert {(Kind.ASSIGNER, "wrapper"), (Kind.ASSIGNER, "atss")} <= set(components_of(recipe, shop))


def test_artifact_of_a_backbone_with_initial_weights_needs_their_file_no_more(tmp_path: Path) -> None:
    weights = tmp_path / "resnet.pth"
    overrides = {"backbone.use": "timm", "backbone.model": "resnet18"}
    plain = assemble("yolov7-tiny", overrides, num_classes=2)
    torch.save({k.removeprefix("net."): v for k, v in plain.backbone.state_dict().items()}, weights)
    recipe = load_recipe("yolov7-tiny", {**overrides, "backbone.checkpoint": str(weights)})
    detector = assemble(recipe, num_classes=2)
    save_artifact(tmp_path / "a.safetensors", detector, recipe=recipe, names=("a", "b"))
    weights.unlink()

    loaded = load_artifact(tmp_path / "a.safetensors")

    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in detector.state_dict().items())


def test_check_needs_no_weights() -> None:
    overrides = {"backbone.use": "timm", "backbone.model": "resnet18", "backbone.checkpoint": "absent.pth"}

    assert check("yolov7-tiny", overrides).training_parameters > 0


def test_swapping_one_component_leaves_the_initial_weights_of_the_others() -> None:
    torch.manual_seed(3)
    plain = assemble("yolov7-tiny", num_classes=2)
    torch.manual_seed(3)
    swapped = assemble("yolov7-tiny", {"backbone.taps": "even"}, num_classes=2)

    assert all(torch.equal(a, b) for a, b in zip(plain.head.parameters(), swapped.head.parameters(), strict=True))


def test_two_detectors_of_one_process_start_from_different_weights() -> None:
    first, second = (assemble("yolov7-tiny", num_classes=2) for _ in range(2))

    assert not torch.equal(next(first.parameters()), next(second.parameters()))
