"""``detloom export``: from an artifact to files that a device runs, with what is lost on the way."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import complete_recipe, echo_json, force_option, json_option, plugin_option

if TYPE_CHECKING:
    from detloom.export.network import Preflight
    from detloom.export.report import Report

__all__ = ["command"]

BESIDE = "x"


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, int] | None:
    """Return the side, or height and width, that a text says."""
    if value is None:
        return None
    sides = value.lower().split(BESIDE)
    if not all(each.isdigit() and int(each) > 0 for each in sides) or len(sides) > 2:
        raise click.BadParameter(f"'{value}' is no size; give a side, as 320, or HEIGHTxWIDTH, as 256x320", ctx, param)
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _mixed(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[str, ...]:  # noqa: ARG001 - click's signature
    """Return a number of layers, or names of modules."""
    if value is None:
        return ()
    return int(value) if value.isdigit() else tuple(each.strip() for each in value.split(",") if each.strip())


def _settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:  # noqa: ARG001 - click's signature
    from detloom.recipe import parse_override

    return dict(parse_override(value) for value in values)


@click.command(name="export")
@click.argument("source", required=False, shell_complete=complete_recipe)
@click.option("--target", metavar="NAME", help="An exporter, or a device that one knows; --targets lists both.")
@click.option("--targets", "list_targets", is_flag=True, help="List exporters, their devices and what is missing.")
@click.option("--check", "check_only", is_flag=True, help="Say what the target would do with SOURCE; write nothing.")
@click.option("--data", type=click.Path(path_type=Path), help="The data set to calibrate and to measure on.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to make.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SETTING=VALUE",
    callback=_settings,
    help="Set a value of the exporter, as in numbers=float16; may be repeated.",
)
@click.option("--image-size", metavar="SIZE", callback=_size, help="Side of the input, or HEIGHTxWIDTH, in pixels.")
@click.option("--calibration", type=click.IntRange(2), metavar="N", help="Training pictures to calibrate on; 64.")
@click.option("--pass", "passes", multiple=True, metavar="NAME", help="Another reparam pass; may be repeated.")
@click.option(
    "--mixed",
    metavar="N|MODULE,...",
    callback=_mixed,
    help="More than 8 bits for the N layers that suffer most, or for those in modules.",
)
@click.option(
    "--qat-epochs", type=click.IntRange(0), default=0, metavar="N", help="Fine-tune with rounded numbers first."
)
@click.option("--max-drop", type=click.FloatRange(-1, 1), metavar="AP", help="AP that may be lost; 0.01.")
@click.option("--no-validate", is_flag=True, help="Do not measure AP.")
@click.option("--skip-bad", is_flag=True, help="Go on without faulty pictures and boxes.")
@click.option("--all", "show_all", is_flag=True, help="With --check, print every module.")
@force_option
@plugin_option
@json_option
def command(
    source: str | None,
    *,
    target: str | None,
    data: Path | None,
    out: Path | None,
    settings: dict[str, Any],
    image_size: int | tuple[int, int] | None,
    calibration: int | None,
    passes: tuple[str, ...],
    mixed: int | tuple[str, ...],
    qat_epochs: int,
    max_drop: float | None,
    plugins: tuple[Path, ...],
    list_targets: bool,
    check_only: bool,
    no_validate: bool,
    skip_bad: bool,
    show_all: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Export SOURCE, an artifact, to a file that a device runs, and measure what is lost.

    The detector is folded, proved equal, rewritten and calibrated for the target. AP is measured of
    the trained form, the folded one, and each exported form that can be run here; where more than
    --max-drop is lost, the report is kept, the model is not, and the command exits with 2.

    With --check SOURCE may be a recipe, too: where each module would run, why, and what to change.
    """
    if list_targets:
        _list_targets(plugins, as_json=as_json)
        return
    if source is None or target is None:
        raise click.UsageError(
            "give an artifact and --target NAME; `detloom export --targets` lists what can be exported to"
        )
    if check_only:
        if isinstance(mixed, int):
            raise click.UsageError(
                f"--check looks at no pictures, and cannot tell the {mixed} layers that suffer most; name modules: "
                "--mixed MODULE,..."
            )
        _check(
            {
                "source": source,
                "target": target,
                "settings": settings,
                "image_size": image_size,
                "passes": passes,
                "mixed": mixed,
                "plugins": plugins,
            },
            show_all=show_all,
            as_json=as_json,
        )
        return
    from detloom.engine.progress import open_view
    from detloom.export.pipeline import CALIBRATION, MAX_DROP, export

    folder, report = export(
        source,
        target=target,
        out=out,
        data=data,
        settings=settings,
        image_size=image_size,
        calibration=CALIBRATION if calibration is None else calibration,
        passes=passes,
        mixed=mixed,
        qat_epochs=qat_epochs,
        max_drop=MAX_DROP if max_drop is None else max_drop,
        validate=not no_validate,
        skip_bad=skip_bad,
        force=force,
        plugins=plugins,
        said=lambda text: click.echo(text, err=True),
        view=open_view(is_shown=not as_json),
    )
    if as_json:
        from detloom.export.report import facts

        echo_json({"directory": str(folder), **facts(report)})
        return
    _tell(report, folder)


