"""``detloom demo``: the whole way on pictures that are drawn on the spot."""

import time
from itertools import count
from pathlib import Path
from typing import Any

import click

from detloom.cli.options import echo_json, json_option, plugin_option, set_option, shown_progress

__all__ = ["command"]


@click.command(name="demo")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), help="Where to write."
)
@plugin_option
@set_option
@json_option
def command(out: Path, plugins: tuple[Path, ...], overrides: dict[str, Any], *, as_json: bool) -> None:
    """Draw a small data set, train a small YOLOv7-tiny on it, evaluate, and draw what it finds.

    Takes a few minutes on two cores and needs no network.
    """
    from detloom.recipe import load_recipe

    recipe = load_recipe("demo", overrides, plugins=plugins)
    from detloom.artifacts import load_artifact
    from detloom.engine.fit import fit
    from detloom.engine.predict import stream
    from detloom.pictures import draw, grid, write_picture
    from detloom.scenes import write_scenes

    started = time.monotonic()
    with shown_progress("drawing pictures", is_shown=not as_json) as progress:
        data = write_scenes(out / "data", report=progress)
    directory = next(path for number in count(1) if not (path := out / f"run-{number}").exists())
    run = fit(recipe, data=data, out=directory, progress=not as_json)
    if run.status == "interrupted":
        if as_json:  # else the run's view has said so
            click.echo(run.message, err=True)
        raise click.exceptions.Exit(130)
    found = list(stream(load_artifact(run.best), data / "unseen"))
    picture = directory / "unseen.png"
    write_picture(picture, grid([draw(pixels, detections, enlarge_to=480) for pixels, detections in found], columns=4))
    metrics = run.metrics or {}
    if as_json:
        echo_json(
            {
                "directory": str(directory),
                "data": str(data),
                "artifact": str(run.best),
                "picture": str(picture),
                "metrics": metrics,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        return
    click.echo(
        f"\nAP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f} on the pictures of {data} kept for validation, "
        f"after {time.monotonic() - started:.0f} s\n"
        f"picture of {len(found)} pictures it has not seen: {picture}\n"
        f"artifact: {run.best}\n"
        f"next, with pictures of your own: detloom predict {run.best} PICTURES -o found\n"
        "or YOLOv7-tiny itself, on data of your own: detloom train yolov7-tiny-small-data --data DATA"
    )
