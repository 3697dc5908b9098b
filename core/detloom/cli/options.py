"""Options and output that several verbs share."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from detloom.catalogue import RECIPE
from detloom.errors import ArtifactError, RecipeError
from detloom.json_values import without_nan
from detloom.plugin_source import plugin_options

if TYPE_CHECKING:
    from rich.table import Table

    from detloom.study.ray_executor import RayExecutor
    from detloom.study.reporting import Report

__all__ = [
    "complete_recipe",
    "compute_options",
    "echo_json",
    "force_option",
    "json_option",
    "plugin_option",
    "print_report",
    "print_table",
    "refuse_existing",
    "refuse_fixed_settings",
    "say_next",
    "set_option",
    "shown_progress",
]

Command = TypeVar("Command", bound=Callable[..., Any])

# Characters that no line of a table has.
FULL = 10_000

# Sections that say something about a detector that is trained already.
FREE_SECTIONS = ("data", "predict", "evaluator", "dataset")
PRECISIONS = ("float32", "bfloat16", "float16")


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Return the bundled recipes that begin as typed, and let the shell offer files."""
    from detloom.workshop import workshop

    names = [name for name in workshop().names(RECIPE) if name.startswith(incomplete)]
    return [*(CompletionItem(name) for name in names), CompletionItem(incomplete, type="file")]


def set_option(command: Command) -> Command:
    """Add ``--set key=value``, repeatable; the function is given ``overrides``, a dict."""

    def parse(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:  # noqa: ARG001 - click's signature
        from detloom.recipe import parse_override

        return dict(parse_override(value) for value in values)

    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        callback=parse,
        help="Set a value of the recipe, as in assigner.use=atss; may be repeated.",
    )(command)


def plugin_option(command: Command) -> Command:
    """Add ``--plugin FILE``, repeatable; the function is given ``plugins``, paths."""
    return click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Run a plugin's file, as my_assigner.py, and use what it offers; may be repeated.",
    )(command)


def say_next(artifact: Path, plugins: Sequence[Path | str]) -> None:
    """Print what was written, and the command that uses it, with the files of plugins that it needs."""
    words = ("detloom", "predict", str(artifact), "PICTURES", "-o", "found", *plugin_options(plugins))
    click.echo(f"wrote {artifact}\nnext: {shlex.join(words)}")


def force_option(command: Command) -> Command:
    """Add ``--force``; the function is given ``force``, for ``refuse_existing``."""
    return click.option("--force", is_flag=True, help="Let --out take the place of a file that exists.")(command)


def refuse_existing(out: Path | None, *, force: bool) -> None:
    """Refuse to take the place of a file, unless forced.

    Raises:
        ArtifactError: There is one.
    """
    if out is not None and out.exists() and not force:
        raise ArtifactError(f"{out}: there is a file of that name; --force takes its place, or give --out another name")


def refuse_fixed_settings(overrides: Mapping[str, Any]) -> None:
    """Refuse ``--set`` for what an artifact has settled.

    Raises:
        RecipeError: A key lies in a section that does nothing for a trained detector.
    """
    fixed = [key for key in overrides if key.partition(".")[0] not in FREE_SECTIONS]
    if fixed:
        raise RecipeError(
            f"--set {', '.join(fixed)}: the artifact's network and training are settled; here --set changes "
            f"{', '.join(f'[{section}]' for section in FREE_SECTIONS)} alone. `detloom train` takes the other settings."
        )


def compute_options(command: Command) -> Command:
    """Add ``--device`` and ``--precision``; the function is given ``device`` (or None) and ``precision``."""
    device = click.option(
        "--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps; cpu if not given."
    )
    precision = click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=PRECISIONS[0],
        show_default=True,
        help="Of the forward pass.",
    )
    return device(precision(command))


def executor_options(command: Command) -> Command:
    """Add ``--jobs``, ``--executor`` and ``--address``; the function is given those, for ``opened_cluster``."""
    jobs = click.option(
        "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once on a machine."
    )
    executor = click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who trains: processes of this machine, or a Ray cluster.",
    )
    address = click.option("--address", help="Of the Ray cluster, HOST:PORT; the one of this machine if not given.")
    return jobs(executor(address(command)))


def refuse_lone_address(executor: str, address: str | None) -> None:
    """Refuse the address of a cluster that is not asked for.

    Raises:
        click.UsageError: There is one.
    """
    if address is not None and executor != "ray":
        raise click.UsageError("--address is that of a Ray cluster; add --executor ray")


def opened_cluster(executor: str, address: str | None, shared: Path, jobs: int) -> "RayExecutor | None":
    """Return the executor of a Ray cluster, or None for processes of this machine."""
    if executor != "ray":
        return None
    from detloom.study.ray_executor import RayExecutor

    return RayExecutor(address or "auto", shared=shared, jobs=jobs)


def json_option(command: Command) -> Command:
    """Add ``--json``; the function is given ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")(command)


def echo_json(data: object) -> None:
    """Print JSON; numbers that are not finite, which it cannot hold, are null."""
    click.echo(json.dumps(without_nan(data), indent=2, ensure_ascii=False))


def print_table(*forms: "Table") -> None:
    """Print the first form of a table that the terminal has room for, or the last; elsewhere the first, in full.

    Args:
        forms: Of the same table, the widest first.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    widths = [Measurement.get(console, console.options.update(max_width=FULL), form).maximum for form in forms]
    if not console.is_terminal:
        Console(width=max(widths[0], console.width)).print(forms[0])
        return
    fitting = (form for form, width in zip(forms, widths, strict=True) if width <= console.width)
    console.print(next(fitting, forms[-1]))


@contextmanager
def shown_progress(title: str, *, is_shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yield what to call with the parts done and the parts in all: a bar on a terminal, a line elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=not is_shown)
    if not console.is_terminal:
        console.print(title, highlight=False)
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def print_report(report: "Report") -> None:
    """Print the tables of a study or of compared runs, and how they are to be read."""
    from detloom.study.reporting import caption, statements, terminal_tables

    for table in terminal_tables(report):
        print_table(table)
    click.echo("\n".join((*statements(report), "", caption(report))))
