"""From a detector to what exporters are given."""

import pytest
import torch
from export_cases import small_recipe
from trial_exporter import TrialExporter

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import ExportError, RecipeError
from detloom.export.fake_quantisation import PRODUCTS
from detloom.export.folding import canvas_of, deploy, modules_named, network_of
from detloom.export.targets import Chosen
from detloom.testing.exporter_trials import tiny_network

NETWORK = tiny_network()


class Rewriting(TrialExporter):
    passes = ("fuse-bn",)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return assemble(small_recipe(), num_classes=5)


def test_passes_are_the_recipes_then_the_users_then_the_exporters(detector: Detector) -> None:
    chosen = Chosen("mine", "mine", {}, Rewriting())

    deployed = deploy(detector, chosen, ["merge-e-elan"], example=None)

    assert deployed.passes == ("drop-auxiliary", "merge-repconv", "fold-implicit", "fuse-bn", "merge-e-elan")
    assert deployed.detector.passes == ()
    assert len(detector.passes) == 4


def test_misspelt_pass_of_an_exporter_is_told_to_be_its(detector: Detector) -> None:
    exporter = Rewriting()
    exporter.passes = ("fuse-bm",)

    with pytest.raises(RecipeError, match=r"the passes of the exporter 'mine': .* Did you mean 'fuse-bn'"):
        deploy(detector, Chosen("mine", "mine", {}, exporter), example=None)


def test_network_has_the_detectors_names_and_flat_maps(detector: Detector) -> None:
    network = network_of(detector.fuse(), (64, 96), ("backbone.stem.0.conv",))

    maps = network.module(network.example_BCHW())

    assert [tuple(each.shape[2:]) for each in maps] == [(8, 12), (4, 6), (2, 3)]
    assert network.map_names == ["stride8", "stride16", "stride32"]
    assert "backbone.stem.0.conv" in dict(network.module.named_modules())
    assert network.precise == ("backbone.stem.0.conv",)
    assert not network.module.training


@pytest.mark.parametrize(("asked", "size"), [(None, (64, 64)), (96, (96, 96)), ((64, 128), (64, 128))])
def test_canvas_is_as_asked_for_or_the_recipes(
    detector: Detector, asked: int | tuple[int, int] | None, size: tuple[int, int]
) -> None:
    assert canvas_of(detector, asked) == size


def test_canvas_that_strides_do_not_divide_is_refused(detector: Detector) -> None:
    with pytest.raises(RecipeError, match=r"--image-size: image_size is 65 x 65, .* the nearest is 64 x 64"):
        canvas_of(detector, 65)


def test_module_stands_for_all_layers_in_it_once() -> None:
    assert modules_named(NETWORK, ["stem", "stem.2", "deep.0"], PRODUCTS) == ("stem.0", "stem.2", "deep.0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("steem", r"--mixed steem: the deployed network has no module of that name\. Did you mean 'stem'"),
        ("steem", r"\n  its parts are: stem, body, pool, deep, enlarge, odd, fine_heads, coarse_heads$"),
        ("stem.7.conv", r"\n  in stem there are: 0, 1, 2, 3$"),
        ("pool", "--mixed pool: there is no convolution and no linear layer in this module"),
    ],
)
def test_module_without_layers_or_of_no_such_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        modules_named(NETWORK, [name], PRODUCTS)


def test_examples_to_trace_with_are_the_same_each_time() -> None:
    assert torch.equal(NETWORK.example_BCHW(2), NETWORK.example_BCHW(2))
