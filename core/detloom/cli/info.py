"""``detloom info``: a component, its settings and its source."""

import inspect
import json
from pathlib import Path
from typing import Any

import click

from detloom.catalogue import RECIPE
from detloom.cli.list import KindChoice
from detloom.cli.options import echo_json, json_option, plugin_option
from detloom.kinds import Kind
from detloom.settings import setting_types
from detloom.workshop import workshop

__all__ = ["command"]


@click.command(name="info")
@click.argument("kind", type=KindChoice(), metavar="KIND")
@click.argument("name")
@plugin_option
@json_option
def command(kind: str, name: str, plugins: tuple[Path, ...], *, as_json: bool) -> None:
    """Describe the component NAME of a KIND: its settings, defaults and source."""
    shop = workshop()
    for path in plugins:
        shop.load_file(path)
    row = next((row for row in shop.rows() if (row.kind, row.name) == (kind, name)), None)
    summary, reference = (row.summary, row.reference) if row else ("", "")
    if kind == RECIPE:
        from detloom.recipe import load_recipe

        recipe = load_recipe(name, shop=shop)
        if as_json:
            echo_json({"kind": kind, "name": name, "summary": summary, "reference": reference, "recipe": recipe.tables})
            return
        click.echo(f"{kind} {name}: {summary}\nsource: {reference}\n\n{recipe.to_toml()}")
        return
    cls = shop.component(Kind(kind), name)
    settings = _settings(cls)
    text = inspect.cleandoc(cls.__doc__ or "")
    provider = shop.provider(Kind(kind), name)
    if as_json:
        echo_json(
            {
                "kind": kind,
                "name": name,
                "summary": summary,
                "reference": reference,
                "plugin": provider,
                "class": f"{cls.__module__}.{cls.__qualname__}",
                "description": text,
                "settings": settings,
            }
        )
        return
    click.secho(f"{kind} {name}", bold=True, nl=False)
    click.echo(f"  {cls.__module__}.{cls.__qualname__}, {provider}")
    click.echo(f"source: {reference}\n\n{text}\n" if reference else f"\n{text}\n")
    click.secho("settings" if settings else "no settings", bold=True)
    for setting in settings:
        click.echo(f"  {setting['name']}: {setting['type']}  {_default(setting)}")


def _default(setting: dict[str, Any]) -> str:
    """Return what stands for a setting that a recipe leaves out, as a recipe would have it."""
    if setting["required"]:
        return "required"
    # TOML writes these values as JSON does, but has no null.
    return "may be left out" if setting["default"] is None else f"= {json.dumps(setting['default'], default=str)}"


def _settings(cls: type[Any]) -> list[dict[str, Any]]:
    types = setting_types(cls)
    return [
        {
            "name": name,
            "type": types[name],
            "required": parameter.default is parameter.empty,
            "default": None if parameter.default is parameter.empty else parameter.default,
        }
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
