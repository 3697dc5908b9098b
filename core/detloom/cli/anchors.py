"""``detloom anchors``: how well a recipe's anchors fit a data set, and a recipe with better ones."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    complete_recipe,
    echo_json,
    force_option,
    json_option,
    plugin_option,
    print_table,
    refuse_existing,
    set_option,
)
from detloom.errors import DataError, RecipeError
from detloom.plugin_source import plugin_options

if TYPE_CHECKING:
    from torch import Tensor

    from detloom.engine.anchoring import Levels, Proposal
    from detloom.interfaces import AnchorSearch
    from detloom.ops.anchors import AnchorFit
    from detloom.recipe import Recipe

__all__ = ["command"]


@click.command(name="anchors")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set: a folder or a file.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a recipe with the new anchors."
)
@click.option(
    "--image-size", type=click.IntRange(1), help="Side of the canvas; the recipe's data.image_size if not given."
)
@click.option("--seed", type=click.IntRange(0), help="Of the search; the recipe's train.seed if not given.")
@force_option
@click.option("--skip-bad", is_flag=True, help="Go on without faulty pictures and boxes.")
@plugin_option
@set_option
@json_option
def command(
    recipe: str,
    *,
    data: Path,
    out: Path | None,
    image_size: int | None,
    seed: int | None,
    plugins: tuple[Path, ...],
    overrides: dict[str, Any],
    force: bool,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Search anchors for the training boxes of a data set, in the place of RECIPE's.

    The method is that of the recipe's [anchors], or of --set anchors.use=NAME; otherwise all are tried and the anchors
    with the highest fitness are taken. With --out, a recipe is written that extends RECIPE with them.

    \b
    detloom anchors yolov7-tiny --data data/bccd -o my.toml
    """
    from detloom.recipe import load_recipe

    if image_size is not None:
        overrides = {**overrides, "data.image_size": image_size}
    resolved = load_recipe(recipe, overrides, plugins=plugins)
    _refuse_itself(out, recipe)
    refuse_existing(out, force=force)
    from detloom.assembly import check
    from detloom.engine.anchoring import flat_anchors, head_anchors, propose
    from detloom.ops.anchors import THRESHOLD, anchor_fit

    levels = head_anchors(resolved)
    height, width = check(resolved).image_size
    searches = _searches(resolved)
    sizes_N2 = _sizes(resolved, data, len(flat_anchors(levels)), skip_bad=skip_bad)
    threshold = next(iter(searches.values())).threshold if "anchors" in resolved.tables else THRESHOLD
    seed = resolved.train.seed if seed is None else seed
    before = anchor_fit(sizes_N2, flat_anchors(levels), threshold)
    found = {
        name: propose(search, sizes_N2, levels, seed=seed, threshold=threshold) for name, search in searches.items()
    }
    method = max(found, key=lambda name: found[name].fit.fitness)
    text = _as_toml({"head.anchors": found[method].anchors})
    if out is not None:
        from detloom.durable import write_text

        files = [_relative(path, out) for path in plugins]
        write_text(out, _as_toml(_own(overrides, found[method]), extends=_extends(recipe, out), plugins=files))
    if as_json:
        echo_json(
            {
                "recipe": resolved.name,
                "image_size": [height, width],
                "boxes": len(sizes_N2),
                "threshold": threshold,
                "before": _facts(before, levels),
                "after": {"method": method, **_facts(found[method].fit, found[method].anchors)},
                "tried": {name: _facts(each.fit, each.anchors) for name, each in found.items()},
                "written": None if out is None else str(out),
            }
        )
        return
    _print_table(f"{resolved.name}: {len(sizes_N2):,} boxes at {height} x {width}", before, found)
    if found[method].fit.fitness < before.fitness:
        click.echo(f"those of {method} fit less than the recipe's own")
    click.echo(text, nl=False)
    if out is None:
        click.echo("--out writes a recipe with them")
    else:
        words = ("detloom", "train", str(out), "--data", str(data), *plugin_options(resolved.plugins))
        click.echo(f"wrote {out}\nnext: {shlex.join(words)}")


