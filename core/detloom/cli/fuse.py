"""``detloom fuse``: the deployed form of an artifact, proved equal before it is written."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import echo_json, force_option, json_option, plugin_option, refuse_existing
from detloom.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from detloom.detector import Detector
    from detloom.reparam import Difference, FoldReport

__all__ = ["command"]

ARTIFACT = ".safetensors"
MOST_PICTURES = 4
WORST = 8


@click.command(name="fuse")
@click.argument("source")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the deployed form here.")
@click.option(
    "--plan", "plan_only", is_flag=True, help="Print what would be folded, what not, and why; change nothing."
)
@click.option(
    "--images",
    multiple=True,
    type=click.Path(path_type=Path),
    help=f"Pictures or folders to prove it on, the first {MOST_PICTURES}; drawn ones without. May be repeated.",
)
@click.option("--size", type=click.IntRange(32), default=320, show_default=True, help="Side of their canvas in pixels.")
@click.option(
    "--pass", "passes", multiple=True, metavar="NAME", help="Instead of the recipe's passes; may be repeated."
)
@click.option("--all", "show_all", is_flag=True, help="Print every fold and every module's difference.")
@force_option
@plugin_option
@json_option
def command(
    source: str,
    out: Path | None,
    images: tuple[Path, ...],
    passes: tuple[str, ...],
    plugins: tuple[Path, ...],
    *,
    plan_only: bool,
    size: int,
    show_all: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fold SOURCE, an artifact, by its recipe's reparam passes, and measure what that changes.

    The model and its folded copy run on the same pictures in float64 and in float32. Every output and
    every folded module is compared; above the tolerance, or where something cannot be compared, the
    command fails, names the place, and writes nothing. With --plan SOURCE may be a recipe, too.

    The pictures are drawn ones where --images gives none; your own show the numbers that you will meet.
    """
    if out is not None and out.exists() and Path(source).exists() and out.samefile(source):
        raise ArtifactError(
            f"{out}: the deployed form would take the place of the training form, which could not be trained or "
            "folded again; write it elsewhere with --out"
        )
    refuse_existing(None if plan_only else out, force=force)
    from detloom.reparam import fold

    detector, table = _opened(source, passes, plugins, needs_weights=not plan_only)
    if plan_only:
        report = fold(detector, detector.passes)[1]
        _tell(report, detector, detector, show_all=True, as_json=as_json)
        return
    example = _example(detector, images, size)
    folded, report = fold(detector, detector.passes, example=example)
    if out is not None:
        _write(out, folded, table, example)
    pictures = f"{len(example)} {'pictures of yours' if images else 'drawn pictures'}, {example.shape[-1]} pixels wide"
    _tell(report, detector, folded, show_all=show_all, as_json=as_json, out=out, pictures=pictures)


def _opened(
    source: str, passes: tuple[str, ...], plugins: tuple[Path, ...], *, needs_weights: bool
) -> "tuple[Detector, list[Any]]":
    """Return the model with the passes to apply, and the passes as a recipe lists them."""
    from detloom.artifacts import load_artifact, read_artifact
    from detloom.assembly import assemble, build
    from detloom.kinds import Kind
    from detloom.shapes import shapes_only

    if source.endswith(ARTIFACT):
        if read_artifact(source).folded:
            raise ArtifactError(f"{source}: this artifact is folded already; `detloom predict` uses it as it is")
        detector = load_artifact(source, plugins=plugins)
    elif needs_weights:
        raise ArtifactError(
            f"{source}: only an artifact has weights to fold, a file that ends in {ARTIFACT}, such as "
            f"RUN/best{ARTIFACT}; `detloom fuse --plan` describes the folds of a recipe"
        )
    else:
        with shapes_only():
            detector = assemble(source, plugins=plugins)
    listed = [] if detector.recipe is None else detector.recipe.tables.get(Kind.REPARAM, {}).get("passes", [])
    if passes:
        listed = list(passes)
        detector.passes = tuple(build(Kind.REPARAM, {"use": name}, where="--pass") for name in passes)
    return detector, listed


