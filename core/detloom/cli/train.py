"""``detloom train``: a recipe and a data set to a run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import complete_recipe, echo_json, json_option, plugin_option, set_option
from detloom.errors import RecipeError

if TYPE_CHECKING:
    from detloom.engine.run import Run

__all__ = ["command"]


@click.command(name="train")
@click.argument("recipe", shell_complete=complete_recipe, required=False)
@click.option("--data", type=click.Path(path_type=Path), help="The data set: a folder or a file.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="The run's directory.")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False), help="Go on with the run in a directory.")
@click.option("--skip-bad", is_flag=True, help="Go on without faulty pictures and boxes.")
@plugin_option
@set_option
@json_option
def command(
    recipe: str | None,
    data: Path | None,
    out: Path | None,
    resume: Path | None,
    overrides: dict[str, Any],
    *,
    plugins: tuple[Path, ...],
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Train RECIPE (a bundled name or a path) on a data set, or go on with a run.

    A GPU is used where there is one; ACCELERATE_USE_CPU=true in the environment trains on the CPU.

    \b
    detloom train yolov7-tiny --data data/bccd
    detloom train --resume runs/yolov7-tiny-1
    """
    if resume is not None:
        refused = [name for name, given in (("RECIPE", recipe), ("--out", out), ("--set", overrides)) if given]
        if refused:
            raise RecipeError(f"--resume takes recipe and directory from the run; leave out {', '.join(refused)}")
        from detloom.engine.fit import resume as go_on

        run = go_on(resume, data=data, plugins=plugins, progress=not as_json)
    else:
        if recipe is None or data is None:
            raise RecipeError("train needs a RECIPE and --data PATH, or --resume DIRECTORY; see `detloom train --help`")
        from detloom.recipe import load_recipe

        # The recipe is checked before the slow imports.
        overrides = {**overrides, **({"data.skip_bad": True} if skip_bad else {})}
        loaded = load_recipe(recipe, overrides, plugins=plugins)
        from detloom.engine.fit import fit

        run = fit(loaded, data=data, out=out, progress=not as_json)
    # Under torchrun or accelerate launch each process comes here; the first one speaks.
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        echo_json(
            {
                "directory": str(run.directory),
                "status": run.status,
                "epochs": len(run.history),
                "best": _if_written(run.best),
                "last": _if_written(run.last),
                "metrics": run.metrics,
                "message": run.message,
            }
        )
    elif run.status != "interrupted":
        _report(run)
    if run.status == "interrupted":
        raise click.exceptions.Exit(130)


def _if_written(path: Path) -> str | None:
    # A run that was stopped within its first epoch has no artifact yet.
    return str(path) if path.exists() else None


def _report(run: "Run") -> None:
    if run.metrics is not None:
        click.echo(f"AP {run.metrics['AP']:.3f}, AP50 {run.metrics['AP50']:.3f} in the best epoch")
    click.echo(f"run: {run.directory}\nnext: {run.command('predict', str(run.best), 'PICTURES', '-o', 'found')}")
