"""``detloom predict``: pictures, folders, patterns and videos to boxes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detloom.cli.options import (
    compute_options,
    echo_json,
    json_option,
    plugin_option,
    refuse_fixed_settings,
    set_option,
)

if TYPE_CHECKING:
    from detloom.engine.settings import Precision

__all__ = ["command"]


@click.command(name="predict")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write pictures and JSON here.")
@click.option("--score", type=click.FloatRange(0, 1), help="Least score of a detection.")
@click.option("--overlap", type=click.FloatRange(0, 1), help="IoU from which the lesser of two boxes is dropped.")
@click.option("--class", "classes", multiple=True, metavar="NAME", help="Keep this class alone; may be repeated.")
@click.option("--no-pictures", is_flag=True, help="Write JSON alone.")
@click.option("--skip-bad", is_flag=True, help="Go on without pictures that cannot be read.")
@compute_options
@plugin_option
@set_option
@json_option
def command(
    artifact: Path,
    sources: tuple[str, ...],
    *,
    out: Path | None,
    score: float | None,
    overlap: float | None,
    classes: tuple[str, ...],
    no_pictures: bool,
    skip_bad: bool,
    device: str | None,
    precision: "Precision",
    plugins: tuple[Path, ...],
    overrides: dict[str, Any],
    as_json: bool,
) -> None:
    """Find objects with ARTIFACT in files, folders, patterns with * and videos.

    Without --out, a line for each picture is printed; with it, pictures with boxes and
    predictions.json are written.
    """
    refuse_fixed_settings(overrides)
    from collections import Counter
    from collections.abc import Iterator

    from detloom.artifacts import load_artifact
    from detloom.data.reading import Picture
    from detloom.engine.predict import detections_json, stream, write_predictions
    from detloom.recipe import load_recipe
    from detloom.structures import Detections

    detector = load_artifact(artifact, plugins=plugins)
    assert detector.recipe is not None  # noqa: S101 - an artifact has one
    detector.recipe = load_recipe(detector.recipe, overrides)
    rows = []

    def told() -> "Iterator[tuple[Picture, Detections]]":
        found = stream(
            detector,
            sources,
            score=score,
            overlap=overlap,
            classes=classes or None,
            precision=precision,
            device=device,
            on_bad=(lambda error: click.echo(f"left out: {error.what}", err=True)) if skip_bad else None,
        )
        for picture, detections in found:
            if as_json:
                rows.append(detections_json(detections, None))
            else:
                counts = Counter(detections.names[label] for label in detections.labels_N.tolist())
                listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
                click.echo(f"{detections.source}: {listed or 'nothing'}")
            yield picture, detections

    if out is None:
        for _ in told():
            pass
    else:
        written = write_predictions(out, told(), pictures=not no_pictures)
        if not as_json:
            click.echo(f"wrote {written[0]}" + (f" and {len(written) - 1} pictures" if len(written) > 1 else ""))
    if as_json:
        echo_json(rows)
