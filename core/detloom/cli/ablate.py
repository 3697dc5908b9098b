"""``detloom ablate``: the variants of a study, trained and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    echo_json,
    executor_options,
    json_option,
    opened_cluster,
    plugin_option,
    print_report,
    print_table,
    refuse_lone_address,
    shown_progress,
)

if TYPE_CHECKING:
    from detloom.study.cells import Cell
    from detloom.study.settings import Study

__all__ = ["command"]

ROOT = Path("studies")


@click.command(name="ablate")
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The study's directory; studies/NAME if not given.",
)
@executor_options
@click.option(
    "--dry-run", is_flag=True, help="Check all cells, and print them with their size and an estimate of time."
)
@plugin_option
@json_option
def command(
    study: Path,
    *,
    out: Path | None,
    jobs: int,
    executor: str,
    address: str | None,
    dry_run: bool,
    plugins: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Train each cell of STUDY, a TOML file, with each seed, and say which differ from the baseline.

    The same command goes on with a study that was stopped or killed, and tries failed runs again. What it writes is a
    table, Markdown, CSV, JSON, plots, and an HTML page that needs nothing else.

    \b
    detloom ablate study.toml --dry-run
    detloom ablate study.toml --jobs 2
    detloom ablate study.toml --executor ray --address HOST:PORT
    """
    refuse_lone_address(executor, address)
    from detloom.study.settings import load_study

    # The form of the study is checked before the slow imports.
    loaded = load_study(study, plugins=plugins)
    out = out or ROOT / loaded.name
    from detloom.study.ablation import prepare, report_of, run_study
    from detloom.study.directory import StudyDirectory, content_of
    from detloom.study.reporting import as_data
    from detloom.study.writing import write_report

    cluster = opened_cluster(executor, address, out, jobs)
    with shown_progress("checking the cells", is_shown=not as_json) as progress:
        cells = prepare(loaded, progress)
    directory = StudyDirectory(out, loaded.settings.weights)
    content = content_of(loaded, cells)
    directory.check(content)
    if dry_run:
        _tell_plan(loaded, cells, directory, jobs, as_json=as_json)
        return
    for cell in cells:
        if cell.reason:
            click.echo(f"impossible: {cell.name}: {cell.reason}", err=True)
    directory.open(content)
    try:
        run_study(loaded, cells, directory, view=_tell, jobs=jobs, executor=cluster)
        with shown_progress("comparing", is_shown=not as_json) as progress:
            report = report_of(loaded, cells, directory, progress)
        written = write_report(report, out)
    finally:
        directory.close()
    if as_json:
        echo_json({**as_data(report), "written": [str(path) for path in written]})
    else:
        print_report(report)
        click.echo(f"wrote {', '.join(str(path) for path in written)}")
    if any(run.error for cell, _ in report.cells for run in cell.runs):
        click.echo("some runs failed; the same command tries them again", err=True)
        raise click.exceptions.Exit(1)


def _tell(text: str, done: int, total: int) -> None:
    click.echo(f"[{done}/{total}] {text}", err=True)


def _tell_plan(study: "Study", cells: "list[Cell]", directory: Any, jobs: int, *, as_json: bool) -> None:
    from detloom.study.ablation import estimated_seconds
    from detloom.study.reporting import seconds_in_words

    seconds = estimated_seconds(study, cells)
    left = {
        cell.name: sum(not directory.is_finished(cell.name, seed) for seed in study.settings.seeds)
        for cell in cells
        if not cell.reason
    }
    total = sum(seconds[name] * number / len(study.settings.seeds) for name, number in left.items())
    if as_json:
        echo_json(
            {
                "cells": [
                    {
                        "name": cell.name,
                        "overrides": dict(cell.overrides),
                        "reason": cell.reason,
                        "parameters": cell.report and cell.report.deployed_parameters,
                        "gflops": cell.report and round(cell.report.deployed_gflops, 4),
                        "seconds": round(seconds[cell.name], 1) if cell.name in seconds else None,
                        "runs_left": left.get(cell.name, 0),
                    }
                    for cell in cells
                ],
                "runs_left": sum(left.values()),
                "seconds_left": round(total, 1),
            }
        )
        return
    from rich.table import Table

    from detloom.study.cells import label_of

    table = Table(
        title=f"{study.name}: {len(cells)} cells x {_counted(len(study.settings.seeds), 'seed')}", title_justify="left"
    )
    for column in ("cell", "overrides", "parameters", "GFLOPs", "time, all seeds"):
        table.add_column(column, justify="left" if column in ("cell", "overrides") else "right", overflow="fold")
    baseline = cells[0].overrides
    for cell in cells:
        # What the baseline sets, too, need not be read again in every row.
        own = {key: each for key, each in cell.overrides.items() if cell is cells[0] or each != baseline.get(key)}
        overrides = ", ".join(f"{key} = {label_of(value)}" for key, value in own.items())
        if cell.report is None:
            table.add_row(cell.name, overrides, "impossible", "", "")
            continue
        size = f"{cell.report.deployed_parameters:,}", f"{cell.report.deployed_gflops:.2f}"
        table.add_row(cell.name, overrides, *size, f"about {seconds_in_words(seconds[cell.name])}")
    print_table(table)
    for cell in cells:
        if cell.reason:
            click.echo(f"impossible: {cell.name}: {cell.reason}")
    click.echo(
        f"{_counted(sum(left.values()), 'run')} left, about {seconds_in_words(total)} one after the other"
        + (f"; --jobs {jobs} shares the cores among so many at once" if jobs > 1 else "")
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