def _refuse_itself(out: Path | None, recipe: str) -> None:
    """Refuse to write over the recipe that is extended."""
    if out is not None and out.exists() and Path(recipe).exists() and out.samefile(recipe):
        raise RecipeError(f"{out}: the new recipe extends this one, and cannot take its place; give --out another name")


def _searches(recipe: "Recipe") -> "dict[str, AnchorSearch]":
    """Return the recipe's method by name, or all."""
    from detloom.building import build
    from detloom.kinds import Kind
    from detloom.workshop import workshop

    table = recipe.tables.get(Kind.ANCHORS)
    tables = [{"use": name} for name in workshop().names(Kind.ANCHORS)] if table is None else [table]
    return {each["use"]: build(Kind.ANCHORS, each, where=recipe.where(Kind.ANCHORS)) for each in tables}


def _sizes(recipe: "Recipe", data: Path, num_anchors: int, *, skip_bad: bool) -> "Tensor":
    """Return the sizes of the boxes that training would see."""
    from detloom.data.faults import refuse_faults
    from detloom.data.splits import hold_out, open_split, take_part
    from detloom.engine.anchoring import SMALLEST, box_sizes

    settings = recipe.data
    train = open_split(data, settings.train, recipe.tables.get("dataset"))
    refuse_faults((train,), skip_bad=skip_bad or settings.skip_bad)
    if settings.holdout:
        train = hold_out(train, settings.holdout, recipe.train.seed)[0]
    train = take_part(train, settings)
    sizes_N2 = box_sizes(train, settings.image_size)
    if len(sizes_N2) < num_anchors:
        count = {0: "no boxes", 1: "1 box"}.get(len(sizes_N2), f"{len(sizes_N2)} boxes")
        raise DataError(
            f"{train.source}: the split '{settings.train}' has {count} of at least {SMALLEST:g} pixels at this image "
            f"size, and {num_anchors} anchors need as many boxes; give a data set with more, or a larger --image-size"
        )
    return sizes_N2


def _own(overrides: Mapping[str, Any], found: "Proposal") -> dict[str, Any]:
    """Return what the new recipe says itself: what was set for the command, and the anchors."""
    kept = {key: value for key, value in overrides.items() if key.partition(".")[0] != "anchors"}
    return {**kept, "head.anchors": found.anchors}


def _extends(recipe: str, out: Path) -> str:
    """Return what a recipe at ``out`` extends: a bundled name, or a path relative to it."""
    path = Path(recipe)
    if path.suffix != ".toml":
        return recipe if len(path.parts) == 1 else str(path.resolve())
    return _relative(path, out)


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()


def _as_toml(values: Mapping[str, Any], extends: str | None = None, plugins: Sequence[str] = ()) -> str:
    """Return a recipe's text, with a line for each level's anchors."""
    import tomlkit

    from detloom.recipe import Recipe

    # Each is a layer of its own: what was set may be a table that has the key of the next.
    layers = Recipe("", {}, {})
    for key, value in values.items():
        layers = layers.with_overrides({key: value})
    document = tomlkit.document()
    if extends is not None:
        document["extends"] = extends
    if plugins:
        document["plugins"] = list(plugins)
    for section, table in layers.tables.items():
        document[section] = table
    lines = tomlkit.array()
    for level in layers.tables["head"]["anchors"]:
        lines.add_line(level)
    lines.add_line(indent="")
    document["head"]["anchors"] = lines
    return tomlkit.dumps(document)


def _facts(fit: "AnchorFit", anchors: "Levels") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(fit), "anchors": anchors}


def _print_table(title: str, before: "AnchorFit", found: "Mapping[str, Proposal]") -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("anchors")
    for column in ("best possible recall", "anchors per target", "fitness"):
        table.add_column(column, justify="right")
    for name, fit in (("now", before), *((name, each.fit) for name, each in found.items())):
        table.add_row(name, f"{fit.recall:.4f}", f"{fit.anchors_per_target:.2f}", f"{fit.fitness:.4f}")
    print_table(table)
