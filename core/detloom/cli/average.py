"""``detloom average``: several artifacts of one network as one, by the mean of their weights."""

import math
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    echo_json,
    force_option,
    json_option,
    plugin_option,
    refuse_existing,
    refuse_fixed_settings,
    say_next,
    set_option,
    shown_progress,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from detloom.engine.averaging import Average, Part

__all__ = ["command"]


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:  # noqa: ARG001 - click's signature
    """Return the numbers of a list with commas."""
    if value is None:
        return None
    try:
        return tuple(float(each) for each in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of numbers with commas, as in 1,2,3") from error


@click.command(name="average")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The artifact to write."
)
@click.option("--data", type=click.Path(path_type=Path), help="A data set, to measure on and for statistics.")
@click.option("--greedy", is_flag=True, help="Add parts, the best first, that do not lower the AP; needs --data.")
@click.option(
    "--weights",
    metavar="NUMBERS",
    callback=_numbers,
    help="A number for each artifact, as 1,2,3: its share in proportion; all alike if not given.",
)
@click.option(
    "--recalibrate/--no-recalibrate",
    default=None,
    help="Compute batch norm statistics over training pictures; done with --data if not given.",
)
@click.option("--skip-bad", is_flag=True, help="Go on without faulty pictures and boxes.")
@click.option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps; cpu if not given.")
@force_option
@plugin_option
@set_option
@json_option
def command(
    artifacts: tuple[Path, ...],
    out: Path,
    data: Path | None,
    overrides: dict[str, Any],
    *,
    greedy: bool,
    weights: tuple[float, ...] | None,
    recalibrate: bool | None,
    skip_bad: bool,
    device: str | None,
    plugins: tuple[Path, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Average the weights of ARTIFACTS: epochs of one run, or runs that had one start.

    With --data, batch norm statistics are computed over its training pictures, and each part and the average are
    measured on its validation split.

    \b
    detloom average a/best.safetensors b/best.safetensors -o soup.safetensors --data data/bccd
    """
    refuse_fixed_settings(overrides)
    # A part's place is not taken by force: the average itself says so.
    is_part = out.resolve() in {path.resolve() for path in artifacts}
    refuse_existing(out, force=force or is_part)
    if skip_bad:
        overrides = {**overrides, "data.skip_bad": True}
    from detloom.engine.averaging import average

    with _shown(is_shown=not as_json) as progress:
        made = average(
            artifacts,
            out=out,
            data=data,
            greedy=greedy,
            weights=weights,
            recalibrate=recalibrate,
            overrides=overrides,
            device=device,
            plugins=plugins,
            progress=progress,
        )
    if as_json:
        echo_json(_facts(made, out))
        return
    for part in made.parts:
        measured = "" if part.ap is None else f"AP {part.ap:.3f}  "
        taken = f"takes {part.weight:6.1%}" if part.used else "leaves      "
        click.echo(f"  {taken}  {measured}{part.path}{_learned_from(part)}")
    if made.statistics_pictures:
        click.echo(f"batch norm statistics: of {made.statistics_pictures} training pictures")
    if made.metrics is not None:
        click.echo("the average: " + "  ".join(f"{name} {made.metrics[name]:.3f}" for name in ("AP", "AP50", "AP75")))
        aps = [part.ap for part in made.parts if part.ap is not None]
        click.echo(f"the parts:   AP {min(aps):.3f} to {max(aps):.3f}, on average {sum(aps) / len(aps):.3f}")
    for notice in made.notices:
        click.echo(f"notice: {notice}", err=True)
    say_next(out, plugins)


def _learned_from(part: "Part") -> str:
    """Return which part of the data it learned from, in words, if not from all of it."""
    fraction = part.data["fraction"]
    return "" if fraction == 1 else f"  (learned from part {part.data['part']:g} of {fraction:.3g} of the data)"


def _facts(made: "Average", out: Path) -> dict[str, Any]:
    metrics = made.metrics
    return {
        "artifact": str(out),
        "method": made.method,
        "parts": [
            {
                "file": str(part.path),
                "sha256": part.sha256,
                "used": part.used,
                "weight": part.weight,
                "data": dict(part.data),
                "AP": None if part.ap is None or math.isnan(part.ap) else part.ap,
            }
            for part in made.parts
        ],
        "statistics_pictures": made.statistics_pictures,
        "metrics": None
        if metrics is None
        else {name: None if math.isnan(value) else value for name, value in metrics.items()},
        "notices": list(made.notices),
    }


@contextmanager
def _shown(*, is_shown: bool) -> "Iterator[Callable[[str, int, int], None]]":
    """Yield what to call with what is done, its parts done and those in all: a bar for each, or a line."""
    with ExitStack() as shown:
        advance: dict[str, Callable[[int, int], None]] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in advance or done == 1:
                # The bar of what went before ends.
                shown.close()
                advance.clear()
                advance[what] = shown.enter_context(shown_progress(what, is_shown=is_shown))
            advance[what](done, total)

        yield progress