def _example(detector: "Detector", images: tuple[Path, ...], size: int) -> "Tensor":
    """Return pictures as the network is given them."""
    import numpy as np
    import torch

    from detloom.data.letterbox import Letterbox
    from detloom.engine.sources import open_sources
    from detloom.errors import DataError
    from detloom.scenes import draw_scene

    if images:
        frames = [frame.picture for frame, _ in zip(open_sources(images), range(MOST_PICTURES), strict=False)]
        bad = [each for each in frames if isinstance(each, DataError)]
        if bad:
            raise bad[0]
        pictures = [each for each in frames if not isinstance(each, DataError)]
    else:
        random = np.random.default_rng(0)
        pictures = [draw_scene(random).picture_HW3 for _ in range(2)]
    stride = detector.max_stride
    side = -(-size // stride) * stride
    canvas_BHWC = np.stack([Letterbox.fit(each.shape[:2], side).apply(each) for each in pictures])
    return torch.from_numpy(canvas_BHWC).permute(0, 3, 1, 2).float() / 255


def _write(out: Path, folded: "Detector", passes: list[Any], example: "Tensor") -> None:
    """Write the artifact, after it was read back and gave the same outputs."""
    import torch

    from detloom.artifacts import load_artifact, save_artifact
    from detloom.proof import named_tensors

    if folded.recipe is None:
        raise ArtifactError("this detector has no recipe to be written with")
    beside = out.with_name(f"{out.stem}.unread{ARTIFACT}")
    try:
        try:
            save_artifact(beside, folded, recipe=folded.recipe, names=folded.names, folded=passes)
        except ArtifactError as error:
            # The name that it has until it is read back is no concern of the user's.
            raise ArtifactError(str(error).replace(str(beside), str(out))) from error
        with torch.inference_mode():
            expected, found = (
                named_tensors(each.predictions(example), "predictions") for each in (folded, load_artifact(beside))
            )
        same = len(expected) == len(found) and all(
            torch.equal(mine, its) for (_, mine), (_, its) in zip(expected, found, strict=True)
        )
        if not same:
            raise ArtifactError(f"{out}: read back, the artifact gives other outputs; nothing was written")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _tell(
    report: "FoldReport",
    before: "Detector",
    after: "Detector",
    *,
    show_all: bool,
    as_json: bool,
    out: Path | None = None,
    pictures: str = "",
) -> None:
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (before, after)]
    if as_json:
        echo_json(
            {
                "folds": [
                    {
                        "pass": each.by,
                        "module": each.fold.path,
                        "parts": list(each.fold.parts),
                        "applies": each.fold.applies,
                        "reason": each.fold.reason,
                    }
                    for each in report.folds
                ],
                "warnings": list(report.warnings),
                "parameters": {"before": counts[0], "after": counts[1]},
                "outputs": [_facts(each) for each in report.outputs],
                "modules": [_facts(each) for each in report.modules],
                "pictures": pictures,
                "artifact": None if out is None else str(out),
            }
        )
        return
    _print_folds(report, show_all=show_all)
    for warning in report.warnings:
        click.echo(f"warning: {warning}")
    if not report.outputs:
        return
    click.echo(f"proved on {pictures}")
    _print_differences("outputs", report.outputs, len(report.outputs))
    _print_differences("folded modules", report.modules, len(report.modules) if show_all else WORST)
    click.echo(f"parameters: {counts[0]:,} before, {counts[1]:,} after")
    click.echo(
        "equal within the tolerances" + ("; --out writes the deployed form" if out is None else f"; wrote {out}")
    )


def _print_folds(report: "FoldReport", *, show_all: bool) -> None:
    if not report.folds:
        click.echo("nothing to fold")
    for name in dict.fromkeys(each.by for each in report.folds):
        places = [each.fold for each in report.folds if each.by == name]
        applied = sum(each.applies for each in places)
        click.echo(f"{name}: folds {applied}, leaves {len(places) - applied}")
        for each in places:
            if show_all or not each.applies:
                where = each.path or "the model"
                click.echo(f"  {'folds ' if each.applies else 'leaves'} {where}: {each.reason}")


def _print_differences(title: str, differences: "tuple[Difference, ...]", most: int) -> None:
    from detloom.reparam import worst_first

    shown = worst_first(differences)[:most]
    places = len({each.where for each in differences})
    click.echo(
        f"{title}: {places}" + (f", the worst {len(shown)} measurements" if len(shown) < len(differences) else "")
    )
    width = max((len(each.where) for each in shown), default=0)
    click.echo(f"  {'':{width}}  {'':8}  {'absolute':>9}  {'relative':>9}  tolerance")
    for each in shown:
        numbers = f"{each.absolute:>9.2e}  {each.relative:>9.2e}  {each.tolerance:.0e}"
        click.echo(f"  {each.where:{width}}  {each.precision:8}  {numbers}")


def _facts(difference: "Difference") -> dict[str, Any]:
    return {
        "where": difference.where,
        "precision": difference.precision,
        "absolute": difference.absolute,
        "relative": difference.relative,
        "tolerance": difference.tolerance,
    }
