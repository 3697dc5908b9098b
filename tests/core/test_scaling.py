"""The section ``[scaling]`` of a recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from detloom.artifacts import load_artifact, save_artifact
from detloom.assembly import assemble, check
from detloom.cli import cli
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Neck, Scaling
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe
from detloom.structures import Extent, FeatureSpec
from detloom.study.cells import checked_cells
from detloom.study.settings import load_study
from detloom.workshop import Workshop

COMPOUND = {"scaling.use": "compound", "scaling.depth": 2.0, "scaling.width": 1.5}


class SilentNeck(Neck):
    """Levels as they are; it says nothing of its settings."""

    def __init__(self, inputs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.out_specs = tuple(inputs)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels."""
        return tuple(levels)


class RigidNeck(Neck):
    """The finest level, joined with a constant of 24 channels, of which the fusion expects the level's width."""

    extents: ClassVar[Mapping[str, Extent]] = {"width": Extent.WIDTH}

    def __init__(self, inputs: Sequence[FeatureSpec], *, width: int = 24) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(inputs[0].channels, 24, 1)
        self.fuse = nn.Conv2d(2 * width, 8, 1)
        self.out_specs = (FeatureSpec(8, inputs[0].stride), *inputs[1:])

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels, the finest of them fused."""
        narrow_BCHW = self.narrow(levels[0])
        return (self.fuse(torch.cat((narrow_BCHW, narrow_BCHW), dim=1)), *levels[1:])


class MisnamedNeck(SilentNeck):
    extents: ClassVar[Mapping[str, Extent]] = {"widhts": Extent.WIDTH}


class StrangeScaling(Scaling):
    """Returns what nobody measures."""

    changes = frozenset({Extent.DEPTH})

    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return another activation."""
        del tables, extents
        return {"backbone.activation": "relu"}


def shop_with(**offers: type[Any]) -> Workshop:
    shop = Workshop(installed=())
    for name, cls in offers.items():
        shop.offer(name, cls)
    return shop


def test_scaling_makes_an_ordinary_recipe_of_which_each_origin_is_told() -> None:
    recipe = load_recipe("demo", COMPOUND)

    assert Kind.SCALING not in recipe.tables
    assert recipe.origins["neck.widths"] == "scaling 'compound'"
    assert load_recipe(recipe).tables == recipe.tables


def test_default_that_a_recipe_leaves_out_is_scaled() -> None:
    recipe = load_recipe("demo", {"head": {"use": "decoupled"}, "scaling.use": "width", "scaling.width": 2.0})

    assert recipe.tables[Kind.HEAD] == {"use": "decoupled", "width": 256}


def test_scaling_comes_after_inheritance_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "grown.toml").write_text('extends = "demo"\n[scaling]\nuse = "depth"\n')
    (tmp_path / "child.toml").write_text('extends = "grown.toml"\n[neck]\ndepth = 3\n')

    recipe = load_recipe(tmp_path / "child.toml", {"scaling.depth": 3.0})

    assert (recipe.tables[Kind.BACKBONE]["depth"], recipe.tables[Kind.NECK]["depth"]) == (6, 9)


def test_given_recipe_is_left_alone() -> None:
    given = load_recipe("demo", COMPOUND, scale=False)
    before = given.to_toml()

    load_recipe(given)

    assert given.to_toml() == before
    assert given.tables[Kind.SCALING]["use"] == "compound"


@pytest.mark.parametrize("scale", [False, True])
def test_artifact_of_a_scaled_network_computes_the_same(*, scale: bool, tmp_path: Path) -> None:
    images_BCHW = torch.rand(1, 3, 64, 64)
    recipe = load_recipe("demo", {**COMPOUND, "scaling.depth": 1.0}, scale=scale)
    detector = assemble(recipe, num_classes=2).eval()
    save_artifact(tmp_path / "scaled.safetensors", detector, recipe=recipe, names=("a", "b"))

    again = load_artifact(tmp_path / "scaled.safetensors").eval()

    with torch.inference_mode():
        for mine, theirs in zip(detector(images_BCHW).lead, again(images_BCHW).lead, strict=True):
            assert torch.equal(mine, theirs)


def test_check_counts_the_scaled_network_and_lists_what_changed() -> None:
    base, report = check("demo"), check("demo", {"scaling.use": "depth", "scaling.depth": 2.0})

    assert report.scaling == {"backbone.depth": (2, 4), "neck.depth": (2, 4)}
    assert report.training_parameters > base.training_parameters
    assert base.scaling == {}


def test_resolution_is_that_for_which_operations_are_counted() -> None:
    base, report = check("demo"), check("demo", {"scaling.use": "resolution", "scaling.resolution": 2.0})

    assert report.image_size == tuple(2 * side for side in base.image_size)
    assert report.training_parameters == base.training_parameters
    assert report.training_gflops == pytest.approx(4 * base.training_gflops)


