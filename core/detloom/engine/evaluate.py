"""A detector against annotations: metrics, and pictures that say where it is wrong.

Shape letters: C classes of the detector; see ``structures``.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detloom.assembly import build
from detloom.data.loader import Loader, num_workers
from detloom.data.records import Annotations
from detloom.detector import Detector
from detloom.engine.predict import Forward, check_device, detect, detections_of, ready
from detloom.engine.report import write_report
from detloom.engine.settings import Precision
from detloom.errors import DataError, RecipeError
from detloom.interfaces import Evaluator, Metrics
from detloom.kinds import Kind
from detloom.recipe import Recipe
from detloom.structures import Detections
from detloom.workshop import workshop

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_evaluator", "detect_split", "evaluate", "labels_in"]

Progress = Callable[[int, int], None]


def evaluate(
    detector: "Detector | nn.Module",
    annotations: Annotations,
    recipe: Recipe | None = None,
    *,
    evaluator: Evaluator | None = None,
    score: float | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    workers: int | None = None,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    forward: Forward | None = None,
    report: str | Path | None = None,
) -> Metrics:
    """Return the metrics of a detector on a split; settings that are None are the recipe's.

    Every box that scores above the evaluation threshold counts, with each of its labels.

    Args:
        detector: What is measured; it is left as it was.
        annotations: The split.
        recipe: Where settings come from; the detector's own when not given.
        evaluator: What measures; the recipe's when not given.
        score: Least score of a detection.
        overlap: IoU from which the lesser of two boxes of a class is dropped.
        batch: Pictures of a forward pass.
        image_size: Side of the canvas that pictures are fitted on, or its height and width.
        workers: Processes that read pictures.
        precision: Of the forward pass.
        device: Where to compute; None stays where the detector is.
        progress: Called after each batch with the batches done and those of the split.
        forward: Makes the raw maps in the place of the detector's own network, as an exported file does; the
            detector's head decodes them. Give the form of the detector that the maps are of, or a recipe whose
            ``[predict] fuse`` is off.
        report: Directory for precision-recall and confusion pictures and ``evaluation.json``.

    Raises:
        RecipeError: The recipe names no evaluator, or there is no such device here.
        DataError: A picture cannot be read, or the classes differ in more than their order.
    """
    model = _narrowed(detector)
    recipe = recipe or model.recipe
    if recipe is None:
        raise RecipeError("evaluate: this detector has no recipe; give one, for the size of pictures and thresholds")
    labels_in(annotations, model.names)
    evaluator = evaluator or build_evaluator(recipe, annotations)
    found = detect_split(
        model,
        annotations,
        recipe,
        score=score,
        overlap=overlap,
        batch=batch,
        image_size=image_size,
        workers=workers,
        precision=precision,
        device=device,
        progress=progress,
        forward=forward,
    )
    metrics = evaluator.evaluate(found)
    if report is not None:
        write_report(Path(report), metrics, found, annotations)
    return metrics


def detect_split(
    detector: Detector,
    annotations: Annotations,
    recipe: Recipe,
    *,
    score: float | None = None,
    overlap: float | None = None,
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    workers: int | None = None,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    forward: Forward | None = None,
) -> dict[int, Detections]:
    """Return what is found in each picture of a split, by its index, with the settings of evaluation.

    Labels and names are those of the split, where the detector's classes have another order.
    The arguments are those of ``evaluate``.
    """
    if device is not None:
        check_device(device)
    settings, data = recipe.predict, recipe.data
    label_C = labels_in(annotations, detector.names)
    loader = Loader(
        annotations,
        image_size=data.image_size if image_size is None else image_size,
        batch_size=batch or settings.batch,
        stride=detector.max_stride,
        workers=num_workers(data.workers if workers is None else workers, device or next(detector.parameters()).device),
        cache="off",
        rectangular=settings.rectangular,
    )
    found: dict[int, Detections] = {}
    with ready(detector, fuse=settings.fuse, device=device) as model:
        for done, batch_BCHW in enumerate(loader.epoch(0), 1):
            kept = detect(
                model,
                batch_BCHW.images_BCHW,
                score=settings.evaluation_score if score is None else score,
                overlap=settings.evaluation_overlap if overlap is None else overlap,
                max_detections=settings.max_detections,
                multi_label=True,
                agnostic=settings.agnostic,
                candidates=settings.candidates,
                precision=precision,
                forward=forward,
            )
            names = [str(annotations.images[index].path) for index in batch_BCHW.indices]
            group = detections_of(kept, batch_BCHW.letterboxes, annotations.names, names)
            if label_C is not None:
                group = [replace(each, labels_N=label_C[each.labels_N]) for each in group]
            found.update(zip(batch_BCHW.indices, group, strict=True))
            if progress is not None:
                progress(done, len(loader))
    return found


def build_evaluator(recipe: Recipe, annotations: Annotations) -> Evaluator:
    """Return the recipe's evaluator for a split.

    Raises:
        RecipeError: The recipe names none.
    """
    table = recipe.tables.get(Kind.EVALUATOR)
    where = recipe.where(Kind.EVALUATOR)
    if table is None:
        known = ", ".join(workshop().names(Kind.EVALUATOR))
        raise RecipeError(f"{where}: no evaluator is named; add [evaluator] with `use`, one of: {known}")
    built = build(Kind.EVALUATOR, table, annotations, where=where)
    if not isinstance(built, Evaluator):
        raise TypeError(f"{built!r} is no Evaluator")
    return built


def _narrowed(detector: "Detector | nn.Module") -> Detector:
    if not isinstance(detector, Detector):
        raise TypeError(f"evaluate needs a Detector, not a {type(detector).__name__}")
    return detector


def labels_in(annotations: Annotations, names: tuple[str, ...]) -> Tensor | None:
    """Return the label that each of a detector's classes has in a split; None where labels are the same.

    Raises:
        DataError: The classes differ in more than their order.
    """
    known = annotations.names
    # A detector that was assembled without names has numbers for them.
    is_unnamed = names == tuple(map(str, range(len(known))))
    if names == known or is_unnamed:
        return None
    if sorted(names) != sorted(known):
        raise DataError(
            f"{annotations.source}: has {len(known)} classes ({', '.join(known)}), but the detector has {len(names)} "
            f"({', '.join(names)}); they may differ in order alone. Evaluate on the classes that it was trained for."
        )
    return torch.tensor([known.index(name) for name in names])
