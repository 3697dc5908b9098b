"""The command ``detloom``: one light group, one module for each verb, imported when it is called.

Exit codes: 0 done, 2 the user's mistake, 1 a bug (with its traceback), 130 stopped by Ctrl-C.
"""

import importlib
import keyword
import os
from typing import Any

import click

from detloom.errors import DetloomError, suggest

__all__ = ["cli", "main"]

VERBS = {
    "ablate": "Train the variants of a study, and say which differ.",
    "anchors": "Search anchors for a data set, and write a recipe with them.",
    "assign": "Draw which priors assigners take for the objects of a picture.",
    "average": "Average the weights of artifacts into one.",
    "check": "Report all mistakes of a recipe, and its parameters and operations.",
    "compare": "Compare runs: differences in AP, with intervals.",
    "demo": "Train, evaluate and draw on generated pictures, in a few minutes.",
    "doctor": "Say what is installed, and import every component.",
    "export": "Export an artifact to a device, and measure what is lost.",
    "fuse": "Fold an artifact to its deployed form, and prove that it is equal.",
    "import": "Turn a checkpoint of another project into an artifact.",
    "info": "Describe a component and its settings.",
    "list": "List components and recipes.",
    "paths": "Show how gradients come to each layer of a detector, and draw it.",
    "plugin": "Begin a plugin of your own.",
    "predict": "Find objects in pictures, folders and videos.",
    "schema": "Write a JSON Schema of recipes, for editors.",
    "search": "Look for the best points of a space of recipes.",
    "show": "Show a resolved recipe.",
    "train": "Train a detector from a recipe.",
    "val": "Evaluate an artifact on a data set.",
}


class Mistake(click.ClickException):
    """What the user can mend."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose verbs are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return all verbs."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb, imported now unless its help line is all that is wanted."""
        if cmd_name not in VERBS:
            ctx.fail(
                f"no command is called '{cmd_name}'.{suggest(cmd_name, VERBS)} Commands: {', '.join(sorted(VERBS))}."
            )
        command = importlib.import_module(f"detloom.cli.{_module(cmd_name)}").command
        assert isinstance(command, click.Command)  # noqa: S101 - narrows the type
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        """Write the list of verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; a user's mistake prints without a traceback and exits with 2."""
        try:
            return super().invoke(ctx)
        except DetloomError as error:
            raise Mistake(str(error)) from error
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)


def _module(verb: str) -> str:
    return f"{verb}_" if keyword.iskeyword(verb) else verb


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="detloom")
def cli() -> None:
    """Compose, train, evaluate and deploy object detectors from recipes.

    Start with `detloom demo`, or `detloom list recipe`.
    """


def main() -> None:
    """Run the command line."""
    # Threads that spin for long while they wait for each other make a busy machine tens of times slower; those that
    # sleep at once make a quiet one half as fast. OpenMP (GNU's, which torch has on Linux) reads this when torch is
    # imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    cli(prog_name="detloom")
