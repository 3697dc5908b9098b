"""``detloom schema``: a JSON Schema of recipes, installed plugins included."""

from pathlib import Path

import click

from detloom.cli.options import echo_json

__all__ = ["command"]


@click.command(name="schema")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
def command(output: Path | None) -> None:
    """Write a JSON Schema (draft 2020-12) of recipes, for editors that complete and check TOML."""
    import json

    from detloom.schema import recipe_schema

    schema = recipe_schema()
    if output is None:
        echo_json(schema)
    else:
        # Loads torch, which a schema on the terminal does without.
        from detloom.durable import write_text

        write_text(output, json.dumps(schema, indent=2) + "\n")
        click.echo(f"wrote {output}")