def _list_targets(plugins: tuple[Path, ...], *, as_json: bool) -> None:
    from detloom.export.targets import known_targets
    from detloom.workshop import workshop

    for path in plugins:
        workshop().load_file(path)
    found = known_targets()
    if as_json:
        echo_json(
            [
                {"name": each.name, "exporter": each.exporter, "settings": each.settings, "missing": each.missing}
                for each in found
            ]
        )
        return
    for exporter in dict.fromkeys(each.exporter for each in found):
        rows = [each for each in found if each.exporter == exporter]
        click.secho(exporter, bold=True, nl=False)
        click.echo(f"  {rows[0].missing}" if rows[0].missing else "  ready")
        for each in rows[1:]:
            settings = ", ".join(f"{key}={value!r}" for key, value in each.settings.items())
            click.echo(f"  {each.name}  {settings}".rstrip())
    if not found:
        click.echo("no exporter is installed")


def _check(asked: Mapping[str, Any], *, show_all: bool, as_json: bool) -> None:
    """Print what a target does with a network; exit with 2 where something is refused."""
    from detloom.export.network import Placement
    from detloom.export.pipeline import preflight
    from detloom.export.placements import plain

    found = preflight(**asked)
    if as_json:
        echo_json(plain(found))
    else:
        _tell_preflight(found, show_all=show_all)
    if found.at(Placement.REFUSED):
        raise click.exceptions.Exit(2)


def _tell_preflight(preflight: "Preflight", *, show_all: bool) -> None:
    """Print the modules below the reason why they run where they do; those simply on the NPU when asked to."""
    from detloom.export.markdown import cycles_text, figure_text, where_text
    from detloom.export.network import Placement
    from detloom.export.placements import rows_of

    click.echo(f"{preflight.target}, by {preflight.source}")
    rows = [each for each in rows_of(preflight.verdicts) if show_all or each.placement != Placement.NPU]
    width = max((len(row.module) for row in rows), default=0)
    for place, reason, remedy in dict.fromkeys((row.placement, row.reason, row.remedy) for row in rows):
        click.secho(str(place), bold=True, nl=False)
        click.echo(f": {reason}" if reason else "")
        if remedy:
            click.echo(f"  change: {remedy}")
        for row in rows:
            if (row.placement, row.reason, row.remedy) == (place, reason, remedy):
                cells = (f"{row.module or '-':{width}}", row.operators, cycles_text(row, preflight))
                click.echo(f"  {'  '.join(cells)}".rstrip())
    click.echo(where_text(preflight) + ("" if show_all or not preflight.verdicts else "; --all prints every module"))
    width = max(map(len, preflight.figures), default=0)
    for name, value in preflight.figures.items():
        click.echo(f"  {name:{width}}  {figure_text(value)}")


def _tell(report: "Report", folder: Path) -> None:
    """Print the chain, and where the rest of the report is."""
    from detloom.export.markdown import sqnr_text

    for stage in report.stages:
        parts = [f"{stage.name:10}"]
        parts += [] if stage.ap is None else [f"AP {stage.ap:.4f}"]
        if stage.fidelities:
            parts.append(f"worst output {sqnr_text(min(each.sqnr_db for each in stage.fidelities))}")
        parts += [] if stage.latency_ms is None else [f"{stage.latency_ms:.1f} ms a picture here"]
        click.echo("  ".join(parts))
    for note in report.notes:
        click.echo(note)
    if report.drop is not None:
        click.echo(f"{abs(report.drop):.4f} AP {'lost' if report.drop >= 0 else 'gained'}")
    if not report.was_run:
        click.echo("nothing here can run the files: what they are worth was not measured")
    click.echo(f"wrote {folder}: {', '.join(each.name for each in report.files)}, report.json, report.md")
