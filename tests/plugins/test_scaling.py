"""Scalings: the published models that they make, and what components say of their settings."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from detloom.assembly import check
from detloom.catalogue import bundled_rows
from detloom.cli import cli
from detloom.errors import RecipeError
from detloom.kinds import Kind
from detloom.ops.scaling import deepened, rescaled, snapped
from detloom.recipe import load_recipe, parse_override
from detloom.settings import settings_model
from detloom.structures import Extent
from detloom.workshop import workshop
from detloom_plugins.compound_scaling import CompoundScaling
from detloom_plugins.resolution_scaling import ResolutionScaling
from detloom_plugins.width_scaling import WidthScaling

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
NETWORK = (Kind.BACKBONE, Kind.NECK, Kind.HEAD)
TABLES = {
    "backbone": {"stem": [[3, 2, 20], [3, 1, 64]], "hidden": [32, 64], "depth": 4},
    "head": {"anchors": [[[12, 16]], [[36.5, 75]]]},
    "data": {"image_size": [640, 384]},
}
EXTENTS = {
    "backbone.stem.*.2": Extent.WIDTH,
    "backbone.hidden": Extent.HIDDEN,
    "backbone.depth": Extent.DEPTH,
    "head.anchors": Extent.LENGTH,
    "data.image_size": Extent.IMAGE,
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading of the page."""
    below = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def recipe_and_overrides(command: str) -> tuple[str, dict[str, Any]]:
    """Return what a command line in code marks names."""
    recipe, *options = shlex.split(command.strip("`"))
    return recipe, dict(parse_override(each) for each in options if each != "--set")


@pytest.mark.parametrize("row", rows("Published models"), ids=lambda row: row[1].strip("`"))
def test_published_models_are_scaled_ones(row: list[str]) -> None:
    recipe, overrides = recipe_and_overrides(row[0])

    made, published = load_recipe(recipe, overrides), load_recipe(row[1].strip("`"))

    for kind in NETWORK:
        assert made.tables[kind] == published.tables[kind]


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if row[0] == "base" else pytest.mark.slow, id=row[0]) for row in rows("Table 3")],
)
def test_counts_of_table_3_are_those_of_the_page_and_near_the_papers(row: list[str]) -> None:
    _, command, parameters, gflops, paper, paper_gflops, *_ = row

    report = check(*recipe_and_overrides(command))

    assert (f"{report.deployed_parameters:,}", f"{report.deployed_gflops:.2f}") == (parameters, gflops)
    # The paper has one digit behind the point, and counts biases as operations: up to half a per cent more.
    assert report.deployed_parameters / 1e6 == pytest.approx(float(paper), abs=0.051)
    assert 0.995 < report.deployed_gflops / float(paper_gflops) < 1


@pytest.mark.slow
def test_check_shows_d6_by_its_count() -> None:
    command = "check yolov7-e6 --set scaling.use=compound --set scaling.depth=1.3333 --set scaling.width=1.2 --json"

    result = CliRunner().invoke(cli, command.split())

    assert '"training": 154709364,' in result.stdout


@pytest.mark.slow
def test_counts_of_yolox_l_are_reached_from_s() -> None:
    report = check("yolox-s", {"scaling.use": "compound", "scaling.depth": 3.0, "scaling.width": 2.0})

    # YOLOX (2021), table 3: 54.2 M.
    assert f"{report.training_parameters / 1e6:.1f}" == "54.2"


def test_refusal_on_the_page_is_what_is_printed() -> None:
    (transcript,) = re.findall(r"^```console\n\$ detloom (.*)\n((?:.*\n)*?)```$", PAGE.read_text("utf-8"), re.MULTILINE)

    assert CliRunner().invoke(cli, shlex.split(transcript[0])).output == transcript[1]


def test_compound_leaves_widths_inside_blocks() -> None:
    assert CompoundScaling(depth=1.5, width=1.25).scale(TABLES, EXTENTS) == {
        "backbone.stem": [[3, 2, 24], [3, 1, 80]],
        "backbone.depth": 6,
    }


@pytest.mark.parametrize(("factor", "other"), [("depth", "width"), ("width", "depth")])
def test_compound_with_one_factor_alone_is_refused(factor: str, other: str) -> None:
    with pytest.raises(RecipeError, match=rf"{factor} is scaled and {other} is not: give both"):
        check("yolov7-tiny", {"scaling.use": "compound", f"scaling.{factor}": 1.0})


def test_width_scales_those_inside_blocks_too() -> None:
    assert WidthScaling(width=1.25, multiple=4).scale(TABLES, EXTENTS) == {
        "backbone.stem": [[3, 2, 24], [3, 1, 80]],
        "backbone.hidden": [40, 80],
    }


def test_anchors_grow_with_pictures() -> None:
    assert ResolutionScaling(resolution=1.3).scale(TABLES, EXTENTS) == {
        "head.anchors": [[[15.6, 20.8]], [[47.45, 97.5]]],
        "data.image_size": [832, 512],
    }


def test_anchors_of_any_fraction_stay_where_pictures_do() -> None:
    tables = {**TABLES, "head": {"anchors": [[[12.345, 6.789]]]}}

    assert ResolutionScaling(resolution=1.0).scale(tables, EXTENTS) == {}


@pytest.mark.parametrize(
    ("value", "factor", "expected"),
    [(64, 1.25, 80), (64, 1.2, 80), (20, 1.0, 20), (0, 2.0, 0), (64, 0.01, 8), (20, 1.25, 24), (36, 1.0001, 40)],
)
def test_widths_snap_to_the_nearest_multiple(value: int, factor: float, expected: int) -> None:
    assert snapped(value, factor, 8) == expected


@pytest.mark.parametrize(
    ("value", "factor", "expected"), [(6, 1.3333, 8), (3, 0.5, 2), (1, 0.3, 1), (0, 2.0, 0), (4, 1.25, 5)]
)
def test_depths_are_whole(value: int, factor: float, expected: int) -> None:
    assert deepened(value, factor) == expected


def test_what_stays_as_it_is_is_not_returned() -> None:
    assert rescaled(TABLES, EXTENTS, {Extent.DEPTH: lambda depth: depth}) == {}


@pytest.mark.parametrize("row", [row for row in bundled_rows() if row.kind in NETWORK], ids=lambda row: row.name)
def test_what_bundled_components_say_are_numbers(row: Any) -> None:
    cls = workshop().component(Kind(row.kind), row.name)

    # A timm model has a size by its name.
    assert (cls.extents is None) == (row.name == "timm")
    fields = settings_model(cls).model_fields
    for path in cls.extents or ():
        hint = str(fields[path.partition(".")[0]].annotation)
        assert re.search(r"\b(int|float)\b", hint), f"{path} is {hint}"
