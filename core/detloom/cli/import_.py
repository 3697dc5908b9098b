"""``detloom import``: a checkpoint of another project to an artifact."""

from pathlib import Path
from typing import Any

import click

from detloom.cli.options import (
    complete_recipe,
    echo_json,
    force_option,
    json_option,
    plugin_option,
    refuse_existing,
    say_next,
    set_option,
)
from detloom.errors import ArtifactError, DataError, reason

__all__ = ["command"]


@click.command(name="import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The artifact to write.")
@click.option(
    "--recipe",
    shell_complete=complete_recipe,
    help="What it holds the weights of; found by its tensors when not given.",
)
@click.option("--names", type=click.Path(path_type=Path), help="Class names, one a line; those of the file otherwise.")
@force_option
@plugin_option
@set_option
@json_option
def command(
    checkpoint: Path,
    out: Path | None,
    recipe: str | None,
    names: Path | None,
    overrides: dict[str, Any],
    *,
    plugins: tuple[Path, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Turn CHECKPOINT, a file of torch.save or of safetensors, into an artifact.

    Nothing in the file is executed. Every tensor is used exactly once, or nothing is written and what is left over
    on both sides is listed.

    \b
    detloom import yolov7.pt -o yolov7.safetensors
    """
    out = out or checkpoint.with_suffix(".safetensors")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise ArtifactError(f"{out}: the artifact would take the checkpoint's place; write it elsewhere with --out")
    refuse_existing(out, force=force)
    from detloom.artifacts import save_artifact
    from detloom.matching import import_checkpoint
    from detloom.workshop import workshop

    for path in plugins:
        workshop().load_file(path)
    imported = import_checkpoint(
        checkpoint, recipe=recipe, names=_read_names(names), names_file=names, overrides=overrides
    )
    detector = imported.detector
    origin = {"file": checkpoint.name, "importer": imported.importer, "part": imported.part}
    save_artifact(out, detector, recipe=imported.recipe, names=detector.names, extra={"imported": origin})
    facts = {
        "artifact": str(out),
        "recipe": imported.recipe.name,
        "importer": imported.importer,
        "part": imported.part,
        "tensors": imported.num_tensors,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "names": list(detector.names),
        "settings": dict(imported.settings),
    }
    if as_json:
        echo_json(facts)
        return
    click.echo(
        f"{imported.recipe.name}: {facts['tensors']} tensors, {facts['parameters']:,} parameters, "
        f"{len(detector.names)} classes" + (f", from '{imported.part}'" if imported.part else "")
    )
    for key, value in imported.settings.items():
        click.echo(f"  as the checkpoint has it: {key} = {value}")
    if names is None and detector.names == tuple(map(str, range(len(detector.names)))):
        click.echo("the checkpoint names no classes: they are called by their numbers; --names FILE gives them names")
    say_next(out, plugins)


def _read_names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the class names cannot be read: {reason(error)}") from error
    if not names or not all(names):
        raise DataError(f"{path}: there must be one class name on each line, and no empty line")
    return names
