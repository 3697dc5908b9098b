"""``detloom val``: an artifact against annotations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    compute_options,
    echo_json,
    json_option,
    plugin_option,
    refuse_fixed_settings,
    set_option,
    shown_progress,
)

if TYPE_CHECKING:
    from detloom.engine.settings import Precision

__all__ = ["command"]


@click.command(name="val")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The data set: a folder or a file.")
@click.option("--split", help="Which split; the recipe's [data] val when not given.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write curves and numbers here.")
@click.option("--skip-bad", is_flag=True, help="Go on without faulty pictures and boxes.")
@compute_options
@plugin_option
@set_option
@json_option
def command(
    artifact: Path,
    data: Path,
    split: str | None,
    out: Path | None,
    overrides: dict[str, Any],
    *,
    plugins: tuple[Path, ...],
    skip_bad: bool,
    device: str | None,
    precision: "Precision",
    as_json: bool,
) -> None:
    """Evaluate ARTIFACT: COCO's twelve numbers, and AP of each class."""
    refuse_fixed_settings(overrides)
    from detloom.artifacts import load_artifact
    from detloom.data.faults import refuse_faults
    from detloom.data.splits import open_split
    from detloom.engine.evaluate import evaluate, labels_in
    from detloom.engine.predict import check_device
    from detloom.recipe import load_recipe

    if device is not None:
        check_device(device)
    detector = load_artifact(artifact, plugins=plugins)
    assert detector.recipe is not None  # noqa: S101 - an artifact has one
    recipe = load_recipe(detector.recipe, overrides)
    annotations = open_split(data, split or recipe.data.val, recipe.tables.get("dataset"))
    labels_in(annotations, detector.names)
    num_faults = refuse_faults((annotations,), skip_bad=skip_bad or recipe.data.skip_bad)
    with shown_progress(f"evaluating {len(annotations.images)} pictures", is_shown=not as_json) as progress:
        metrics = evaluate(
            detector, annotations, recipe, precision=precision, device=device, progress=progress, report=out
        )
    if as_json:
        echo_json(
            {
                "artifact": str(artifact),
                "images": len(annotations.images),
                "left_out": num_faults,
                "metrics": metrics.summary,
                "per_class": metrics.per_class,
            }
        )
        return
    if num_faults:
        click.echo(
            f"went on without {num_faults} faulty {'picture or box' if num_faults == 1 else 'pictures and boxes'}",
            err=True,
        )
    click.echo("  ".join(f"{name} {value:.3f}" for name, value in metrics.summary.items()))
    width = max(len(name) for name in metrics.per_class)
    for name, each in metrics.per_class.items():
        click.echo(f"  {name:{width}}  " + "  ".join(f"{key} {value:.3f}" for key, value in each.items()))
    if out is not None:
        click.echo(f"curves and numbers: {out}")
