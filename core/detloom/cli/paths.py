"""``detloom paths``: how gradients come to each layer of a detector."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    complete_recipe,
    echo_json,
    json_option,
    plugin_option,
    print_table,
    refuse_fixed_settings,
    set_option,
)
from detloom.errors import ArtifactError, RecipeError, suggest

if TYPE_CHECKING:
    from detloom.detector import Detector
    from detloom.paths.analysis import Analysis
    from detloom.paths.graph import PathGraph
    from detloom.paths.meetings import Meeting

__all__ = ["command"]

ARTIFACT = ".safetensors"
PAGE, PICTURES = ".html", (".png", ".jpg")


@click.command(name="paths")
@click.argument("recipe", metavar="RECIPE_OR_ARTIFACT", shell_complete=complete_recipe)
@click.option("--deployed", is_flag=True, help="Of the form after the recipe's reparam passes, not the training form.")
@click.option(
    "--output", "outputs", multiple=True, metavar="NAME", help="From this output alone, as 'lead 8'; may be repeated."
)
@click.option(
    "-o",
    "--out",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the network: a picture (.png) or a page (.html); may be repeated.",
)
@click.option("--stages", "stages_only", is_flag=True, help="Print the stages, not every layer and meeting.")
@plugin_option
@set_option
@json_option
def command(
    recipe: str,
    *,
    deployed: bool,
    outputs: tuple[str, ...],
    files: tuple[Path, ...],
    stages_only: bool,
    plugins: tuple[Path, ...],
    overrides: dict[str, Any],
    as_json: bool,
) -> None:
    """Show how gradients come to each layer: lengths, numbers, steps and sources of their paths.

    Lengths are in layers with weights, the layer itself counted; norms, activations and poolings are
    passed by. Needs no data and no weights.

    \b
    detloom paths yolov7-tiny -o paths.png -o paths.html
    """
    _check_suffixes(files)
    from detloom.paths.analysis import analyse
    from detloom.paths.meetings import meetings
    from detloom.paths.telling import as_data, layer_table, meeting_table, stage_table, summary

    detector, is_folded = _opened(recipe, overrides, plugins)
    form = "deployed" if deployed or is_folded else "training"
    title = f"{Path(recipe).stem}, {form} form"
    graph = _chosen(_traced(detector, is_folded=is_folded, deployed=deployed), outputs)
    analysis, joined = analyse(graph), list(meetings(graph))
    _draw(files, graph, analysis, joined, title=title)
    if as_json:
        echo_json({"source": recipe, "form": form, **as_data(analysis, joined), "files": [str(file) for file in files]})
        return
    click.echo("\n".join((title, *summary(analysis, joined))))
    if not stages_only:
        print_table(layer_table(analysis), layer_table(analysis, is_short=True))
        print_table(meeting_table(joined))
    print_table(stage_table(analysis))
    for file in files:
        click.echo(f"wrote {file}")


def _check_suffixes(files: tuple[Path, ...]) -> None:
    for file in files:
        if file.suffix.lower() not in (PAGE, *PICTURES):
            raise ArtifactError(f"{file}: give --out a name that ends in {PAGE} or {', '.join(PICTURES)}")
        if not file.absolute().parent.is_dir():
            raise ArtifactError(f"{file}: there is no directory {file.parent}; make it first, or choose another place")


def _draw(
    files: tuple[Path, ...], graph: "PathGraph", analysis: "Analysis", joined: "list[Meeting]", *, title: str
) -> None:
    """Write each file in the form that its suffix names."""
    from detloom.durable import write_text
    from detloom.paths.drawing import sheet
    from detloom.paths.page import page
    from detloom.pictures import write_picture

    for file in files:
        if file.suffix.lower() == PAGE:
            write_text(file, page(graph, analysis, joined, title))
        else:
            write_picture(file, sheet(graph, analysis, title))


def _opened(recipe: str, overrides: dict[str, Any], plugins: tuple[Path, ...]) -> "tuple[Detector, bool]":
    """Return the detector, and whether it is folded already."""
    if recipe.endswith(ARTIFACT):
        from detloom.artifacts import load_artifact, read_artifact

        refuse_fixed_settings(overrides)
        return load_artifact(recipe, plugins=plugins), bool(read_artifact(recipe).folded)
    from detloom.assembly import assemble
    from detloom.building import without_initial_weights
    from detloom.recipe import load_recipe
    from detloom.shapes import shapes_only
    from detloom.workshop import workshop

    shop = workshop()
    loaded = load_recipe(recipe, overrides, plugins=plugins, shop=shop)
    with shapes_only():
        return assemble(without_initial_weights(loaded, shop), shop=shop), False


def _traced(detector: "Detector", *, is_folded: bool, deployed: bool) -> "PathGraph":
    from contextlib import nullcontext

    from detloom.paths.trace import trace_detector
    from detloom.shapes import shapes_only

    # Maps of several cells, so that a stride can be read from each.
    side = 4 * detector.max_stride
    if is_folded or not deployed:
        return trace_detector(detector.train(not is_folded), (side, side))
    with shapes_only() if next(detector.parameters()).is_meta else nullcontext():
        folded = detector.fuse()
    return trace_detector(folded, (side, side))


def _chosen(graph: "PathGraph", names: tuple[str, ...]) -> "PathGraph":
    """Return the graph with some of its outputs alone."""
    from detloom.paths.graph import only

    known = [output.name for output in graph.outputs]
    for name in names:
        if name not in known:
            raise RecipeError(
                f"--output {name}: there is no such output.{suggest(name, known)} Outputs: {', '.join(known)}."
            )
    return only(graph, names) if names else graph
