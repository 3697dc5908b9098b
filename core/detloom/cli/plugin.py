"""``detloom plugin``: to begin a plugin of one's own."""

from pathlib import Path

import click

from detloom.authoring import TEMPLATES, new_plugin
from detloom.cli.options import echo_json, json_option

__all__ = ["command"]


@click.group(name="plugin")
def command() -> None:
    """Begin a plugin of your own."""


@command.command(name="new")
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help=f"One of {', '.join(TEMPLATES)}.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Make the folder NAME in here; where you are if not given.",
)
@json_option
def new(name: str, kind: str, into: Path, *, as_json: bool) -> None:
    """Write NAME, a distribution with one small component of a KIND that works, and its tests.

    \b
    detloom plugin new detloom-centre-assigner --kind assigner
    """
    folder = new_plugin(name, kind, into)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if as_json:
        echo_json({"directory": str(folder), "files": files})
        return
    click.echo(f"wrote {folder}:")
    for file in files:
        click.echo(f"  {file}")
    click.echo(f"next: cd {folder} && pip install -e '.[test]' && pytest")
