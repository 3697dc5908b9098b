"""``detloom list``: what there is, read from catalogues alone."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from detloom.catalogue import RECIPE
from detloom.cli.options import echo_json, json_option
from detloom.errors import suggest
from detloom.kinds import Kind
from detloom.workshop import workshop

__all__ = ["KINDS", "KindChoice", "command"]

KINDS = (*(str(kind) for kind in Kind), RECIPE)
KEYS = ("kind", "name", "summary", "reference", "plugin")

if TYPE_CHECKING:
    Choice = click.Choice[str]
else:
    # Not generic in click 8.1.
    Choice = click.Choice


class KindChoice(Choice):
    """One of ``KINDS``; a word that is none gets a suggestion."""

    def __init__(self) -> None:
        super().__init__(KINDS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the kind, or refuse the word."""
        if value not in KINDS:
            self.fail(f"no kind is called '{value}'.{suggest(value, KINDS)} Kinds: {', '.join(KINDS)}.", param, ctx)
        return str(value)


@click.command(name="list")
@click.argument("kind", required=False, type=KindChoice(), metavar="[KIND]")
@json_option
def command(kind: str | None, *, as_json: bool) -> None:
    """List components and recipes, of one KIND or of all.

    KIND is one of backbone, neck, head, assigner, criterion, reparam, ema, anchors, dataset,
    evaluator, observer, importer, exporter, recipe.
    """
    shop = workshop()
    rows = [row for row in shop.rows() if kind in (None, row.kind)]
    if as_json:
        echo_json([{key: asdict(row)[key] for key in KEYS} for row in rows])
        return
    width = max((len(row.name) for row in rows), default=0)
    for each in KINDS:
        of_kind = [row for row in rows if row.kind == each]
        if of_kind:
            click.secho(each, bold=True)
        for row in of_kind:
            source = "" if row.plugin == "detloom" else f"  (from {row.plugin})"
            click.echo(f"  {row.name:{width}}  {row.summary}{source}")
    for plugin in shop.plugins():
        if plugin.fault:
            click.echo(plugin.fault, err=True)
        elif plugin.is_disabled:
            click.echo(f"plugin '{plugin.name}' ({plugin.distribution}) is switched off", err=True)
        elif not plugin.rows:
            click.echo(
                f"plugin '{plugin.name}' ({plugin.distribution}) ships no catalogue; see `detloom doctor`",
                err=True,
            )
