"""An export from beginning to end: what is asked is checked first, then done beside its place, then moved there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detloom.artifacts import load_artifact
from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.durable import write_text
from detloom.engine.progress import RunView, SilentView
from detloom.errors import ExportError
from detloom.export.fake_quantisation import PRODUCTS
from detloom.export.folding import canvas_of, deploy, modules_named, network_of
from detloom.export.markdown import markdown
from detloom.export.material import read_material
from detloom.export.network import Preflight
from detloom.export.report import Report, facts
from detloom.export.staging import REPORT, check_destination, staged
from detloom.export.targets import Chosen, choose_target
from detloom.export.work import Said, Work

__all__ = ["ARTIFACT", "CALIBRATION", "MAX_DROP", "export", "preflight"]

ARTIFACT = ".safetensors"
CALIBRATION = 64
"""Pictures that the ranges of numbers are found on, unless another number is asked for."""
MAX_DROP = 0.01
"""AP that may be lost from the trained form to the last stage, unless more or less is said to be."""


def preflight(
    source: str | Path,
    *,
    target: str,
    settings: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    passes: Sequence[str] = (),
    mixed: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
) -> Preflight:
    """Return what a target would do with an artifact or a recipe; needs no data and writes nothing.

    Args:
        source: An artifact, or a recipe, whose weights are random then.
        target: An exporter or a device.
        settings: Of the exporter.
        image_size: Side of the input, or height and width; the recipe's when not given.
        passes: Reparam passes beside the recipe's and the exporter's.
        mixed: Modules that keep more than eight bits.
        plugins: Files of plugins that are run.

    Raises:
        ExportError: Nothing is called so, packages are missing, or it cannot be told.
    """
    detector = _opened(source, plugins)
    chosen = choose_target(target, settings or {})
    size = canvas_of(detector, image_size)
    deployed = deploy(detector, chosen, passes, example=None)
    precise = modules_named(network_of(deployed.detector, size), mixed, PRODUCTS)
    return chosen.exporter.check(network_of(deployed.detector, size, precise))


def export(
    artifact: str | Path,
    *,
    target: str,
    out: str | Path | None = None,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    calibration: int = CALIBRATION,
    passes: Sequence[str] = (),
    mixed: int | Sequence[str] = (),
    qat_epochs: int = 0,
    max_drop: float = MAX_DROP,
    validate: bool = True,
    skip_bad: bool = False,
    force: bool = False,
    plugins: Sequence[str | Path] = (),
    said: Said = lambda _: None,
    view: RunView | None = None,
) -> tuple[Path, Report]:
    """Export an artifact, and return the folder and the report that lies in it.

    Nothing is left where something fails. Where too much AP is lost, the report is kept and the model is not.

    Args:
        artifact: What is exported.
        target: An exporter or a device.
        out: The folder to make; beside the artifact, named for it and the target, when not given.
        data: A data set to calibrate on, its training split, and to measure on.
        settings: Of the exporter, over those of the device.
        image_size: Side of the input, or height and width; the recipe's when not given.
        calibration: Pictures that the ranges of numbers are found on.
        passes: Reparam passes beside the recipe's and the exporter's.
        mixed: How many of the most sensitive layers keep more than eight bits, or which modules do.
        qat_epochs: Epochs of quantisation-aware fine-tuning.
        max_drop: AP that may be lost from the trained form to the last stage.
        validate: Measure AP; without, ``data`` may be missing where nothing else asks for it.
        skip_bad: Go on without faulty pictures and boxes.
        force: Take the place of an export that is there.
        plugins: Files of plugins that are run.
        said: Told what is being done.
        view: Shows the fine-tuning.

    Raises:
        ExportError: The target cannot take the network, too much AP is lost, or data is missing.
        PluginError: A pass changed what the detector finds, or the exporter breaks its contract.
        DataError: The data cannot be used.
        ArtifactError: The artifact cannot be read, or the place is taken.
    """
    artifact = Path(artifact)
    detector = _opened(artifact, plugins, needs_weights=True)
    chosen = choose_target(target, settings or {})
    folder = artifact.with_name(f"{artifact.stem}-{target.replace('/', '-')}") if out is None else Path(out)
    check_destination(folder, force=force)
    _demand_data(chosen, data, validate=validate, qat_epochs=qat_epochs, mixed=mixed)
    assert detector.recipe is not None  # noqa: S101 - an artifact has one
    size = canvas_of(detector, image_size)
    said("reading pictures")
    material = read_material(
        None if data is None else Path(data), detector, detector.recipe, size, count=calibration, skip_bad=skip_bad
    )
    if not validate:
        material = replace(material, val=None)
    work = Work(
        name=folder.resolve().name,
        artifact=artifact,
        detector=detector,
        recipe=detector.recipe,
        chosen=chosen,
        size=size,
        material=material,
        passes=passes,
        mixed=mixed,
        qat_epochs=qat_epochs,
        max_drop=max_drop,
        said=said,
        view=view or SilentView(),
    )
    with staged(folder, force=force) as made:
        report = work.done(made)
        _write_reports(made, report)
    if report.status == "refused":
        raise ExportError(_too_much_lost(report, folder))
    return folder, report


def _opened(source: str | Path, plugins: Sequence[str | Path], *, needs_weights: bool = False) -> Detector:
    if str(source).endswith(ARTIFACT) or needs_weights:
        return load_artifact(source, plugins=plugins)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return assemble(str(source), plugins=plugins)


def _demand_data(
    chosen: Chosen, data: str | Path | None, *, validate: bool, qat_epochs: int, mixed: int | Sequence[str]
) -> None:
    """Refuse an export without data that something needs.

    Raises:
        ExportError: Says what it is needed for.
    """
    if data is not None:
        return
    needs = {
        f"the exporter '{chosen.name}' finds the ranges of numbers on its pictures": chosen.exporter.calibrates,
        "--qat-epochs learns from it": bool(qat_epochs),
        "--mixed with a number measures the layers on its pictures": isinstance(mixed, int) and mixed > 0,
        "the AP that is left is measured on it": validate,
    }
    reasons = [reason for reason, is_so in needs.items() if is_so]
    if reasons:
        only = validate and len(reasons) == 1
        raise ExportError(
            f"--data is missing: {', and '.join(reasons)}. Give the data set that the artifact was trained on"
            + (", or --no-validate to export without knowing what is lost." if only else ".")
        )


def _write_reports(folder: Path, report: Report) -> None:
    if report.status == "refused":
        for each in report.files:
            (folder / each.name).unlink()
    write_text(folder / REPORT, json.dumps(facts(report), indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.md", markdown(report))


def _too_much_lost(report: Report, folder: Path) -> str:
    stages = ", ".join(f"{each.name} {each.ap:.4f}" for each in report.stages if each.ap is not None)
    return (
        f"{folder}: {report.drop:.4f} AP is lost from the first stage to the last, more than --max-drop "
        f"{report.max_drop:g}: {stages}.\n"
        f"  The report is in {folder}, the model is not. What helps: more pictures (--calibration), more bits for the "
        "layers that suffer most (--mixed 4), a short fine-tuning (--qat-epochs 2); a larger --max-drop accepts it."
    )
