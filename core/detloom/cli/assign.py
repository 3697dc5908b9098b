"""``detloom assign``: which priors assigners take for the objects of a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    complete_recipe,
    echo_json,
    json_option,
    plugin_option,
    refuse_fixed_settings,
    set_option,
)
from detloom.errors import RecipeError

if TYPE_CHECKING:
    from detloom.data.records import Annotations
    from detloom.detector import Detector

__all__ = ["command"]

ARTIFACT = ".safetensors"
EXAMPLE = '{ use = "atss", candidates = 9 }'


@click.command(name="assign")
@click.argument("recipe", metavar="RECIPE_OR_ARTIFACT", shell_complete=complete_recipe)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set: a folder or a file.")
@click.option("--image", metavar="NAME", help="File name of a picture; the first with objects when not given.")
@click.option("--split", help="Which split; the recipe's [data] val when not given.")
@click.option(
    "--assigner",
    "assigners",
    multiple=True,
    metavar="NAME_OR_TABLE",
    help="May be repeated; the recipe's if not given.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights of a recipe.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("assign"), show_default=True
)
@plugin_option
@set_option
@json_option
def command(
    recipe: str,
    *,
    data: Path,
    image: str | None,
    split: str | None,
    assigners: tuple[str, ...],
    seed: int,
    out: Path,
    plugins: tuple[Path, ...],
    overrides: dict[str, Any],
    as_json: bool,
) -> None:
    """Draw which priors each assigner takes for each object, with soft labels: a PNG and an HTML page.

    A recipe has weights drawn at random; give an artifact to see what its predictions lead to.

    \b
    detloom assign yolov7-tiny --data data/bccd --assigner atss --assigner '{ use = "yolov7", candidates = 20 }'
    """
    tables = [_table(text) for text in assigners]
    from detloom.durable import write_text
    from detloom.explain.matches import explain, find_image
    from detloom.explain.page import page
    from detloom.explain.sheet import sheet
    from detloom.pictures import make_directory, write_picture

    detector, annotations = _opened(recipe, data, split, overrides, seed, plugins=plugins)
    record = find_image(annotations, image)
    assert detector.recipe is not None  # noqa: S101 - it was made of one
    explained = explain(detector, record, tables or [detector.recipe.tables["assigner"]])
    make_directory(out)
    picture, document = out / f"{record.path.stem}.png", out / f"{record.path.stem}.html"
    write_picture(picture, sheet(explained))
    write_text(document, page(explained))
    if as_json:
        counts = [
            {"assigner": each.title, "role": str(each.role), "matches": len(each.matches)} for each in explained.methods
        ]
        echo_json({"image": str(record.path), "methods": counts, "picture": str(picture), "page": str(document)})
        return
    for method in explained.methods:
        without = len(explained.boxes) - len({match.target for match in method.matches})
        click.echo(
            f"{method.title}, {method.role}: {len(method.matches)} matches for {len(explained.boxes)} objects"
            + (f"; {without} without any" if without else "")
        )
    click.echo(f"wrote {picture} and {document}")


def _table(text: str) -> Mapping[str, Any]:
    from detloom.recipe import USE, parse_value

    value = parse_value(text, given="--assigner", example=f"--assigner '{EXAMPLE}'")
    table = {USE: value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or USE not in table:
        raise RecipeError(f"--assigner {text}: give a name, as atss, or a table, as '{EXAMPLE}'")
    return table


def _opened(
    recipe: str,
    data: Path,
    split: str | None,
    overrides: Mapping[str, Any],
    seed: int,
    *,
    plugins: tuple[Path, ...],
) -> "tuple[Detector, Annotations]":
    """Return the detector, with the classes of the data, and the split."""
    from detloom.recipe import load_recipe

    if recipe.endswith(ARTIFACT):
        from detloom.artifacts import load_artifact

        refuse_fixed_settings(overrides)
        detector = load_artifact(recipe, plugins=plugins)
        assert detector.recipe is not None  # noqa: S101 - an artifact has one
        detector.recipe = load_recipe(detector.recipe, overrides)
        annotations = _split(detector.recipe, data, split)
        if annotations.names != detector.names:
            raise RecipeError(
                f"{recipe}: knows the classes {', '.join(detector.names)}, but {data} has "
                f"{', '.join(annotations.names)}. Give the data it was trained on, or a recipe."
            )
        return detector, annotations
    loaded = load_recipe(recipe, overrides, plugins=plugins)
    annotations = _split(loaded, data, split)
    import torch

    from detloom.assembly import assemble

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return assemble(loaded, names=annotations.names), annotations


def _split(recipe: Any, data: Path, split: str | None) -> "Annotations":
    from detloom.data.splits import open_split

    return open_split(data, split or recipe.data.val, recipe.tables.get("dataset"))
