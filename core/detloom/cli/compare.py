"""``detloom compare``: the statistics of a study for runs that exist."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from detloom.cli.options import echo_json, json_option, plugin_option, print_report, shown_progress

if TYPE_CHECKING:
    from detloom.study.matches import Weights

__all__ = ["command"]


@click.command(name="compare")
@click.argument("runs", nargs=-1, required=True, metavar="[NAME=]RUN...")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data set lies now, if it was moved.")
@click.option("--weights", type=click.Choice(["last", "best"]), default="last", show_default=True, help="Of each run.")
@click.option("--resamples", type=click.IntRange(100), default=1000, show_default=True, help="Draws of the bootstrap.")
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write the report's files here.")
@plugin_option
@json_option
def command(
    runs: tuple[str, ...],
    *,
    data: Path | None,
    weights: "Weights",
    resamples: int,
    confidence: float,
    out: Path | None,
    plugins: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Compare RUNs: difference in AP to the first, with an interval by the paired bootstrap over pictures and seeds.

    Runs whose recipes differ in the seed alone are one group. NAME=RUN says to which group a run belongs. The first
    group is the baseline. All must have one validation split.

    \b
    detloom compare runs/yolov7-tiny-1 runs/my-recipe-1
    detloom compare plain=runs/a-1 plain=runs/a-2 mine=runs/b-1 mine=runs/b-2 -o report
    """
    from detloom.study.reporting import as_data
    from detloom.study.runs import compare_runs, grouped
    from detloom.study.writing import write_report

    groups = grouped(runs)
    with shown_progress("measuring the runs", is_shown=not as_json) as progress:
        report = compare_runs(
            groups,
            weights=weights,
            data=None if data is None else str(data),
            plugins=plugins,
            resamples=resamples,
            confidence=confidence,
            progress=progress,
        )
    written = [] if out is None else write_report(report, out)
    if as_json:
        echo_json({**as_data(report), "written": [str(path) for path in written]})
        return
    print_report(report)
    if written:
        click.echo(f"wrote {', '.join(str(path) for path in written)}")