def test_pictures_that_the_network_cannot_take_are_refused_with_the_multiple() -> None:
    with pytest.raises(RecipeError, match=r"(?s)its largest stride, 64.*`multiple` says of what sides are"):
        check("yolov7-w6", {"scaling.use": "resolution", "scaling.resolution": 0.33})


def test_component_that_says_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'silent' cannot be scaled: SilentNeck does not say .* `extents`"):
        load_recipe("demo", {"neck": {"use": "silent"}, "scaling.use": "width"}, shop=shop_with(silent=SilentNeck))


def test_pictures_can_be_larger_for_networks_that_say_nothing() -> None:
    recipe = load_recipe("demo", {"backbone": {"use": "timm"}, "scaling.use": "resolution"})

    assert recipe.data.image_size == 288  # the multiple of 32 next to 224 times 1.25, a half rounded up


def test_depth_that_the_taps_do_not_bear_is_refused_with_the_change() -> None:
    with pytest.raises(RecipeError) as caught:
        check("yolov7", {"scaling.use": "depth", "scaling.depth": 1.25})

    text = str(caught.value)
    assert "scaling 'depth' + yolov7 [backbone]: taps = 'even' needs an even depth, got 5" in text
    assert "overrides [scaling] made:\n    backbone.depth = 5, from 4\n" in text
    assert "neck.depth" not in text


def test_place_of_a_repconv_beyond_the_depth_is_refused_with_the_change() -> None:
    with pytest.raises(RecipeError, match=r"places of the chain, 1 to 1, got \[2\](.|\n)*backbone.depth = 1, from 2"):
        assemble("demo", {"backbone.repconv": [2], "scaling.use": "depth", "scaling.depth": 0.5}, num_classes=2)


def test_concatenation_that_breaks_is_refused_with_its_place_and_the_change() -> None:
    overrides = {"neck": {"use": "rigid"}, "scaling.use": "width", "scaling.width": 2.0}

    with pytest.raises(RecipeError) as caught:
        check("demo", overrides, shop=shop_with(rigid=RigidNeck))

    assert "demo: the network does not fit together in neck.fuse (Conv2d): " in str(caught.value)
    assert "    neck.width = 48, from 24\n" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"scaling.use": "compond"}, r"overrides \[scaling\]: no scaling is called 'compond'. Did you mean 'compound'"),
        ({"scaling.depth": 2.0}, r"overrides \[scaling\]: `use` must name a scaling; known scalings: compound, depth"),
        ({"scaling.use": "width", "scaling.depth": 2.0}, r"\[scaling\]: no setting is called 'depth'"),
        ({"scaling.use": "depth", "scaling.depth": 0.0}, r"\[scaling\]: depth must be a finite factor above 0"),
        ({"scaling.use": "depth", "neck.depth": "two"}, r"overrides \[neck\]: 'depth' is \"two\""),
    ],
)
def test_mistakes_are_told_with_their_place(overrides: dict[str, object], expected: str) -> None:
    for refuse in (load_recipe, check):
        with pytest.raises(RecipeError, match=expected):
            refuse("demo", overrides)


@pytest.mark.parametrize(
    ("overrides", "offers", "expected"),
    [
        ({"scaling.use": "strange"}, {"strange": StrangeScaling}, r"'strange' .* returned backbone.activation, which"),
        (
            {"neck": {"use": "misnamed"}, "scaling.use": "width"},
            {"misnamed": MisnamedNeck},
            r"MisnamedNeck: extents names 'widhts', but has no such setting",
        ),
    ],
)
def test_plugin_that_breaks_its_contract_is_named(
    overrides: dict[str, object], offers: dict[str, type[Any]], expected: str
) -> None:
    with pytest.raises(PluginError, match=expected):
        load_recipe("demo", overrides, shop=shop_with(**offers))


def test_cells_of_a_study_differ_in_a_factor(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        'recipe = "demo"\ndata = "data"\n[cells.twice]\n[cells.thrice]\n"scaling.depth" = 3.0\n'
        '[overrides]\n"scaling.use" = "depth"\n"scaling.depth" = 2.0\n'
    )

    cells = checked_cells(load_study(tmp_path / "study.toml"), num_classes=2)

    assert [cell.recipe.tables[Kind.NECK]["depth"] for cell in cells if cell.recipe] == [4, 6]


def test_both_forms_are_shown_and_each_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text('extends = "demo"\n[scaling]\nuse = "depth"\n')

    def shown(*options: str) -> str:
        result = CliRunner().invoke(cli, ["show", str(tmp_path / "deep.toml"), *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    written, made = shown(), shown("--scaled")

    assert "# backbone.depth = 4  # from 2\n" in written
    assert Recipe.from_toml(written, "shown").tables[Kind.SCALING] == {"use": "depth"}
    assert Recipe.from_toml(made, "shown").tables == load_recipe(tmp_path / "deep.toml").tables
    assert "# scaling 'depth'" in shown("--scaled", "--origin")
