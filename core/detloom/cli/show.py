"""``detloom show``: a resolved recipe, and which file set each value."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from detloom.cli.options import complete_recipe, echo_json, json_option, plugin_option, set_option
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe

__all__ = ["command"]


@click.command(name="show")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("--origin", is_flag=True, help="Say which file set each value.")
@click.option("--scaled", is_flag=True, help="Show what [scaling] makes of the recipe, in its place.")
@plugin_option
@set_option
@json_option
def command(
    recipe: str, plugins: tuple[Path, ...], overrides: dict[str, Any], *, origin: bool, scaled: bool, as_json: bool
) -> None:
    """Show RECIPE (a bundled name or a path) with everything that it extends.

    A recipe with [scaling] is shown as it is written; what scaling makes of it follows in comments.
    """
    given = load_recipe(recipe, overrides, plugins=plugins, scale=False)
    has_scaling = Kind.SCALING in given.tables
    made = load_recipe(given) if has_scaling else given
    resolved = made if scaled else given
    if as_json:
        echo_json(
            {
                "name": resolved.name,
                "plugins": list(resolved.plugins),
                "recipe": resolved.tables,
                "origins": resolved.origins,
                "scaling": {key: {"from": before, "to": after} for key, (before, after) in _changes(given, made)},
            }
        )
    elif origin:
        rows = list(_values(resolved, resolved.tables, ()))
        width = max(len(key) for key, _, _ in rows)
        for key, value, source in rows:
            click.echo(f"{key:{width}} = {_toml(value)}  ", nl=False)
            click.secho(f"# {source}", dim=True)
    else:
        click.echo(resolved.to_toml(), nl=False)
    if not as_json and not scaled and has_scaling:
        click.echo("\n# What [scaling] makes of it, and from what; --scaled shows the whole:")
        for key, (before, after) in _changes(given, made):
            click.echo(f"# {key} = {_toml(after)}  # from {_toml(before)}")


def _changes(given: Recipe, made: Recipe) -> Iterable[tuple[str, tuple[Any, Any]]]:
    if given is made:
        return ()
    # It imports the components, and with them torch.
    from detloom.scaling import changes
    from detloom.workshop import workshop

    return changes(given, made, workshop()).items()


def _values(recipe: Recipe, table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    for key, value in table.items():
        dotted = ".".join((*path, key))
        if isinstance(value, Mapping) and value:
            yield from _values(recipe, value, (*path, key))
        else:
            yield dotted, value, recipe.origins[dotted]


def _toml(value: Any) -> str:
    """Return a value as a recipe has it, on one line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key} = {_toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    # JSON's texts, numbers and truth values are TOML's, too.
    return json.dumps(value, ensure_ascii=False)
