"""``detloom check``: all mistakes of a recipe at once, and what it amounts to."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    complete_recipe,
    echo_json,
    json_option,
    plugin_option,
    print_table,
    set_option,
    shown_progress,
)

if TYPE_CHECKING:
    from detloom.assembly import CheckReport

__all__ = ["command"]


@click.command(name="check")
@click.argument("recipe", shell_complete=complete_recipe)
@click.option("--data", type=click.Path(path_type=Path), help="Also check the pictures and annotations of a data set.")
@plugin_option
@set_option
@json_option
def command(
    recipe: str, data: Path | None, plugins: tuple[Path, ...], overrides: dict[str, Any], *, as_json: bool
) -> None:
    """Check RECIPE without data or weights; print parameters and GFLOPs.

    Parameters and GFLOPs stand for the training form and for the deployed form, that is after the
    recipe's reparam passes. A multiply-add counts as two operations.
    """
    from detloom.assembly import check
    from detloom.recipe import load_recipe

    report = check(recipe, overrides, plugins=plugins)
    faults = None
    if data is not None:
        from detloom.data.check import check_path

        resolved = load_recipe(recipe, overrides, plugins=plugins)
        with shown_progress(f"reading the pictures of {data}", is_shown=not as_json) as progress:
            names, faults = check_path(data, resolved, progress=progress)
        report = check(resolved, num_classes=len(names))
    facts = {
        "recipe": report.recipe,
        "num_classes": report.num_classes,
        "image_size": list(report.image_size),
        "strides": list(report.strides),
        "parameters": {"training": report.training_parameters, "deployed": report.deployed_parameters},
        "gflops": {"training": round(report.training_gflops, 4), "deployed": round(report.deployed_gflops, 4)},
        "warnings": list(report.warnings),
        "scaling": {key: {"from": before, "to": after} for key, (before, after) in report.scaling.items()},
    }
    if faults is not None:
        facts["faults"] = [
            {"file": fault.file, "where": fault.where, "what": fault.what, "is_left_out": fault.is_left_out}
            for fault in faults
        ]
    if as_json:
        echo_json(facts)
    else:
        _print_counts(report)
    if faults:
        is_refused = any(fault.is_left_out for fault in faults)
        if not as_json:
            _print_faults(faults)
            if is_refused and not resolved.data.skip_bad:
                click.echo(
                    "Training refuses such data. Mend them, or go on without the pictures and boxes concerned: "
                    "`detloom train --skip-bad`, or skip_bad = true in [data]."
                )
        if is_refused:
            raise click.exceptions.Exit(2)
    elif faults is not None and not as_json:
        click.echo(f"{data}: no faults found")


def _print_counts(report: "CheckReport") -> None:
    height, width = report.image_size
    click.echo(f"{report.recipe}: {report.num_classes} classes, {height} x {width}, strides {report.strides}")
    click.echo(f"  {'':10} {'parameters':>12}  {'GFLOPs':>8}")
    click.echo(f"  {'training':10} {report.training_parameters:>12,}  {report.training_gflops:>8.2f}")
    click.echo(f"  {'deployed':10} {report.deployed_parameters:>12,}  {report.deployed_gflops:>8.2f}")
    for key, (before, after) in report.scaling.items():
        click.echo(f"  scaled: {key} = {after}, from {before}")
    for warning in report.warnings:
        click.echo(f"  warning: {warning}")


def _print_faults(faults: Any) -> None:
    from rich.table import Table

    from detloom.data.faults import counted_faults

    table = Table(title=counted_faults(faults), title_justify="left")
    for column in ("file", "where", "what"):
        table.add_column(column, overflow="fold")
    for fault in faults:
        table.add_row(fault.file, fault.where, fault.what)
    print_table(table)
