"""``detloom search``: the best points of a space of recipes."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detloom.cli.options import (
    echo_json,
    executor_options,
    json_option,
    opened_cluster,
    plugin_option,
    print_table,
    refuse_lone_address,
)

if TYPE_CHECKING:
    from detloom.search.directory import SearchDirectory
    from detloom.search.running import Task
    from detloom.search.space import Trial

__all__ = ["command"]

ROOT = Path("searches")
SAMPLES = 8


@click.command(name="search")
@click.argument("search", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The search's directory; searches/NAME if not given.",
)
@executor_options
@click.option("--dry-run", is_flag=True, help="Show some points of the space, drawn at random, with their figures.")
@plugin_option
@json_option
def command(
    search: Path,
    *,
    out: Path | None,
    jobs: int,
    executor: str,
    address: str | None,
    dry_run: bool,
    plugins: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Look for the best points of SEARCH, a TOML file: a recipe with choices.

    The same command goes on with a search that was stopped or killed. What it writes is the recipe of the winner,
    best.toml, those of the front, a table as Markdown, CSV and JSON, and a picture.

    \b
    detloom search space.toml --dry-run
    detloom search space.toml
    detloom train searches/space/best.toml --data data/bccd
    """
    refuse_lone_address(executor, address)
    from detloom.errors import DetloomError
    from detloom.search.settings import load_search

    # The form of the search is checked before the slow imports.
    loaded = load_search(search, plugins=plugins)
    out = out or ROOT / loaded.name
    from detloom.search.directory import SearchDirectory
    from detloom.search.reporting import as_data, write_search
    from detloom.search.running import Task
    from detloom.search.space import State, known
    from detloom.study.executor import LocalExecutor, visible_devices

    task = Task(loaded)
    directory = SearchDirectory(out)
    content = task.content()
    directory.check(content)
    if dry_run:
        _tell_samples(task, as_json=as_json)
        return
    parallel = loaded.settings.parallel
    if jobs > parallel:
        # Each process would have its share of the cores, and most of them would be idle.
        click.echo(
            f"--jobs {jobs}: {search} proposes {parallel} at once; more with `parallel = {jobs}` there", err=True
        )
        jobs = parallel
    cluster = opened_cluster(executor, address, out, jobs)
    directory.open(content)
    try:
        held = (directory.lock_number,) if directory.lock_number >= 0 else ()
        local = LocalExecutor(jobs, devices=visible_devices(), keep_open=held)
        try:
            trials = task.run(directory, view=_tell, executor=cluster or local)
        except (KeyboardInterrupt, DetloomError) as ended:
            _keep_found(task, directory)
            if isinstance(ended, KeyboardInterrupt):
                click.echo("the same command goes on with this search", err=True)
            raise
        written = write_search(task, trials, out)
    finally:
        directory.close()
    if as_json:
        echo_json({**as_data(task, trials), "written": [str(path) for path in written]})
    else:
        _tell_found(task, trials, written, out)
    has_failed = any(trial.state == State.FAILED for trial in trials)
    if has_failed:
        click.echo("some trials failed; the same command tries them again", err=True)
    if has_failed or not known(trials):
        raise click.exceptions.Exit(1)


def _keep_found(task: "Task", directory: "SearchDirectory") -> None:
    """Report what a search has found until it was cut off, which may be hours of training."""
    from detloom.search.reporting import write_search
    from detloom.search.space import known

    trials = directory.trials(task.search.space)
    if known(trials):
        write_search(task, trials, directory.path)
        where = f"{directory.path / 'report.md'} and {directory.path / 'best.toml'}"
        click.echo(f"what was found until now is in {where}", err=True)


def _tell_found(task: "Task", trials: "list[Trial]", written: list[Path], out: Path) -> None:
    from detloom.search.reporting import statement, terminal_table

    print_table(terminal_table(task, trials))
    click.echo(statement(task, trials))
    click.echo(f"wrote {', '.join(str(path) for path in written)}")
    if (out / "best.toml") in written:
        words = ("detloom", "train", str(out / "best.toml"), "--data", task.search.settings.data)
        click.echo(f"next: {shlex.join(words)}")


def _tell(text: str, done: int, total: int) -> None:
    click.echo(f"[{done}/{total}] {text}", err=True)


def _tell_samples(task: "Task", *, as_json: bool) -> None:
    from detloom.search.figures import in_digits
    from detloom.search.running import label

    samples = task.samples(SAMPLES)
    space = task.search.space
    if as_json:
        echo_json(
            {
                "points": space.size,
                "trials": space.trials,
                "samples": [
                    {"overrides": space.overrides(trial.point), "figures": trial.figures, "refused": trial.reason}
                    for trial in samples
                ],
            }
        )
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{task.search.name}: {space.size:,} points, some of them", title_justify="left")
    table.add_column("point", overflow="fold")
    for name in task.figures.wanted:
        table.add_column(name, justify="right")
    for trial in samples:
        figures = [in_digits(trial.figures[name]) if name in trial.figures else "" for name in task.figures.wanted]
        table.add_row(escape(label(task.search, trial.point)), *figures)
    print_table(table)
    for trial in samples:
        if trial.reason:
            click.echo(f"refused: {label(task.search, trial.point)}: {trial.reason.splitlines()[0]}")
    click.echo(f"'{task.search.strategy['use']}' will have {min(space.trials, space.size)} trials")
